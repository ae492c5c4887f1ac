"""Parts by name: a network, prior, likelihood, family, method or data set is one file of its package.

Adding `bnn_jax/nets/mine.py` with a `build` (a data set: `load`) makes `--net mine` work; there is
no list to edit. Files that begin with an underscore are not parts. A name may set arguments of its part:
`--net "mlp(hidden=(100, 100))"`, `--prior "isotropic(std=0.5)"`.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
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
    """The `build` (data set: `load`) function of the part called `name`, with the arguments that the name
    sets: `name` or `name(argument=value, ...)`, values being Python literals.

    Raises:
        UserError: no such part, or it has no such arguments; the message lists the choices.
    """
    own, arguments = _parsed(kind, name)
    choices = names(kind)
    if own not in choices:
        raise UserError(f"unknown {kind} {own!r}: choose from {', '.join(choices)}")
    package, function = KINDS[kind]
    build = getattr(importlib.import_module(f"{package}.{own}"), function)
    known = [n for n, p in inspect.signature(build).parameters.items() if p.default is not p.empty]
    if unknown := ", ".join(sorted(set(arguments) - set(known))):
        raise UserError(f"{kind} {own} has no argument {unknown}: choose from {', '.join(known) or 'none'}")
    return functools.partial(_told(build, name), **arguments) if arguments else build


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """A context in which what a part's arguments break is the user's mistake; without any it is a bug."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, ZeroDivisionError) as error:
        if "(" not in name:
            raise
        raise UserError(f"cannot build {name}: {str(error).splitlines()[0]}") from error


def plain(name: str) -> str:
    """A part's name without the arguments that it sets."""
    return name.partition("(")[0].strip()


def call(build: Callable, offered: Mapping[str, Any]) -> Any:
    """`build`, given those of the offered arguments that its signature names and that are not set yet.

    So scripts can build a method that they have never seen.

    Raises:
        UserError: it requires an argument that is not offered; the message lists those that are.
    """
    given = build.keywords if isinstance(build, functools.partial) else {}
    parameters = {n: p for n, p in inspect.signature(build).parameters.items() if n not in given}
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in offered]
    if missing:
        raise UserError(
            f"{build.__module__}.build wants {', '.join(missing)}; offered are {', '.join(sorted(offered))}"
        )
    return build(**{n: offered[n] for n in parameters if n in offered})


def _told(build, name):
    @functools.wraps(build)
    def function(*args, **kwargs):
        with told(name):
            return build(*args, **kwargs)

    return function


def _parsed(kind, text):
    """The name, and the arguments that follow it."""
    if "(" not in text:
        return text, {}
    try:
        call = ast.parse(text.strip(), mode="eval").body
        plain = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        if plain and all(keyword.arg for keyword in call.keywords):  # no **
            return call.func.id, {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        pass
    raise UserError(
        f"cannot read the {kind} {text!r}: write name(argument=value, ...), where a value is a number, a "
        "word in quotes, a tuple of these, True, False or None"
    )
