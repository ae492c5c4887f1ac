"""Run folders: what a script writes, owned by one configuration and never overwritten by another.

`run.json` marks a folder as ours and keeps the script and its configuration. The same command finds it
again and continues; another configuration, or a folder of somebody else's, is refused.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from bnn_jax import files
from bnn_jax.types import UserError

MARK = "run.json"


def claim(
    out: Path,
    script: str,
    config: dict[str, Any],
    free: Sequence[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Make `out` the run folder of this configuration, or find that it is.

    Args:
        free: settings that may differ between the calls that continue a run; the folder keeps the newest.
        defaults: of settings that may be newer than the run.

    Raises:
        UserError: the folder exists and is not a run of this script, or one with other settings; or its path
            cannot hold checkpoints.
    """
    if "[" in str(out.absolute()):  # orbax would look for its files by a pattern, find none and say nothing
        raise UserError(f"--out {out.absolute()}: a path with '[' cannot hold checkpoints; choose another")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; choose another folder")
    begun = MARK + ".tmp"  # all that a kill within `write_json` leaves of a new folder
    if out.is_dir() and any(path.name != begun for path in out.iterdir()):
        found = {**defaults, **read_mark(out, script)}
        other = [name for name in config if found.get(name) != config[name]]
        if not other:
            return
        if fixed := [name for name in other if name not in free]:
            changed = ", ".join(f"{n} {found.get(n)!r} there, {config[n]!r} here" for n in fixed)
            raise UserError(f"--out {out} holds a run with other settings ({changed}); choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / MARK, {"project": "bnn_jax", "script": script, "config": config})
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error.strerror}") from None


def check_seed(seed: int) -> None:
    """Raise a UserError unless everything that takes a seed can take this one."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed must lie between 0 and {2**32 - 1}, not {seed}")


def slug(text: str) -> str:
    """`text` as the name of a folder: what is no letter, digit, dot or underscore becomes a hyphen."""
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")


def read_mark(folder: Path, script: str) -> dict[str, Any]:
    """The configuration of the run in `folder`.

    Raises:
        UserError: no folder, or not a run of this script.
    """
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}")
    try:
        mark = json.loads((folder / MARK).read_text())
        if (mark["project"], mark["script"]) == ("bnn_jax", script):
            return dict(mark["config"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{folder} exists and is not a run of {script}; nothing was changed")


def as_config(config: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """A frozen dataclass as plain JSON values, without the fields that do not change the result."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in leave_out
    }


def from_config(kind: type, found: dict[str, Any], where: Path) -> Any:
    """The dataclass that `as_config` wrote; fields that were left out take their defaults.

    Raises:
        UserError: `found` has a field that `kind` does not have: another version wrote it.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = ", ".join(sorted(set(found) - set(fields)))
    if unknown:
        raise UserError(f"{where} is a run of another version, whose settings differ ({unknown})")
    return kind(**{name: _from_plain(fields[name].type, value) for name, value in found.items()})


def stream(seed: int, name: str) -> jax.Array:
    """The key of one part of a run: adding a part leaves the others' random numbers alone."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is an error."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with files.whole(path) as file:
        file.write(text)


def read_json(path: Path) -> Any:
    """The JSON at `path`, or None where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again") from None


def environment() -> dict[str, Any]:
    """Versions, devices and git commit, for the record beside the results."""
    versions = {n: importlib.metadata.version(n) for n in ("jax", "flax", "optax", "numpyro", "numpy")}
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **versions,
        "platform": device.platform,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
        "num_cores": _num_cores(),
        "git_commit": _git_commit(),
    }


def _num_cores():
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _git_commit():
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _from_plain(kind, value):
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and "Path" in str(kind) else value


def _plain(value):
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
