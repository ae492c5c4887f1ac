r"""Draws of a network's weights with their hidden units in the order, and with the signs, of a reference.

    w* = argmax_g <w_ref, g w>,    g: permutations of the units of every hidden layer and flips of their signs

Without this two draws of the same function may lie far apart, and the moments of a weight mix several units.
Permuting the units of a hidden layer permutes the outputs of its kernel, its bias and the norm behind it, and
the inputs of the next kernel. Whether that leaves the function as it is, and which flips of signs do, is
tried on the network itself, at random weights in double precision. So flips are used for odd activations
(tanh) and for a kernel together with the scale of its filter response norm, but not for swish or ReLU; a
network with skip connections is refused.

The maximum over all layers at once is out of reach. Layer after layer takes the best assignment of units
given the others, until none improves: the weight matching of Ainsworth et al., arXiv:2209.04836. It ends in a
local maximum, the better one from two starts: the layers matched from the inputs upwards, each by what lies
before its units, and from the outputs downwards, each by what lies behind. Neither looks at where the units
stand, so the result is the same for all permuted copies of a draw, and a copy of the reference becomes the
reference. Continuous symmetries (ReLU: a unit's inputs times a, its outputs over a) stay as they are.

Everything but `symmetries` runs on NumPy arrays, after sampling. C chains, D draws.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from bnn_jax import ops
from bnn_jax.trees import fan_in, leaf_names
from bnn_jax.types import Params, UserError

TOLERANCE = 1e-5  # of the largest output; what breaks a symmetry changes far more, rounding far less
TRIALS, INPUTS = 3, 4  # random weights, and random inputs at each: a unit may be dead at some
LEAST_GAIN = 1e-9  # relative: what rounding alone may gain, so that the ascent ends


class Layer(NamedTuple):
    """A hidden layer and its symmetries."""

    name: str
    units: int
    # Of every leaf that its units touch the number and the size of the axes behind the units': the leaf is
    # (..., units, behind). The layer's own kernel comes first, the next layer's last.
    touched: tuple[tuple[int, int], ...]
    signs: np.ndarray  # (k, touched) of +-1: which leaves may change their sign together; the first is all +1


class Symmetry(NamedTuple):
    """What may be permuted and flipped in a network without a change of its function."""

    layers: tuple[Layer, ...]
    like: Params  # shapes and dtypes of one draw


def symmetries(module: nn.Module, x_shape: Sequence[int]) -> Symmetry:
    """The symmetries of a network whose `nn.Dense` and `nn.Conv` layers follow one another.

    Args:
        module: any linen module with a `params` collection only.
        x_shape: of one input.

    Returns:
        The hidden layers, all but the last, in the order of their calls.

    Raises:
        UserError: permuting the units of a hidden layer changes the function (skip connections, layers side
            by side, norms over groups of channels), or the network has other weights than these layers'.
    """
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *x_shape)))
    if set(variables) != {"params"}:
        raise UserError(f"only networks with weights alone can be aligned, this one has {sorted(variables)}")
    like, linear = variables["params"], ops.layers(module, x_shape)
    names, leaves = leaf_names(like), jax.tree.leaves(like)
    kernels = {"/".join((*path, "kernel")) for path in linear}
    for name, leaf in zip(names, leaves, strict=True):
        if leaf.ndim > 1 and name not in kernels:
            raise UserError(f"{name} {leaf.shape} belongs to no Dense or Conv layer: units cannot be aligned")
    behind = _called_behind(module, x_shape, linear)
    number = {name: i for i, name in enumerate(names)}
    hidden = []
    for path, following in itertools.pairwise(linear):
        own, outgoing = number["/".join((*path, "kernel"))], number["/".join((*following, "kernel"))]
        units = leaves[own].shape[-1]
        if leaves[outgoing].shape[-2] % units:
            raise _refusal("/".join(path), units)
        vectors = _vectors(names, leaves, path, units)
        norms = [i for other in behind[path] for i in _vectors(names, leaves, other, units)]
        touched = (*((i, 1) for i in (own, *vectors, *norms)), (outgoing, leaves[outgoing].shape[-1]))
        patterns = _patterns(1 + len(vectors), len(touched))
        hidden.append(Layer("/".join(path), units, touched, patterns))
    differs = _trial(module, x_shape, like)
    for layer in hidden:
        if any(differs(layer, order) for order in _generators(layer.units)):
            raise _refusal(layer.name, layer.units)
    hidden = [layer._replace(signs=_allowed(layer, differs)) for layer in hidden]
    return Symmetry(tuple(hidden), like)


def align(symmetry: Symmetry, draws: Params, reference: Params) -> Params:
    """Every draw with its units permuted and flipped to match a reference; no function changes.

    All weights count alike. In a network whose layers' weights differ much in size, hand draws and reference
    in prior widths, and multiply back.

    Args:
        draws: leaves (C, D, ...).
        reference: one set of weights, leaves (...): a draw, or the mean of `procrustes_mean`.

    Returns:
        Leaves (C, D, ...), NumPy, of the dtypes of `draws`.

    Raises:
        UserError: draws or reference of another network, or not finite.
    """
    leaves, target = _check(symmetry, draws, 2, "draws"), _check(symmetry, reference, 0, "the reference")
    target = [a.astype(np.float64) for a in target]
    aligned = [np.empty_like(a) for a in leaves]
    for place in np.ndindex(leaves[0].shape[:2]):
        matched = _matched(symmetry.layers, target, [a[place].astype(np.float64) for a in leaves])
        for result, a in zip(aligned, matched, strict=True):
            result[place] = a
    return jax.tree.unflatten(jax.tree.structure(symmetry.like), aligned)


def procrustes_mean(symmetry: Symmetry, draws: Params, rounds: int = 10) -> tuple[Params, Params]:
    """A reference that no single draw decides: the mean of the draws aligned to their own mean.

    Generalised Procrustes analysis (Gower 1975, doi:10.1007/BF02291478): all draws are aligned to the first,
    then to the mean of the aligned, until no unit changes its place or `rounds` are over.

    Args:
        draws: leaves (C, D, ...), of HMC say.
        rounds: at most so many alignments after the first.

    Returns:
        The mean, leaves (...), and the draws aligned to it, leaves (C, D, ...).

    Raises:
        UserError: as `align`.
    """
    _check(symmetry, draws, 2, "draws")
    reference = jax.tree.map(lambda a: np.asarray(a)[0, 0], draws)
    aligned = align(symmetry, draws, reference)
    for _ in range(rounds):
        reference = jax.tree.map(lambda a: a.mean(axis=(0, 1), dtype=np.float64).astype(a.dtype), aligned)
        before, aligned = aligned, align(symmetry, draws, reference)
        if jax.tree.all(jax.tree.map(np.array_equal, before, aligned)):
            break
    return reference, aligned


def _refusal(layer, units):
    return UserError(
        f"permuting the {units} units of layer '{layer}' changes the network's function: only networks whose "
        "Dense and Conv layers follow one another can be aligned"
    )


def _called_behind(module, x_shape, linear):
    """Path of a linear layer -> paths of the modules called behind it and before the next, norms say."""
    called = []

    def note(next_fun, args, kwargs, context):
        called.append(tuple(context.module.path))
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *x_shape)))
    behind, current = {path: [] for path in linear}, None
    for path in dict.fromkeys(called):
        if path in behind:
            current = path
        elif current is not None:
            behind[current].append(path)
    return behind


def _vectors(names, leaves, path, units):
    """Numbers of a module's own leaves of shape (units,)."""
    own = [i for i, name in enumerate(names) if name.split("/")[:-1] == list(path)]
    return [i for i in own if leaves[i].shape == (units,)]


