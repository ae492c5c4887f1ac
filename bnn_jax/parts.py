"""Parts by name: a network, prior, likelihood, family, method or data set is one file of its package.

Adding `bnn_jax/nets/mine.py` with a `build` (a data set: `load`) makes `--net mine` work; there is
no list to edit. Files that begin with an underscore are not parts.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from bnn_jax.types import UserError

KINDS = {  # the word users know: (package, the function that a part offers)
    "network": ("bnn_jax.nets", "build"),
    "prior": ("bnn_jax.priors", "build"),
    "likelihood": ("bnn_jax.likelihoods", "build"),
    "posterior": ("bnn_jax.posteriors", "build"),
    "method": ("bnn_jax.infer", "build"),
    "data set": ("bnn_jax.data", "load"),
}


def names(kind: str) -> list[str]:
    """The names of all parts of one kind, sorted.

    Args:
        kind: a key of `KINDS`.
    """
    package = importlib.import_module(KINDS[kind][0])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(kind: str, name: str) -> Callable:
    """The `build` (data set: `load`) function of the part called `name`.

    Raises:
        UserError: no such part; the message lists the choices.
    """
    choices = names(kind)
    if name not in choices:
        raise UserError(f"unknown {kind} {name!r}: choose from {', '.join(choices)}")
    package, function = KINDS[kind]
    return getattr(importlib.import_module(f"{package}.{name}"), function)


def call(build: Callable, offered: Mapping[str, Any]) -> Any:
    """`build`, given those of the offered arguments that its signature names.

    So scripts can build a method that they have never seen.

    Raises:
        UserError: it requires an argument that is not offered; the message lists those that are.
    """
    parameters = inspect.signature(build).parameters
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in offered]
    if missing:
        raise UserError(
            f"{build.__module__}.build wants {', '.join(missing)}; offered are {', '.join(sorted(offered))}"
        )
    return build(**{n: offered[n] for n in parameters if n in offered})
