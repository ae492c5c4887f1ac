"""How far apart two predictive distributions are, with error bars and a noise floor.

    agreement = 1/T sum_t [argmax p_t = argmax q_t],    TV = 1/T sum_t 1/2 sum_k |p_tk - q_tk|

The two measures of arXiv:2104.14421, between a method's predictive mean and HMC's. Two finite sets of draws
from one posterior differ too: `floor`, the same measures between single chains of HMC, is what a perfect
method would reach.

Error bars: a replicate resamples the draws of every method within their chains, in circular blocks because
successive draws are correlated (Politis and Romano 1992), and the test points, the same for all methods. The
chains themselves stay fixed: few chains say little about their spread, which R-hat judges. The interval is

    point estimate +- 1.96 * standard deviation of the replicates,    cut to the range of the measure.

It is not a percentile interval: resampled means carry the noise of the draws twice, so a distance between
replicates is larger than the one estimated, and percentiles of a small distance would exclude the estimate.

Everything runs on NumPy arrays, after sampling. C chains, D draws, T test points, K classes, P weights,
R replicates.
"""

from itertools import combinations
from math import ceil

import numpy as np

from bnn_jax import metrics
from bnn_jax.types import UserError


def _check_pair(p, q) -> tuple[np.ndarray, np.ndarray]:
    """Two checked (T, K) arrays of one shape, or a `UserError`."""
    (p, _), (q, _) = metrics.check_probs(p, "TK"), metrics.check_probs(q, "TK")
    if p.shape != q.shape:
        raise UserError(f"predictive probabilities differ in shape: {p.shape} and {q.shape}")
    return p, q


def agreement(p, q) -> float:
    """Share of points where p and q rank the same class first. p, q (T, K); raises `UserError`."""
    p, q = _check_pair(p, q)
    return float(np.mean(p.argmax(axis=-1) == q.argmax(axis=-1)))


def total_variation(p, q) -> float:
    """Mean over points of half the L1 distance, in [0, 1]. p, q (T, K); raises `UserError`."""
    p, q = _check_pair(p, q)
    return float(np.mean(np.abs(p - q).sum(axis=-1, dtype=np.float64)) / 2)


SCORES = {"accuracy": metrics.accuracy, "nll": metrics.nll, "brier": metrics.brier, "ece": metrics.ece}
DISTANCES = {"agreement": agreement, "total_variation": total_variation}
LARGEST = {"nll": np.inf, "brier": 2.0}  # 1 for the others; the smallest value is always 0


