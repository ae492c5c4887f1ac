"""What every command line shares: parsing, exit codes, and progress that survives Ctrl-C.

0 done, 2 the user's mistake (one line on stderr, no traceback), 130 interrupted. Anything else is a bug
and shows its traceback.
"""

import sys
from collections.abc import Callable
from typing import Any

import tyro
from rich.console import Console

from bnn_jax.types import UserError

USER_ERROR, INTERRUPTED = 2, 130


def run(main: Callable[[Any], int | None], config: type, description: str) -> None:
    """Parse `config` from the command line, call `main` with it and exit.

    Args:
        main: takes a `config`; its return value is the exit code, None for 0.
        config: a frozen dataclass; its docstring's comments are the help of its options.
        description: the first lines of `--help`.
    """
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        code = main(tyro.cli(config, description=description)) or 0
    except UserError as error:
        stderr.print(f"error: {error}", markup=False)
        code = USER_ERROR
    except KeyboardInterrupt:
        stderr.print("interrupted; what is done is kept, the same command goes on from there", markup=False)
        code = INTERRUPTED
    sys.exit(code)
