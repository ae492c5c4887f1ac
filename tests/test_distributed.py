"""scripts/train.py as two processes: killed, resumed, and equal to the same run in one process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bnn_jax import checkpoint, experiment, processes, runs
from bnn_jax.commands import train
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
NET = "mlp(hidden=(8,))"
SETTINGS = ["--dataset", "digits", "--net", NET, "--method", "vi", "--steps", "24", "--eval-every", "4"]


def start(out: Path, *more: str) -> list[subprocess.Popen]:
    """Both processes of a run; one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    given = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    given |= {processes.ADDRESS: address, processes.COUNT: "2"}
    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "train.py"), *SETTINGS, "--out", str(out), *more],
            env={**os.environ, **given, processes.INDEX: str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]


def weights(out: Path) -> list[np.ndarray]:
    kept = experiment.reopen(out)
    state = jax.eval_shape(kept.algorithm.init, jax.random.key(0), kept.params)
    return jax.tree.leaves(checkpoint.load(out / "state", state))


def test_two_processes_train_and_resume_what_one_does(tmp_path, quick_compile):
    alone, out = tmp_path / "one", tmp_path / "two"
    both = start(out)
    end = time.monotonic() + 600
    while not checkpoint.steps(out / "checkpoints") and None in [process.poll() for process in both]:
        assert time.monotonic() < end
        time.sleep(0.02)
    for process in both:
        process.send_signal(signal.SIGKILL)
    said = [process.communicate()[0] for process in both]
    assert checkpoint.steps(out / "checkpoints"), "\n".join(said)

    both = start(out)
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    assert "each batch is split over 2 devices of 2 processes" in said[0]
    assert "run:" not in said[1]  # the first speaks for both

    train.main(train.Config(dataset="digits", net=NET, method="vi", steps=24, eval_every=4, out=alone))
    for a, b in zip(weights(out), weights(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    found, wanted = (runs.read_json(path / "history.json") for path in (out, alone))
    assert [row["step"] for row in found] == [4, 8, 12, 16, 20, 24]
    for a, b in zip(found, wanted, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` was called with, without calling it."""
    for name in (
        processes.ADDRESS,
        processes.COUNT,
        processes.INDEX,
        "TPU_WORKER_HOSTNAMES",
        *processes.TASKS,
    ):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    return calls


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, []),
        ({"SLURM_STEP_NUM_TASKS": "1"}, []),
        ({"SLURM_STEP_NUM_TASKS": "8"}, [(None, None, None)]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, [(None, None, None)]),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, []),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, [(None, None, None)]),
        ({processes.ADDRESS: "a:1234"}, [("a:1234", None, None)]),
        ({processes.ADDRESS: "a:1", processes.COUNT: "4", processes.INDEX: "0"}, [("a:1", 4, 0)]),
    ],
)
def test_the_environment_says_whether_there_are_others(given, wanted, joined, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    processes.join()
    assert joined == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({processes.ADDRESS: "a"}, "must be host:port of process 0, not 'a'"),
        ({processes.ADDRESS: "a:1", processes.COUNT: "two"}, "JAX_NUM_PROCESSES must be a whole number"),
    ],
)
def test_mistakes_are_told_in_one_line(given, said, joined, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said) as error:
        processes.join()
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(joined, monkeypatch):
    def refuse(*args):
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setenv(processes.ADDRESS, "a:1")
    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match="set JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
        processes.join()


def test_one_process_is_left_alone():
    row, tree = {"step": 3, "elbo": -0.1}, {"a": jax.numpy.arange(3)}
    assert processes.agreed(row) is row
    assert processes.readable(tree) is tree
    with processes.first_before_others():
        assert processes.is_first()
