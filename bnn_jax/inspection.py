"""What to know of the data before anything is trained: counts, copies, conflicts, shared groups, constants.

Copies are found by `splits.content_hash`: examples of equal type, shape and bytes. Two photographs of one
scene, or one image saved twice with loss, are not copies in this sense.

Everything is returned as plain data that JSON takes, and `warnings` turns it into sentences.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from bnn_jax.splits import PARTS, content_hash
from bnn_jax.types import UserError

NUM_SHOWN = 10  # ids listed of each finding
IMBALANCE = 3  # a class with more than so many times the examples of another is worth a word
_SHORT = 3  # ids named in a sentence


def summarise(
    x,
    y,
    part: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    class_names: Sequence[str] = (),
    groups: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """The data in numbers.

    Args:
        x: (N, ...) inputs, in any unit.
        y: (N,) integers are class labels, floats are targets of a regression.
        part: (N,) names as `splits.divide` gives them.
        ids: (N,) names of the examples, as of files; without, they are counted from 0.
        class_names: of the classes 0, 1, ...; classes beyond them have their number as name.
        groups: (N,) ids, as of patients.

    Returns:
        num_examples, task ("classification" or "regression"), input_shape (of one example);
        value_range: lowest and highest finite input, and not_finite: examples with NaN or infinite inputs;
        class_names: [] for a regression;
        parts: for each part `count` and `classes` (counts) or `target` (mean, std, min, max; None if empty);
        constant_columns: of (N, F) inputs, the indices of those with one value in train;
        duplicates: `within` each part (`sets` of equal examples, `copies` beyond the first of each set),
            `across` the pairs "train/val" ... that share any (`sets`, `examples` of the second part that the
            first one has too, their `ids`), `conflicting` (`sets` of equal inputs with different y,
            `examples` in them, their `ids`);
        groups: None, or their `count` and which are shared `across` pairs of parts (`groups`, their `ids`).
        Of ids at most `NUM_SHOWN` are listed each time.

    Raises:
        UserError: no examples, lengths that differ, an unknown part, y that are not one finite number an
            example, negative labels.
    """
    x, y, part = np.asarray(x), np.asarray(y), np.asarray(part, dtype=str)
    lengths = {"x": x, "y": y, "part": part, "ids": ids, "groups": groups}
    found = {name: len(value) for name, value in lengths.items() if value is not None}
    if x.size == 0 or len(set(found.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in found.items())
        raise UserError(f"a report on data needs as many of each and at least one example, got {told}")
    unknown = sorted(set(part.tolist()) - set(PARTS))
    if unknown:
        raise UserError(f"unknown part {unknown[0]!r}: only {', '.join(PARTS)} are known")
    ids = [str(i) for i in (range(len(x)) if ids is None else ids)]
    is_class = np.issubdtype(y.dtype, np.integer)
    if y.ndim != 1 or y.dtype.kind not in "iuf" or not np.isfinite(y).all() or (is_class and y.min() < 0):
        raise UserError(
            "y needs one finite number an example, class labels none below 0: correct or drop them"
        )
    names = [str(name) for name in class_names] if is_class else []
    names += [str(k) for k in range(len(names), int(y.max()) + 1)] if is_class else []
    members = {p: np.flatnonzero(part == p) for p in PARTS}
    low, high, not_finite = _range(x)
    return {
        "num_examples": len(x),
        "task": "classification" if is_class else "regression",
        "input_shape": list(x.shape[1:]),
        "value_range": [low, high],
        "not_finite": not_finite,
        "class_names": names,
        "parts": {
            p: {"count": len(i)}
            | ({"classes": np.bincount(y[i], minlength=len(names)).tolist()} if is_class else _target(y[i]))
            for p, i in members.items()
        },
        "constant_columns": _constant(x, members["train"]),
        "duplicates": _duplicates(content_hash(x), y, members, ids),
        "groups": None if groups is None else _groups(groups, members),
    }


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """One plain sentence for each thing in `summarise`'s answer that a user must know; [] if there is none.

    Told are copies and groups in several parts, copies of one input with different labels, classes missing
    from a part, classes of train more than `IMBALANCE` times as large as another, constant columns and values
    that are not finite. Equal inputs with different targets are ordinary noise in a regression and not told.
    """
    told = [*_shared(summary), *_values(summary)]
    return told + list(_classes(summary)) if summary["task"] == "classification" else told


def _range(x):
    low, high = x.min(), x.max()
    if np.isfinite(low) and np.isfinite(high):  # also says that there is no NaN
        return low.item(), high.item(), 0
    finite = np.isfinite(x)
    values = x[finite]
    ends = (values.min().item(), values.max().item()) if len(values) else (None, None)
    return *ends, int((~finite.reshape(len(x), -1).all(axis=1)).sum())


def _target(y):
    functions = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
    return {"target": {name: float(f(y)) for name, f in functions.items()} if len(y) else None}


def _constant(x, train):
    if x.ndim != 2 or len(train) == 0:
        return []
    return np.flatnonzero((x[train] == x[train[0]]).all(axis=0)).tolist()


def _codes(values):
    """(N,) the same number for equal values, counted in order of appearance, and the values."""
    seen = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values]), list(seen)


def _counts(codes, num_codes, members):
    """(num_codes, parts) how often each occurs in each part."""
    return np.stack([np.bincount(codes[i], minlength=num_codes) for i in members.values()], axis=1)


def _pairs(counts):
    """(name of two parts, index of the second, which codes occur in both) of every pair that shares any."""
    for (i, first), (j, second) in combinations(enumerate(PARTS), 2):
        both = (counts[:, i] > 0) & (counts[:, j] > 0)
        if both.any():
            yield f"{first}/{second}", second, both


def _duplicates(hashes, y, members, ids):
    codes, values = _codes(hashes.tolist())
    counts = _counts(codes, len(values), members)
    several = counts > 1
    across = {}
    for name, second, both in _pairs(counts):
        shared = [i for i in members[second] if both[codes[i]]]
        shown = [ids[i] for i in shared[:NUM_SHOWN]]
        across[name] = {"sets": int(both.sum()), "examples": len(shared), "ids": shown}
    order = np.lexsort((y, codes))
    differs = (np.diff(codes[order]) == 0) & (np.diff(y[order]) != 0)
    conflict = np.isin(codes, codes[order][1:][differs])
    listed = sorted(np.flatnonzero(conflict), key=lambda i: codes[i])  # equal ones side by side
    return {
        "within": {
            p: {"sets": int(several[:, j].sum()), "copies": int((counts - 1)[several[:, j], j].sum())}
            for j, p in enumerate(members)
        },
        "across": across,
        "conflicting": {
            "sets": len(np.unique(codes[conflict])),
            "examples": len(listed),
            "ids": [ids[i] for i in listed[:NUM_SHOWN]],
        },
    }


def _groups(groups, members):
    codes, values = _codes(groups.tolist() if isinstance(groups, np.ndarray) else groups)
    across = {}
    for name, _, both in _pairs(_counts(codes, len(values), members)):
        shared = [str(values[i]) for i in np.flatnonzero(both)]
        across[name] = {"groups": len(shared), "ids": shared[:NUM_SHOWN]}
    return {"count": len(values), "across": across}


def _shared(summary):
    for pair, found in summary["duplicates"]["across"].items():
        first, second = pair.split("/")
        total = summary["parts"][second]["count"]
        yield (
            f"{second} shares {found['examples']:,} of its {total:,} examples with {first}, as exact copies "
            f"({_listed(found['ids'], found['examples'])}): scores on {second} come out too good; "
            "divide again with copies kept together."
        )
    for pair, found in (summary["groups"] or {"across": {}})["across"].items():
        first, second = pair.split("/")
        number = "1 group" if found["groups"] == 1 else f"{found['groups']:,} groups"
        listed = _listed(found["ids"], found["groups"])
        yield (
            f"{first} and {second} share {number}, such as patients ({listed}): scores on {second} come out "
            "too good; divide again by group."
        )


def _values(summary):
    bad, total, constant = summary["not_finite"], summary["num_examples"], summary["constant_columns"]
    if bad:
        yield f"{bad:,} of {total:,} examples hold NaN or infinite values: clean or drop them."
    if constant:
        yield (
            f"{len(constant)} of {summary['input_shape'][0]} input columns have one value in all of train "
            f"(counted from 0: {_listed(constant, len(constant))}): nothing can be learned "
            "from them; leave them out."
        )


def _classes(summary):
    conflicting = summary["duplicates"]["conflicting"]
    if conflicting["sets"]:
        listed = _listed(conflicting["ids"], conflicting["examples"])
        yield (
            f"{conflicting['examples']:,} examples have an exact copy with a different label ({listed}): "
            "correct or drop them."
        )
    names = [f"class {k}" + f" ({name})" * (name != str(k)) for k, name in enumerate(summary["class_names"])]
    for part, found in summary["parts"].items():
        missing = [name for name, n in zip(names, found["classes"], strict=True) if n == 0]
        if found["count"] and missing:
            yield f"{part} has no example of {_listed(missing, len(missing))}."
    counts = summary["parts"]["train"]["classes"]
    present = [k for k, n in enumerate(counts) if n]
    if not present:
        return
    small, large = min(present, key=counts.__getitem__), max(present, key=counts.__getitem__)
    if counts[large] > IMBALANCE * counts[small]:
        ratio = counts[large] / counts[small]
        yield (
            f"train is imbalanced, 1:{ratio:.1f}: {counts[small]:,} of {names[small]} against "
            f"{counts[large]:,} of {names[large]}; accuracy alone misleads."
        )


def _listed(ids, total):
    shown = ", ".join(map(str, ids[:_SHORT]))
    return f"{shown}, ..." if total > _SHORT else shown