def _generators(units):
    """A cycle and a swap of neighbours: every permutation is a product of these two."""
    swap = np.arange(units)
    swap[:2] = swap[:2][::-1]
    return np.roll(np.arange(units), 1), swap


def _trial(module, x_shape, like):
    """(layer, order, signs) -> whether the outputs at random weights differ when its units are moved."""
    apply, rng = jax.jit(ops.apply_fn(module)), np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(like)
    cases = []
    for _ in range(TRIALS):  # kernels keep the activations' size (arXiv:1502.01852), no vector is special
        scales = [math.sqrt(2 / fan_in(a)) if a.ndim > 1 else 0.5 for a in leaves]
        weights = [s * rng.standard_normal(a.shape) for s, a in zip(scales, leaves, strict=True)]
        cases.append((weights, rng.standard_normal((INPUTS, *x_shape))))

    def outputs(weights, x):
        with jax.enable_x64(True):
            return np.asarray(apply(jax.tree.unflatten(structure, list(map(jnp.asarray, weights))), x))

    before = [outputs(*case) for case in cases]

    def differs(layer, order, signs=None):
        for (weights, x), old in zip(cases, before, strict=True):
            new = outputs(_moved(layer, weights, order, signs), x)
            if not np.abs(new - old).max() <= TOLERANCE * np.abs(old).max():  # also if one is nan
                return True
        return False

    return differs


