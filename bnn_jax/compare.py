"""Several methods on one problem: scores, distances to a reference, error bars and a noise floor.

    distance to HMC = d(predictive mean of the method, that of HMC),      d: see `distances`

Two finite sets of draws from one posterior differ too: `floor`, the same measures between single chains of
HMC, is what a perfect method would reach.

Error bars: a replicate resamples the draws of every method within their chains, in circular blocks because
successive draws are correlated (Politis and Romano 1992), and the test points, the same for all methods. The
chains themselves stay fixed: few chains say little about their spread, which R-hat judges. The interval is

    point estimate +- 1.96 * standard deviation of the replicates,    cut to the range of the measure.

It is not a percentile interval: resampled means carry the noise of the draws twice, so a distance between
replicates is larger than the one estimated, and percentiles of a small distance would exclude the estimate.

Everything runs on NumPy arrays, after sampling. C chains, D draws, T test points, K classes, F features of a
prediction (its K probabilities, or those of `distances.features`), V values of a draw, R replicates.
"""

from itertools import combinations
from math import ceil
from typing import NamedTuple

import numpy as np

from bnn_jax import distances
from bnn_jax.distances import CLASSIFICATION, REGRESSION, Measures
from bnn_jax.types import UserError

W2_POINTS = 200  # test points of which W2's spread over draws is taken
W2_REPLICATES = 50


class Compared(NamedTuple):
    """What `summarise` and `floor_summary` take."""

    measures: Measures
    targets: np.ndarray  # (T,)
    probs: dict[str, np.ndarray]  # method -> (C, D, T, F)
    values: dict[str, np.ndarray]  # method -> (C, D, T, V)


def prepare(predicted: dict, targets, classes: bool) -> Compared:
    """From what each draw predicts.

    Args:
        predicted: method -> mean and noise: probabilities (C, D, T, K) and anything, or of a regression mean
            and variance (C, D, T), in the unit of the targets.
        targets: (T,) labels, or targets of a regression.
        classes: whether this is a classification.
    """
    if classes:
        probs = {name: mean for name, (mean, _) in predicted.items()}
        return Compared(CLASSIFICATION, np.asarray(targets), probs, probs)
    own = {name: tuple(np.asarray(a, np.float64) for a in parts) for name, parts in predicted.items()}
    cuts = distances.edges(list(own.values())) if own else None
    probs = {name: distances.features(*parts, targets, cuts) for name, parts in own.items()}
    values = {name: mean[..., None] for name, (mean, _) in own.items()}
    return Compared(REGRESSION, np.asarray(targets), probs, values)


def _floor(means, targets, measures) -> dict[str, float]:
    """The distances, averaged over pairs of the chains' predictive means (C, T, F); gaps by their size."""
    found = {}
    for name, distance in measures.distances.items():
        values = [distance(p, q, targets) for p, q in combinations(means, 2)]
        found[name] = float(np.mean(np.abs(values) if name in distances.SIGNED else values))
    return found


def floor(probs, targets, measures: Measures = CLASSIFICATION) -> dict[str, float]:
    """The distances between the predictive means of two chains, averaged over pairs; of gaps the size.

    probs (C, D, T, F), C >= 2, targets (T,); raises `UserError`. A single chain has C times fewer draws than
    the reference that methods are compared with, so the floor is a little pessimistic.
    """
    probs = measures.check(probs)
    if len(probs) < 2:
        raise UserError("a noise floor needs at least 2 chains: run the reference with more")
    return _floor(probs.mean(axis=1, dtype=np.float64), targets, measures)


