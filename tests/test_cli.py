"""Exit codes: what a shell or a queue sees of a run."""

import dataclasses
import errno
import os
import platform
import subprocess
import sys

import jax
import pytest

from bnn_jax import cli
from bnn_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0  # a number


def full_disk():
    raise OSError(errno.ENOSPC, "No space left on device")


def mistake():
    raise UserError("no such [net]: choose another")


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("act", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (mistake, 2, "error: no such [net]: choose another\n"),
        (full_disk, 2, "No space left on device"),
        (interrupted, 130, "interrupted"),
    ],
)
def test_exit_codes(act, code, message, monkeypatch, capsys):
    jax.devices()  # the backend is up, and keeps its devices
    monkeypatch.setattr("sys.argv", ["script"])
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(cli, "leave", sys.exit)
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda config: act(), Config, "A script.")
    assert stopped.value.code == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == (1 if code > 1 else 0)


def test_an_interruption_waits_for_no_thread():
    program = """
import dataclasses, threading, time
from bnn_jax import cli

@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0  # a number

def main(config):
    print("begun", end="")
    threading.Thread(target=time.sleep, args=(3600,)).start()
    raise KeyboardInterrupt

cli.run(main, Config, "A script.")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (130, "begun")
    assert done.stderr.startswith("interrupted")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script"])
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda config: 1 // 0, Config, "A script.")


def test_an_unknown_option_exits_with_two(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["script", "--sed", "3"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda config: 0, Config, "A script.")
    assert stopped.value.code == 2


def test_help_into_a_closed_pipe_says_nothing():
    """As in `--help | head -1`; a real pipe, since the flush at exit is part of it."""
    program = """
import dataclasses, sys
from bnn_jax import cli

@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0

def main(config):
    sys.stdin.read()  # until the reader of our output is gone
    print("x" * 100_000, flush=True)

cli.run(main, Config, "A script.")
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe) as script:
        script.stdout.close()
        _, error = script.communicate()
    assert (script.returncode, error) == (141, b"")


def test_names_that_are_no_utf_8_are_printed_as_they_are():
    program = """
import dataclasses
from rich.console import Console
from bnn_jax import cli

@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0

name = b"caf\\xe9.png".decode("utf-8", "surrogateescape")
cli.run(lambda config: Console().print(name), Config, "A script.")
"""
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=strict)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"caf\xe9.png\n", b"")


def test_training_starts_without_what_few_runs_need():
    """Libraries that take long to import: `--help` and mistakes do not wait for them."""
    late = {"scipy", "sklearn", "matplotlib", "pandas", "grain", "numpyro", "arviz", "tensorflow"}
    program = f"import sys; from bnn_jax.commands import train; print(*{late} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


COMPILES = """
import dataclasses, jax
from bnn_jax import cli

@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0

cli.run(lambda config: print(jax.jit(lambda x: 2 * x)(21)), Config, "A script.")
"""


@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        (dict(XDG_CACHE_HOME="home"), "home/bnn_jax/*/jit_*"),
        (dict(XDG_CACHE_HOME="home", JAX_COMPILATION_CACHE_DIR="own"), "own/jit_*"),
        (dict(XDG_CACHE_HOME="home", JAX_ENABLE_COMPILATION_CACHE="false"), None),
        (dict(XDG_CACHE_HOME="a_file"), None),
    ],
    ids=["default", "own", "off", "no folder"],
)
def test_programs_are_kept_for_the_next_process(variables, kept, tmp_path):
    (tmp_path / "a_file").touch()
    folders = {name: str(tmp_path / v) if v != "false" else v for name, v in variables.items()}
    left = {name: v for name, v in os.environ.items() if "CACHE" not in name}
    always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", COMPILES]
    done = subprocess.run(command, capture_output=True, text=True, env=left | always | folders)
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
    found = list(tmp_path.rglob("jit_*"))
    assert sorted(found) == sorted(tmp_path.glob(kept) if kept else [])
    assert bool(found) == bool(kept)


FAULTS = """
import resource, threading
import numpy as np
from bnn_jax import cli

def work():
    faults = []
    for _ in range(5):
        np.ones(20_000_000)  # 160 MB, freed at once
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    print(faults[-1] - faults[0])

cli.keep_memory()
for _ in range(2):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="for glibc")
def test_freed_memory_is_kept():
    """What a thread allocates again and again brings no page of the system's after the first time."""
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert all(int(faults) < 1000 for faults in run.stdout.split())  # of 39,000 pages, or of large ones 300