def _patterns(num_own, num_touched):
    """All patterns of signs, the first all +1. The layer's own leaves, its kernel and bias, which come first,
    change together: they flip what it computes."""
    rest = itertools.product([1.0, -1.0], repeat=1 + num_touched - num_own)
    return np.array([[own] * num_own + others for own, *others in rest])


def _allowed(layer, differs):
    """Those of a layer's patterns of signs that leave the function as it is, (k, touched)."""
    flipped = np.random.default_rng(1).random(layer.units) < 0.5
    flipped[:2] = [True, False][: layer.units]  # not all at once, which a norm may allow
    kept = [
        p.min() > 0 or not differs(layer, slice(None), np.where(flipped, p[:, None], 1)) for p in layer.signs
    ]
    return layer.signs[kept]


def _moved(layer, leaves, order, signs=None):
    """Leaves whose unit u is unit order[u] of these, times signs (touched, units)."""
    leaves = list(leaves)
    for t, (i, behind) in enumerate(layer.touched):
        parts = leaves[i].reshape(-1, layer.units, behind)[:, order]
        leaves[i] = (parts if signs is None else parts * signs[t][:, None]).reshape(leaves[i].shape)
    return leaves


def _match(layer, target, leaves, used=slice(None)):
    """The assignment of units that gains most, of all that they touch or of the leaves `used`.

    Returns:
        order (units,), signs (touched, units), and whether this beats the units as they stand.
    """

    def rows(leaf, behind):
        return np.moveaxis(leaf.reshape(-1, layer.units, behind), 1, 0).reshape(layer.units, -1)

    gains = [rows(target[i], behind) @ rows(leaves[i], behind).T for i, behind in layer.touched[used]]
    scores = np.tensordot(layer.signs[:, used], np.stack(gains), 1)  # (k, units, units)
    pattern, best = scores.argmax(axis=0), scores.max(axis=0)
    units, order = linear_sum_assignment(best, maximize=True)
    chosen = best[units, order]
    better = chosen.sum() - np.trace(scores[0]) > LEAST_GAIN * np.abs(chosen).sum()
    return order, layer.signs[pattern[units, order]].T, better


def _matched(layers, target, leaves):
    """The leaves of one draw, moved: the better of the ascents from the inputs and from the outputs."""
    best, largest = leaves, -math.inf
    for start, used in ((layers, slice(None, -1)), (layers[::-1], slice(1, None))):
        found = leaves
        for layer in start:
            order, signs, _ = _match(layer, target, found, used)
            found = _moved(layer, found, order, signs)
        found = _ascend(layers, target, found)
        product = sum(float(np.vdot(a, b)) for a, b in zip(target, found, strict=True))
        if product > largest:
            best, largest = found, product
    return best


def _ascend(layers, target, leaves):
    improved = True
    while improved:
        improved = False
        for layer in layers:
            order, signs, better = _match(layer, target, leaves)
            if better:
                leaves, improved = _moved(layer, leaves, order, signs), True
    return leaves


def _check(symmetry, tree, num_axes, what):
    """The leaves as arrays, checked against the network."""
    if jax.tree.structure(tree) != jax.tree.structure(symmetry.like):
        raise UserError(f"{what}: weights of another network, {', '.join(leaf_names(tree))}"[:200])
    leaves = [np.asarray(a) for a in jax.tree.leaves(tree)]
    lead = leaves[0].shape[:num_axes]
    for name, a, like in zip(leaf_names(tree), leaves, jax.tree.leaves(symmetry.like), strict=True):
        if a.shape != (*lead, *like.shape) or len(lead) != num_axes:
            axes = "(C, D, ...)" if num_axes else "(...)"
            raise UserError(f"{what}: {name} is {a.shape}, but the network needs {axes} of {like.shape}")
        if not np.isfinite(a).all():
            raise UserError(f"{what}: {name} is not finite; leave out chains whose status is not ok")
    return leaves
