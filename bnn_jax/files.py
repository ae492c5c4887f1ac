"""Files that are whole or not there, and folders that one process writes to."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from bnn_jax.types import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


@contextlib.contextmanager
def whole(path: Path, mode: str = "w", **given: Any) -> Iterator[IO]:
    """Open a file for writing that appears at `path` when the context ends well, replacing what is there.

    Args:
        mode, given: as of `open`. Text is UTF-8, but for names of files that are none: they stay as they are.
    """
    temporary = path.with_name(path.name + ".tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape"}
    with temporary.open(mode, **text, **given) as file:
        yield file
    os.replace(temporary, path)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep `folder` to this process: of two that train in it, each would delete the other's checkpoints.

    The system lets go of the folder when the process ends, however it ends. File systems without locks, some
    network ones among them, cannot tell.

    Raises:
        UserError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is at work in {folder}: wait for it, or choose another"
            ) from None
        except OSError:
            pass  # no locks here
        yield
    finally:
        os.close(handle)