def weight_moments(draws) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every weight, draws (D, P) -> two (P,); one draw has deviation 0."""
    draws = np.asarray(draws)
    if draws.ndim != 2 or draws.size == 0:
        raise UserError(f"draws need shape (D, P) and no empty axis, got {draws.shape}")
    return draws.mean(axis=0, dtype=np.float64), draws.std(axis=0, dtype=np.float64)


def std_ratio(draws, reference) -> np.ndarray:
    """Standard deviation of every weight over the reference's: below 1 where the method is too narrow.

    draws (D, P), reference (D', P) -> (P,), nan where the reference does not vary. Raises `UserError`.
    """
    (_, std), (_, scale) = weight_moments(draws), weight_moments(reference)
    if std.shape != scale.shape:
        raise UserError(f"draws have {std.size} weights, the reference {scale.size}")
    return np.divide(std, scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def _floor(means) -> dict[str, float]:
    """The distances, averaged over pairs of the chains' predictive means (C, T, K)."""
    return {
        name: float(np.mean([distance(p, q) for p, q in combinations(means, 2)]))
        for name, distance in DISTANCES.items()
    }


def floor(probs) -> dict[str, float]:
    """`agreement` and `total_variation` between the predictive means of two chains, averaged over pairs.

    probs (C, D, T, K), C >= 2; raises `UserError`. A single chain has C times fewer draws than the
    reference that methods are compared with, so the floor is a little pessimistic.
    """
    probs, _ = metrics.check_probs(probs, "CDTK")
    if len(probs) < 2:
        raise UserError("a noise floor needs at least 2 chains: run the reference with more")
    return _floor(probs.mean(axis=1, dtype=np.float64))


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
    """Bootstrap replicates (R, C, T, K) of every chain's predictive mean, probs (C, D, T, K), in float32."""
    chains, draws, *points = probs.shape
    weights = chains * draw_weights(rng, chains, draws, block, replicates).astype(np.float32)
    weights = weights.reshape(replicates, chains, draws)
    means = [weights[:, c] @ probs[c].reshape(draws, -1).astype(np.float32) for c in range(chains)]
    return np.stack(means, axis=1).reshape(replicates, chains, *points)


def _with_intervals(estimate: dict[str, float], replicates: list[dict[str, float]]) -> dict:
    """Every estimate, and beside it `<name>_interval` [low, high] from its bootstrap replicates."""
    result = {}
    for name, value in estimate.items():
        half = 1.96 * np.std([replicate[name] for replicate in replicates], ddof=1)
        high = min(value + half, LARGEST.get(name, 1.0))
        result |= {name: value, f"{name}_interval": [float(max(value - half, 0.0)), float(high)]}
    return result


def _check_replicates(replicates: int) -> None:
    if replicates < 2:
        raise UserError(f"a standard error needs at least 2 bootstrap replicates, got {replicates}")


def floor_summary(probs, *, rng, replicates: int = 200, block: int) -> dict:
    """`floor` with its intervals: agreement, agreement_interval, total_variation, total_variation_interval.

    probs (C, D, T, K), C >= 2; `block` as in `draw_weights`. Floats and [low, high]. Raises `UserError`.
    """
    _check_replicates(replicates)
    probs = np.asarray(probs)
    estimate = floor(probs)
    points = rng.integers(probs.shape[2], size=(replicates, probs.shape[2]))
    means = _replicate(rng, probs, block, replicates)
    return _with_intervals(estimate, [_floor(m[:, index]) for m, index in zip(means, points, strict=True)])


def _evaluate(p, labels, reference) -> dict[str, float]:
    """All scores of p (T, K), and its distances to `reference` (T, K) unless that is None."""
    values = {name: score(p, labels) for name, score in SCORES.items()}
    if reference is None:
        return values
    return values | {name: distance(p, reference) for name, distance in DISTANCES.items()}


def summarise(probs: dict, labels, reference: str | None, *, rng, replicates: int = 200, block: dict) -> dict:
    """Scores of several methods and their distances to a reference, with bootstrap intervals.

    Args:
        probs: name -> (C, D, T, K) probabilities of every draw, T and K common (MAP: C = D = 1; VI: C = 1).
        labels: (T,) integers.
        reference: the name to compare with, or None for no comparison.
        rng: `np.random.Generator`, the only source of randomness.
        replicates: R, number of bootstrap replicates.
        block: name -> block length, `block_length` for a chain, 1 for independent draws.

    Returns:
        name -> accuracy, nll (nats), brier, ece, agreement, total_variation as floats, and each with
        `<measure>_interval` as [low, high]; no agreement and total_variation for the reference itself.

    Raises `UserError` for wrong shapes or labels, an unknown reference or a missing block length.
    """
    _check_replicates(replicates)
    if reference is not None and reference not in probs:
        raise UserError(f"reference '{reference}' is not among the methods: {', '.join(probs)}")
    if missing := set(probs) - set(block):
        raise UserError(f"block has no length for: {', '.join(sorted(missing))}")
    probs = {name: metrics.check_probs(p, "CDTK")[0] for name, p in probs.items()}
    shapes = {p.shape[2:] for p in probs.values()}
    if len(shapes) != 1:
        raise UserError(f"methods must predict the same test points and classes, got {sorted(shapes)}")
    ((count, _),) = shapes
    labels = np.asarray(labels)
    points = rng.integers(count, size=(replicates, count))

    def predictive(name):
        """The mean over all draws (T, K), and its replicates (R, T, K)."""
        mean = probs[name].mean(axis=(0, 1), dtype=np.float64)
        return mean, _replicate(rng, probs[name], block[name], replicates).mean(axis=1)

    target = predictive(reference) if reference is not None else None
    result = {}
    for name in probs:
        mean, means = target if name == reference else predictive(name)
        compared = reference not in (None, name)
        estimate = _evaluate(mean, labels, target[0] if compared else None)
        samples = [
            _evaluate(means[r, index], labels[index], target[1][r, index] if compared else None)
            for r, index in enumerate(points)
        ]
        result[name] = _with_intervals(estimate, samples)
    return result
