"""How examples are divided into the parts train, val and test.

    n_kp = floor or ceil of N_k r_p,    sum_p n_kp = N_k,    sum_k n_kp = N r_p by largest remainder

Class k has N_k of N examples and part p the share r_p of the ratios: the table of class counts is rounded
as a whole ("controlled rounding", doi:10.1287/mnsc.12.9.732), which for three parts always has a solution, so
part sizes are exact and every class is within 1 of its share. A class with less than one example due in train
or test takes one from the largest class there. Which examples those are is uniformly random.

Examples of one group (a patient) and exact copies are one component, which is never torn apart. Components
of several examples are placed first, the largest first, each where the relative squared distance to N_k r_p
grows least; single examples fill up by the rounding above. This is greedy: shares are then close, not exact.
"""

import hashlib
import re
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from bnn_jax.types import UserError

PARTS = ("train", "val", "test")
MODES = ("given", "given_test", "random")
_NEEDED = ("train", "test")  # parts that must hold every class


def divide(
    labels,
    *,
    mode: str,
    given: Sequence[str] | None = None,
    ratios: Sequence[float] = (8, 1, 1),
    stratify: bool = True,
    groups: Sequence[Hashable] | None = None,
    duplicates: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The part of every example: (N,) of "train", "val" or "test".

    Of parts drawn anew, those of ratio 0 stay empty. Parts that are kept as given are left alone, whatever
    groups or copies they share with others: `inspection` counts those.

    Args:
        labels: (N,) integers, or any numbers with `stratify=False`; integers are taken as classes.
        mode: "given" keeps the given parts and draws from train only those of val and test that are missing;
            "given_test" keeps test and draws train and val from all others; "random" draws all. The ratios
            of the parts drawn hold among the examples they are drawn from.
        given: (N,) part names that the data came with; "random" ignores them.
        ratios: of train, val and test, on any scale.
        stratify: keep the class shares in every drawn part.
        groups: (N,) ids, as of patients; no group lies in two drawn parts.
        duplicates: (N,) content hashes; no two copies lie in two drawn parts.
        seed: of the draw; the same arguments give the same parts.

    Raises:
        UserError: an unknown mode, unusable ratios or given parts, lengths that differ, too few examples for
            the parts, or a class with no example in train or in a test part that has any.
    """
    labels = _labels(labels, stratify)
    if mode not in MODES:
        raise UserError(f"no split mode {mode!r}: choose one of {', '.join(MODES)}")
    if seed < 0:
        raise UserError(f"the seed of the split must not be negative, got {seed}")
    ratios = _ratios(ratios)
    for name, ids in (("given", given), ("groups", groups), ("duplicates", duplicates)):
        if ids is not None and len(ids) != len(labels):
            raise UserError(f"{name} has {len(ids)} entries for {len(labels)} labels: give one an example")
    part = np.full(len(labels), "train", "<U5") if mode == "random" else _given(given, mode)
    if mode == "given":
        pool, wanted = part == "train", [p for p in PARTS if p == "train" or p not in part]
    elif mode == "given_test":
        pool, wanted = part != "test", ["train", "val"]
    else:
        pool, wanted = np.full(len(part), True), PARTS
    drawn = [p for p in wanted if ratios[p] > 0]
    index = np.flatnonzero(pool)
    component = _components(len(index), _at(groups, index), _at(duplicates, index))
    codes = np.unique(labels[index], return_inverse=True)[1] if stratify else np.zeros(len(index), int)
    part[index] = _draw(np.random.default_rng(seed), codes, component, {p: ratios[p] for p in drawn})
    _check_classes(labels, part)
    return part


def group_ids(names: Iterable[str], pattern: str) -> np.ndarray:
    """The id that a regular expression finds in every name: (N,) of str, as of the patient in a file name.

    Args:
        names: file names.
        pattern: searched anywhere in the name; its first group is the id, or the whole match without one.

    Raises:
        UserError: an invalid pattern, or a name in which it finds nothing.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"the group pattern {pattern!r} is no regular expression: {error}") from None
    found = []
    for name in names:
        match = compiled.search(str(name))
        found.append(match.group(min(compiled.groups, 1)) if match else None)
        if not found[-1]:
            raise UserError(f"the group pattern {pattern!r} finds no id in the name {str(name)!r}: widen it")
    return np.array(found, dtype=str)


