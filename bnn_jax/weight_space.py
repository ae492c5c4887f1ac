r"""How far apart two sets of draws are in weight space.

    W2_p^2  = int_0^1 (F^-1(u) - G^-1(u))^2 du                    of one weight p: quantiles are matched
    SW2^2   = E_theta W2^2(theta x, theta y),  |theta| = 1         sliced: of random directions
    MMD^2   = E k(x, x') + E k(y, y') - 2 E k(x, y),  k(x, y) = exp(-|x - y|^2 / 2 h^2)

The Wasserstein distances are exact for the draws at hand, also for different numbers of draws, and so biased
upwards: two finite sets of draws from one distribution differ. MMD^2 is the unbiased estimate over pairs of
different draws (Gretton et al. 2012, jmlr.org/papers/v13/gretton12a.html): it is around 0, and may be
negative, for independent draws of one distribution; draws of a chain are correlated, which pushes it up.
Sliced W2: arXiv:1902.00434; its expectation is replaced by a mean over random directions.

Draws of units that were permuted say nothing here: align them first (`alignment`). Distances are in the
units of the weights; hand draws divided by the prior's widths (`Prior.scale`) to have them in these. `floor`
gives the same measure between single chains of HMC, what a perfect method would reach.

Everything runs on NumPy arrays, after sampling. C chains, D draws, P weights. Leaves (D, ...) are those of
all chains in one row, as `draws.pool` makes them; an array (D, P) is a tree of one leaf.
"""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import jax
import numpy as np

from bnn_jax import diagnostics, distances
from bnn_jax.trees import leaf_names
from bnn_jax.types import Params, UserError

BLOCK_VALUES = 2**21  # values held in float64 at a time
MAX_RHAT, MIN_ESS = 1.05, 100  # a weight mixes within these: rank-normalised split R-hat, bulk ESS in draws


