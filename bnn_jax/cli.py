"""What every command line shares: parsing, exit codes, and progress that survives Ctrl-C.

0 done, 2 the user's mistake or a full or read-only disk (one line on stderr, no traceback), 130
interrupted, 141 whoever read the output (`| head`) has gone. Anything else is a bug and shows its traceback.
"""

import ctypes
import errno
import io
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console

from bnn_jax import processes
from bnn_jax.types import UserError

USER_ERROR, INTERRUPTED, NO_READER = 2, 130, 141


def run(
    main: Callable[[Any], int | None],
    config: type,
    description: str,
    cpu_devices: Callable[[Any], int] = lambda config: 1,
    several: bool = False,
) -> None:
    """Parse `config` from the command line, call `main` with it and exit.

    Args:
        main: takes a `config`; its return value is the exit code, None for 0.
        config: a frozen dataclass; its docstring's comments are the help of its options.
        description: the first lines of `--help`.
        cpu_devices: how many devices the CPU counts as: one for each chain lets them run side by side.
            Accelerators are taken as they are.
        several: whether `main` runs as several processes, where there are (`processes.join`).
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files need be no UTF-8
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        keep_memory()
        settings = tyro.cli(config, description=description)
        jax.config.update("jax_num_cpu_devices", max(cpu_devices(settings), 1))
        keep_programs()
        if several:
            processes.join()
        code = main(settings) or 0
    except UserError as error:
        stderr.print(f"error: {error}", markup=False)
        code = USER_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail again
        code = NO_READER
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        stderr.print(f"error: {error}; what was written before is kept", markup=False)
        code = USER_ERROR
    except KeyboardInterrupt:
        stderr.print("interrupted; what is done is kept: give the same command again", markup=False)
        leave(INTERRUPTED)
    sys.exit(code)


def leave(code: int) -> None:
    """Exit without waiting for threads: those of a checkpoint that was cut off may hang or crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def keep_memory() -> None:
    """Keep memory that is freed for the next who asks, where the C library is glibc.

    XLA's CPU backend allocates what a program works in at every call. Left alone, glibc gives blocks of more
    than 32 MB back to the system, which clears the pages of the next (docs/performance.md).
    In arenas other than the main one it does so whatever it is told, so that there is but one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):  # -1: never
            mallopt(parameter, value)


_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h


def keep_programs() -> None:
    """Keep compiled programs on disk, so that the next process need not compile them again.

    In the folder that JAX_COMPILATION_CACHE_DIR names, else in the user's cache folder; in none with
    JAX_ENABLE_COMPILATION_CACHE=false. JAX keeps what took at least a second to compile.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "bnn_jax" / platform.node()  # a program for one CPU need not run on another
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written to: compile again, the results are the same
    jax.config.update("jax_compilation_cache_dir", str(folder))