def content_hash(x) -> np.ndarray:
    """A hash of every example's dtype, shape and bytes, equal for exact copies only: (N,) of 16 hex digits.

    x (N, ...), or a list of arrays of any shapes. The first 64 bits of SHA-256: among a million examples two
    different ones collide with probability 3e-8.
    """
    return np.array([_digest(np.asarray(example)) for example in x], dtype="<U16")


def _digest(example):
    head = f"{example.dtype.str}{example.shape}".encode()
    return hashlib.sha256(head + example.tobytes()).hexdigest()[:16]


def _labels(labels, stratify):
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise UserError(f"a split needs one label an example, shape (N,), got shape {labels.shape}")
    if stratify and not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"only integer labels can be stratified, not {labels.dtype}: set stratify to False")
    return labels


def _ratios(ratios):
    try:
        values = np.array(ratios, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array([])
    if values.shape != (3,) or not np.isfinite(values).all() or (values < 0).any() or values[0] == 0:
        raise UserError(f"ratios need three numbers for train, val, test, train > 0, none < 0; got {ratios}")
    return dict(zip(PARTS, values.tolist(), strict=True))


def _given(given, mode):
    if given is None:
        raise UserError(f"split mode {mode!r} needs data that come with parts; use mode 'random'")
    part = np.array(given, dtype=str)
    unknown = sorted(set(part.tolist()) - set(PARTS))
    if unknown:
        raise UserError(f"the given split has the part {unknown[0]!r}: only {', '.join(PARTS)} are known")
    missing = "test" if mode == "given_test" else "train"
    if missing not in part:
        raise UserError(f"split mode {mode!r}: the given split has no {missing} part; use mode 'random'")
    return part.astype("<U5")


def _at(ids, index):
    if ids is None:
        return None
    ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
    return [ids[i] for i in index]


def _components(num_examples, *relations):
    """(n,) the connected component of every example, under all relations together; None is no relation."""
    from scipy.sparse import coo_array  # as below
    from scipy.sparse.csgraph import connected_components

    nodes, size = [np.zeros((2, 0), int)], num_examples
    for ids in filter(None, relations):  # an example is joined to a node of its id
        seen = {}
        codes = [seen.setdefault(i, len(seen)) for i in ids]
        nodes.append(np.stack([np.arange(num_examples), size + np.array(codes)]))
        size += len(seen)
    edges = np.concatenate(nodes, axis=1)
    graph = coo_array((np.ones(edges.shape[1]), tuple(edges)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:num_examples]


def _draw(random, codes, component, ratios):
    """(n,) part names, given class codes (n,), components (n,) and the ratio of every part to draw."""
    names = list(ratios)
    share = np.array(list(ratios.values()))
    ideal = np.bincount(codes)[:, None] * share / share.sum()  # (K, parts)
    needed = np.array([name in _NEEDED for name in names])
    size = np.bincount(component)
    alone = size[component] == 1

    placed = _place(random, codes, component, size, ideal, needed)
    have = np.zeros_like(ideal)
    np.add.at(have, (codes[~alone], placed[~alone]), 1)
    single = np.bincount(codes[alone], minlength=len(ideal))
    room = np.maximum(ideal - have, 0)
    room *= (single / np.maximum(room.sum(axis=1), 1))[:, None]  # a class without singles has no row sum
    for code, counts in enumerate(_round(room, needed & (have == 0))):
        order = random.permutation(np.flatnonzero(alone & (codes == code)))
        placed[order] = np.repeat(np.arange(len(names)), counts)

    empty = [name for name, n in zip(names, np.bincount(placed, minlength=len(names)), strict=True) if n == 0]
    if empty:
        joined = f" in {len(size)} groups" if len(size) < len(codes) else ""
        raise UserError(
            f"{len(codes)} examples{joined} are too few for {', '.join(names)} as "
            f"{':'.join(f'{r:g}' for r in share)}: {empty[0]} is empty; add examples or set its ratio to 0"
        )
    return np.array(names)[placed]


def _place(random, codes, component, size, ideal, needed):
    """(n,) the part of every example of a component of several; 0 for the others.

    A component goes where sum_k (n_kp - ideal_kp)^2 / ideal_kp grows least; the last ones of a class go to
    `needed` parts that have none of it yet.
    """
    several = random.permutation(np.flatnonzero(size > 1))
    several = several[np.argsort(-size[several], kind="stable")]
    row = np.full(len(size), len(several))
    row[several] = np.arange(len(several))
    table = np.zeros((len(several) + 1, len(ideal)))  # component by class; singles share the last row
    np.add.at(table, (row[component], codes), 1)
    left = (table[:-1] > 0).sum(axis=0) + table[-1]  # components of each class still to be placed
    have, home = np.zeros_like(ideal), np.zeros(len(several) + 1, int)
    for i, counts in enumerate(table[:-1, :, None]):
        cost = (counts * (counts + 2 * (have - ideal)) / ideal).sum(axis=0)
        lacking = (have == 0) & needed
        urgent = (counts[:, 0] > 0) & (left <= lacking.sum(axis=1))
        forced = lacking[urgent].any(axis=0)
        home[i] = np.argmin(np.where(forced, cost, np.inf) if forced.any() else cost)
        have[:, home[i]] += counts[:, 0]
        left -= counts[:, 0] > 0
    return home[row[component]]


def _round(ideal, wanted):
    """`ideal` (K, parts), of whole row sums, with every entry and column sum rounded up or down, as integers.

    Column sums go by largest remainder; entries that round up are first `wanted` ones that would be 0, then
    those of large remainder. A `wanted` entry still 0 takes one from the largest of its column, which may
    leave that one more than 1 off.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # SciPy takes a second, and few runs divide
    from scipy.sparse import eye_array, kron

    ideal = ideal.round(9)  # 2.9999999999 is 3
    floor, total = np.floor(ideal), ideal.sum(axis=0).round(9)
    sums = np.floor(total)
    missing = int(np.rint(ideal.sum())) - int(sums.sum())
    sums[np.argsort(sums - total, kind="stable")[:missing]] += 1
    rows, columns = ideal.shape
    by_row = kron(eye_array(rows), np.ones((1, columns)))
    by_column = kron(np.ones((1, rows)), eye_array(columns))
    row_sums = np.rint(ideal.sum(axis=1))
    found = milp(
        -(ideal - floor + 10 * (wanted & (floor == 0))).ravel(),
        integrality=np.ones(ideal.size),
        bounds=Bounds(floor.ravel(), np.ceil(ideal).ravel()),
        constraints=[LinearConstraint(by_row, row_sums, row_sums), LinearConstraint(by_column, sums, sums)],
    )
    if found.x is None:  # three parts at most: cannot happen
        raise RuntimeError(f"no rounding of the class counts: {found.message}")
    counts = np.rint(found.x).astype(int).reshape(ideal.shape)
    for k, p in zip(*np.nonzero(wanted & (counts == 0)), strict=True):  # where the bounds left no choice
        donor, largest = counts[k].argmax(), counts[:, p].argmax()
        if counts[k, donor] > 1 and counts[largest, p] > 1:
            counts[[k, largest], [p, donor]] += 1
            counts[[k, largest], [donor, p]] -= 1
    return counts


def _check_classes(labels, part):
    if not np.issubdtype(labels.dtype, np.integer):
        return
    for name in _NEEDED:
        absent = np.setdiff1d(labels, labels[part == name])
        if name in part and len(absent):
            total = np.sum(labels == absent[0])
            raise UserError(
                f"class {absent[0]} has no example in the {name} part ({total} in all): "
                "add examples, leave the class out, or choose another split mode, ratios or seed"
            )