def block_length(draws: int, chains: int, ess: float | None) -> int:
    """Block length for `draw_weights`, from the effective sample size of `chains` chains of `draws` draws.

    The length with the least mean squared error of a mean's variance is (3/2 n (G / g)^2)^(1/3), where
    g = sum_k R(k) and G = sum_k |k| R(k) (Politis and White 2004, doi:10.1081/ETC-120028836). Taken for the
    AR(1) series of autocorrelation time tau = n / ESS, n = draws * chains: G / g = (tau - 1/tau) / 2. A
    block of one tau would be too short: at tau = 19 it misses a quarter of the standard error. Clipped to
    [1, draws // 2]; draws // 2, the most careful, if the ESS is None, not finite or not positive.
    """
    longest, count = max(1, draws // 2), draws * chains
    if ess is None or not np.isfinite(ess) or ess <= 0:
        return longest
    tau = count / ess
    return min(max(1, ceil((1.5 * count) ** (1 / 3) * (abs(tau - 1 / tau) / 2) ** (2 / 3))), longest)


def draw_weights(rng, chains: int, draws: int, block: int, replicates: int) -> np.ndarray:
    """Bootstrap weights (R, C * D) of the draws, chain by chain: `weights @ probs` replicates the mean.

    The circular block bootstrap: a replicate of a chain is a row of blocks of `block` successive draws that
    start anywhere and wrap around, cut to D draws; block = 1 resamples independent draws. Rows sum to 1,
    each chain to 1 / C. Raises `UserError` if the block is not in [1, max(1, D // 2)].
    """
    if not 1 <= block <= max(1, draws // 2):
        raise UserError(f"block must be between 1 and half of the {draws} draws of a chain, got {block}")
    starts = rng.integers(draws, size=(replicates * chains, ceil(draws / block), 1))
    index = ((starts + np.arange(block)) % draws).reshape(replicates * chains, -1)[:, :draws]
    index += draws * np.arange(replicates * chains)[:, None]
    counts = np.bincount(index.ravel(), minlength=replicates * chains * draws)
    return counts.reshape(replicates, chains * draws) / (chains * draws)


def _replicate(rng, probs: np.ndarray, block: int, replicates: int) -> np.ndarray:
    """Bootstrap replicates (R, C, T, F) of every chain's predictive mean, probs (C, D, T, F), in float32."""
    chains, draws, *points = probs.shape
    weights = chains * draw_weights(rng, chains, draws, block, replicates).astype(np.float32)
    weights = weights.reshape(replicates, chains, draws)
    means = [weights[:, c] @ probs[c].reshape(draws, -1).astype(np.float32) for c in range(chains)]
    return np.stack(means, axis=1).reshape(replicates, chains, *points)


def _with_intervals(estimate: dict[str, float], errors: dict[str, float], measures: Measures) -> dict:
    """Every estimate, and beside it `<name>_interval` [low, high] from its standard error."""
    result = {}
    for name, value in estimate.items():
        half = 1.96 * errors[name]
        low = max(value - half, measures.least.get(name, 0.0))
        high = min(value + half, distances.LARGEST.get(name, 1.0))
        result |= {name: value, f"{name}_interval": [float(low), float(high)]}
    return result


def _errors(replicates: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.std([r[name] for r in replicates], ddof=1)) for name in replicates[0]}


def _check_replicates(replicates: int) -> None:
    if replicates < 2:
        raise UserError(f"a standard error needs at least 2 bootstrap replicates, got {replicates}")


def floor_summary(
    probs,
    targets,
    *,
    rng,
    replicates: int = 200,
    block: int,
    measures: Measures = CLASSIFICATION,
    values=None,
) -> dict:
    """`floor` with its intervals, a float and [low, high] for every distance.

    probs (C, D, T, F), C >= 2, targets (T,); `block` as in `draw_weights`; values (C, D, T, V) of the draws,
    by default `probs`, for W2. Raises `UserError`.
    """
    _check_replicates(replicates)
    probs = np.asarray(probs)
    estimate, targets = floor(probs, targets, measures), np.asarray(targets)
    points = rng.integers(probs.shape[2], size=(replicates, probs.shape[2]))
    means = _replicate(rng, probs, block, replicates)
    samples = [_floor(m[:, index], targets[index], measures) for m, index in zip(means, points, strict=True)]
    values = probs if values is None else np.asarray(values)
    pairs = [
        _w2(rng, values[a : a + 1], values[b : b + 1], block, block)
        for a, b in combinations(range(len(values)), 2)
    ]
    w2 = {"w2": float(np.mean([value for value, _ in pairs]))}
    errors = _errors(samples) | {"w2": float(np.mean([error for _, error in pairs]))}  # pairs share chains
    return _with_intervals(estimate | w2, errors, measures)


def _w2(rng, p, q, block_p, block_q) -> tuple[float, float]:
    """W2 between two methods' draws (C, D, T, V), the mean over points and values, and its standard error.

    Test points and draws add up: the first from the spread between points, the second from resampled draws
    at `W2_POINTS` of them, since sorting all draws again and again takes long.
    """
    pool = lambda values: values.reshape(-1, *values.shape[2:])
    each = distances.w2(pool(p), pool(q)).mean(axis=-1)
    some = rng.permutation(len(each))[:W2_POINTS]

    def resampled(values, block):
        chains, draws = values.shape[:2]
        counts = np.rint(chains * draws * draw_weights(rng, chains, draws, block, W2_REPLICATES)).astype(int)
        few = pool(values[:, :, some])
        return (few[np.repeat(np.arange(len(few)), count)] for count in counts)

    pairs = zip(resampled(p, block_p), resampled(q, block_q), strict=True)
    by_draws = np.std([distances.w2(*pair).mean() for pair in pairs], ddof=1)
    by_points = np.std(each, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0.0
    return float(each.mean()), float(np.hypot(by_draws, by_points))


def _evaluate(p, targets, reference, measures) -> dict[str, float]:
    """All scores of p (T, F), and its distances to `reference` (T, F) unless that is None."""
    values = {name: score(p, targets) for name, score in measures.scores.items()}
    if reference is None:
        return values
    return values | {name: f(p, reference, targets) for name, f in measures.distances.items()}


def summarise(
    probs: dict,
    targets,
    reference: str | None,
    *,
    rng,
    replicates: int = 200,
    block: dict,
    measures: Measures = CLASSIFICATION,
    values: dict | None = None,
) -> dict:
    """Scores of several methods and their distances to a reference, with bootstrap intervals.

    Args:
        probs: name -> (C, D, T, F) of every draw, T and F common (MAP: C = D = 1; VI: C = 1).
        targets: (T,) integer labels, or the targets of a regression.
        reference: the name to compare with, or None for no comparison.
        rng: `np.random.Generator`, the only source of randomness.
        replicates: R, number of bootstrap replicates.
        block: name -> block length, `block_length` for a chain, 1 for independent draws.
        measures: `distances.CLASSIFICATION` or `distances.REGRESSION`.
        values: name -> (C, D, T, V) of every draw, whose spread W2 compares; by default `probs`.

    Returns:
        name -> the scores and distances of `measures` and w2 as floats, and each with `<measure>_interval` as
        [low, high]; no distances for the reference itself.

    Raises `UserError` for wrong shapes or labels, an unknown reference or a missing block length.
    """
    _check_replicates(replicates)
    if reference is not None and reference not in probs:
        raise UserError(f"reference '{reference}' is not among the methods: {', '.join(probs)}")
    if missing := set(probs) - set(block):
        raise UserError(f"block has no length for: {', '.join(sorted(missing))}")
    probs = {name: measures.check(p) for name, p in probs.items()}
    values = probs if values is None else {name: np.asarray(v) for name, v in values.items()}
    shapes = {p.shape[2:] for p in probs.values()}
    if len(shapes) != 1:
        raise UserError(f"methods must predict the same test points and classes, got {sorted(shapes)}")
    ((count, _),) = shapes
    targets = np.asarray(targets)
    points = rng.integers(count, size=(replicates, count))

    def predictive(name):
        """The mean over all draws (T, F), and its replicates (R, T, F)."""
        mean = probs[name].mean(axis=(0, 1), dtype=np.float64)
        return mean, _replicate(rng, probs[name], block[name], replicates).mean(axis=1)

    target = predictive(reference) if reference is not None else None
    result = {}
    for name in probs:
        mean, means = target if name == reference else predictive(name)
        compared = reference not in (None, name)
        estimate = _evaluate(mean, targets, target[0] if compared else None, measures)
        samples = [
            _evaluate(means[r, index], targets[index], target[1][r, index] if compared else None, measures)
            for r, index in enumerate(points)
        ]
        errors = _errors(samples)
        if compared:
            estimate["w2"], errors["w2"] = _w2(
                rng, values[name], values[reference], block[name], block[reference]
            )
        result[name] = _with_intervals(estimate, errors, measures)
    return result