def weight_moments(draws) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every weight, draws (D, P) -> two (P,): the square root of the unbiased
    variance, 0 of one draw."""
    draws = np.asarray(draws)
    if draws.ndim != 2 or draws.size == 0:
        raise UserError(f"draws need shape (D, P) and no empty axis, got {draws.shape}")
    return draws.mean(axis=0, dtype=np.float64), draws.std(
        axis=0, dtype=np.float64, ddof=min(1, len(draws) - 1)
    )


def std_ratio(draws, reference) -> np.ndarray:
    """Standard deviation of every weight over the reference's: below 1 where the method is too narrow.

    draws (D, P), reference (D', P) -> (P,), nan where the reference does not vary. Raises `UserError`.
    """
    (_, std), (_, scale) = weight_moments(draws), weight_moments(reference)
    if std.shape != scale.shape:
        raise UserError(f"draws have {std.size} weights, the reference {scale.size}")
    return np.divide(std, scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def wasserstein(draws, reference) -> np.ndarray:
    """The 2-Wasserstein distance of every weight, in its own unit.

    draws (D, P), reference (D', P) -> (P,). Raises `UserError` for other shapes.
    """
    draws, reference = _check_pair(draws, reference)
    return np.concatenate([distances.w2(*block) for block in _blocks(draws, reference)])


def sliced_wasserstein(rng, draws, reference, num_directions: int = 200) -> float:
    """Sliced 2-Wasserstein distance: the root of the mean W2^2 along random unit vectors.

    A shift of the draws by a vector s gives about |s| / sqrt(P), the root mean square of its entries.

    Args:
        rng: `np.random.Generator`; the same state gives the same directions.
        draws, reference: (D, P) and (D', P).
        num_directions: L. The relative error of the square of a shift is about sqrt(2 / L).

    Raises `UserError` for other shapes or no direction.
    """
    draws, reference = _check_pair(draws, reference)
    if num_directions < 1:
        raise UserError(f"sliced distances need at least 1 direction, got {num_directions}")
    length, along, along_reference = 0.0, 0.0, 0.0
    for x, y in _blocks(draws, reference, num_directions):
        directions = rng.standard_normal((x.shape[1], num_directions))
        length += np.square(directions).sum(axis=0)
        along, along_reference = along + x @ directions, along_reference + y @ directions
    return float(np.sqrt(np.mean(np.square(distances.w2(along, along_reference)) / length)))


def mmd2(draws, reference, bandwidth: float | None = None) -> float:
    """The squared maximum mean discrepancy of a Gaussian kernel, unbiased, without unit, at most 2.

    Distances can be compared at one bandwidth only: hand that of the reference's own draws, say, to all.

    Args:
        draws, reference: (D, P) and (D', P), D, D' >= 2.
        bandwidth: h, in the units of the weights; by default `median_distance` of these draws, which makes
            the estimate unbiased up to the small dependence of h on the draws.

    Raises `UserError` for other shapes, fewer draws or a bandwidth that is not positive.
    """
    draws, reference = _check_pair(draws, reference)
    if min(len(draws), len(reference)) < 2:
        raise UserError(f"MMD needs at least 2 draws of each, got {len(draws)} and {len(reference)}")
    squared = _squared_distances(draws, reference)
    bandwidth = _median(squared) if bandwidth is None else bandwidth
    if not 0 < bandwidth < np.inf:
        raise UserError(f"MMD needs a positive bandwidth, not {bandwidth}: do the draws vary at all?")
    kernel, count = np.exp(-squared / (2 * bandwidth**2)), len(draws)
    same, other = kernel[:count, :count], kernel[count:, count:]
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))  # without k(x, x) = 1
    return float(within(same) + within(other) - 2 * kernel[:count, count:].mean())


def median_distance(draws, reference) -> float:
    """The median distance between two of all draws, the usual bandwidth of `mmd2`, in the weights' units.

    draws (D, P), reference (D', P). Raises `UserError` for other shapes.
    """
    return _median(_squared_distances(*_check_pair(draws, reference)))


def by_layer(draws: Params, reference: Params) -> dict[str, dict[str, float | None]]:
    """Each leaf of the network in four numbers.

    Args:
        draws, reference: leaves (D, ...) and (D', ...).

    Returns:
        leaf name -> `mean_difference`, root mean square over weights of the difference of means in standard
        deviations of the reference; `std_ratio`, median over weights of `std_ratio`; `wasserstein`,
        root mean square over weights of W2 in their unit; `wasserstein_in_std`, in standard deviations of
        the reference. Weights that do not vary in the reference count for `wasserstein` only; None if none
        varies.

    Raises `UserError` if the leaves do not fit.
    """
    if jax.tree.structure(draws) != jax.tree.structure(reference):
        ours, theirs = (", ".join(leaf_names(tree)) for tree in (draws, reference))
        raise UserError(f"draws and reference are of different networks: {ours}; {theirs}"[:200])
    rows = lambda tree: [np.asarray(a).reshape(len(a), -1) for a in jax.tree.leaves(tree)]
    return {
        name: _leaf_summary(*_check_pair(x, y, name))
        for name, x, y in zip(leaf_names(draws), rows(draws), rows(reference), strict=True)
    }


def moments(draws: Params) -> tuple[Params, Params]:
    """Mean and standard deviation of every weight over all chains: leaves (C, D, ...) -> two trees (...)."""
    both = [weight_moments(np.asarray(a).reshape(-1, a[0, 0].size)) for a in jax.tree.leaves(draws)]
    like, structure = [a[0, 0] for a in jax.tree.leaves(draws)], jax.tree.structure(draws)
    shaped = lambda flat: [x.reshape(a.shape) for x, a in zip(flat, like, strict=True)]
    return tuple(jax.tree.unflatten(structure, shaped(part)) for part in zip(*both, strict=True))


def by_moments(draws: Params, mean: Params, std: Params) -> dict[str, dict[str, float | None]]:
    """As `by_layer`, of a reference that is known by its moments alone: `mean_difference` and `std_ratio`.

    Args:
        draws: leaves (C, D, ...), aligned to `mean`.
        mean, std: leaves (...).

    Raises `UserError` if the leaves do not fit.
    """
    found = moments(draws)
    if jax.tree.structure(draws) != jax.tree.structure(mean):
        raise UserError("draws and moments are of different networks")
    result = {}
    trees = (*found, mean, std)
    for name, *leaves in zip(leaf_names(draws), *map(jax.tree.leaves, trees), strict=True):
        own, width, centre, scale = (np.asarray(a, np.float64).ravel() for a in leaves)
        varies = scale > 0
        difference = np.square((own - centre)[varies] / scale[varies])
        result[name] = {
            "mean_difference": float(np.sqrt(difference.mean())) if varies.any() else None,
            "std_ratio": float(np.median(width[varies] / scale[varies])) if varies.any() else None,
        }
    return result


def mixing(draws: Params) -> dict[str, float | None]:
    """The share of the weights of each leaf on which the chains agree: R-hat below 1.05, ESS above 100.

    Rank-normalised split R-hat and bulk ESS over all chains (`diagnostics`). Weights that are constant are
    left out. Chains in permuted copies of one mode count as not mixed until their draws are aligned.

    Args:
        draws: leaves (C, D, ...), D >= 4.

    Returns:
        leaf name -> share in [0, 1], None where every weight is constant.

    Raises `UserError` as `diagnostics.rhat`.
    """
    shares = {}
    for name, leaf in zip(leaf_names(draws), jax.tree.leaves(draws), strict=True):
        rhat, ess = diagnostics.rhat(leaf), diagnostics.ess_bulk(leaf)
        varies = ~np.isnan(rhat)
        shares[name] = _mean(((rhat < MAX_RHAT) & (ess > MIN_ESS))[varies])
    return shares


def floor(measure: Callable[[Params, Params], Any], draws: Params) -> Any:
    """A measure between two chains, averaged over pairs: what a perfect method would reach.

    A chain has C times fewer draws than the pooled reference, so the floor of what is biased upwards is a
    little pessimistic. Fix the bandwidth of `mmd2`, and the seed of `sliced_wasserstein`, in `measure`.

    Args:
        measure: (leaves (D, ...), leaves (D, ...)) -> numbers, in nested dicts say: `by_layer`.
        draws: leaves (C, D, ...), C >= 2.

    Returns:
        As `measure`; None where it is None for a pair.

    Raises `UserError` for a single chain.
    """
    chains = len(jax.tree.leaves(draws)[0])
    if chains < 2:
        raise UserError("a noise floor needs at least 2 chains: run the reference with more")
    chain = lambda c: jax.tree.map(lambda a: np.asarray(a)[c], draws)
    pairs = [measure(chain(p), chain(q)) for p, q in combinations(range(chains), 2)]
    return jax.tree.map(_mean_of_pairs, *pairs, is_leaf=lambda value: value is None)


def _mean_of_pairs(*values):
    if any(value is None for value in values):
        return None
    mean = np.mean(values, axis=0)
    return mean if mean.ndim else float(mean)


def _check_pair(draws, reference, name=""):
    """Two arrays (D, P) and (D', P), or a `UserError`."""
    pair = np.asarray(draws), np.asarray(reference)
    if any(a.ndim != 2 or a.size == 0 for a in pair) or pair[0].shape[1] != pair[1].shape[1]:
        what = f"{name}: " if name else ""
        raise UserError(
            f"{what}draws and reference need shapes (D, P) and (D', P), got {pair[0].shape}, {pair[1].shape}"
        )
    return pair


def _blocks(draws, reference, least=0):
    """Some columns of both at a time, in float64; `least` more values a column lie in memory."""
    width = max(1, BLOCK_VALUES // (len(draws) + len(reference) + least))
    for start in range(0, draws.shape[1], width):
        yield tuple(a[:, start : start + width].astype(np.float64) for a in (draws, reference))


def _squared_distances(draws, reference):
    """Between any two of all draws, (D + D', D + D')."""
    gram = 0.0
    for x, y in _blocks(draws, reference):
        both = np.concatenate([x, y])
        both -= both.mean(axis=0)  # distances are small beside the draws themselves
        gram = gram + both @ both.T
    squares = np.diag(gram)
    return np.maximum(squares[:, None] + squares - 2 * gram, 0)


def _median(squared):
    return float(np.median(np.sqrt(squared[np.triu_indices(len(squared), 1)])))


def _leaf_summary(draws, reference):
    columns = []
    for x, y in _blocks(draws, reference):
        (mean, _), (centre, std) = weight_moments(x), weight_moments(y)
        columns.append((mean - centre, std, std_ratio(x, y), distances.w2(x, y)))
    difference, std, ratio, distance = map(np.concatenate, zip(*columns, strict=True))
    varies = std > 0
    rms = lambda values: None if (square := _mean(np.square(values))) is None else float(np.sqrt(square))
    return {
        "mean_difference": rms(difference[varies] / std[varies]),
        "std_ratio": float(np.median(ratio[varies])) if varies.any() else None,
        "wasserstein": rms(distance),
        "wasserstein_in_std": rms(distance[varies] / std[varies]),
    }


def _mean(values):
    """A Python float, or None of no values: JSON has no nan."""
    return float(np.mean(values)) if len(values) else None
