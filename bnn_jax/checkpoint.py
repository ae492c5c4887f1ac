"""Checkpoints of any state: the one file that imports orbax.

A checkpoint is a folder, written whole or not at all (orbax renames it into place), restored against
an abstract tree so that a foreign one is refused.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bnn_jax.types import UserError


def save(path: Path, tree: Any) -> None:
    """Write `tree` to the folder `path`, replacing a checkpoint that is there. Of several processes all call
    this with the same tree; it returns in each once the checkpoint is whole.

    Raises:
        OSError: the disk is full.
    """
    with _quiet(), _told(path):
        ocp.save(path.absolute(), jax.tree.map(np.asarray, tree), overwrite=True)


def save_async(path: Path, tree: Any) -> Callable[[], None]:
    """Begin to write `tree` to the folder `path`, which must not exist, in the background; of several
    processes as `save`.

    Returns:
        waits until it is written; raises what went wrong, of a full disk an OSError. Until then nothing is at
        `path`.
    """
    # A copy: the next step may reuse the memory that orbax is still reading.
    host = jax.tree.map(lambda a: np.array(a, copy=True), tree)
    with contextlib.ExitStack() as until_written:
        until_written.enter_context(_quiet())
        with _told(path):
            written = ocp.save_async(path.absolute(), host)
        rest = until_written.pop_all()

    def wait() -> None:
        with rest, _told(path):
            written.result()

    return wait


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """orbax logs what it raises, too, with the tracebacks of all its threads."""
    logger, below = logging.getLogger("absl"), lambda record: record.levelno < logging.ERROR
    logger.addFilter(below)
    try:
        yield
    finally:
        logger.removeFilter(below)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """A full disk is an OSError, as of any other file; tensorstore has a ValueError for it."""
    try:
        yield
    except ValueError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None


def load(path: Path, like: Any) -> Any:
    """The tree at `path`.

    Args:
        like: a tree of the same structure, shapes and dtypes (arrays or `jax.ShapeDtypeStruct`).

    Raises:
        UserError: nothing there, damaged, or of another structure, shape or dtype.
    """
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # wherever the state was written from
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), like)
    try:
        # Compared before reading: orbax casts other dtypes silently and logs tracebacks for other shapes.
        stored = ocp.metadata(path.absolute()).metadata
        if stored is None:
            raise ValueError("its metadata cannot be read")
        same = _leaves(stored) == _leaves(abstract)
        tree = ocp.load(path.absolute(), abstract) if same else None
    except Exception as error:  # orbax and tensorstore raise many kinds; all mean the same to a user
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"the checkpoint {path} is damaged or of another run: {reason}") from error
    if not same:
        raise UserError(
            f"the checkpoint {path} is of another network or method: names, shapes or dtypes differ"
        )
    return tree


def _leaves(tree):
    """Path -> (shape, dtype); orbax's own record of a tree has lists and dicts for tuples and NamedTuples."""
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {name(path): (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in leaves}


def steps(folder: Path) -> list[int]:
    """The steps of all complete checkpoints `step-<number>` in `folder`, in ascending order."""
    names = (path.name for path in folder.glob("step-*") if path.is_dir())
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder / f"step-{step:08d}"


def keep_only(paths: Iterable[Path]) -> None:
    """Delete the siblings `<stem>-*` of `paths`, unfinished ones included."""
    paths = list(paths)
    for path in paths:
        for other in path.parent.glob(f"{path.name.rsplit('-', 1)[0]}-*"):
            if other not in paths:
                shutil.rmtree(other)
