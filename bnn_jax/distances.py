r"""How far two predictive distributions p and q are from one another, and how good each is.

    agreement         1/T sum_t [argmax p_t = argmax q_t]
    total variation   1/T sum_t 1/2 sum_k |p_tk - q_tk|
    symmetric KL      1/T sum_t 1/2 sum_k (p_tk - q_tk) log (p_tk / q_tk)                            nats
    entropy gap       1/T sum_t H[p_t] - H[q_t], positive where p is less sure                       nats
    calibration gap   ECE[p] - ECE[q]
    W2                of the draws' values at a point, 2-Wasserstein, the mean over points and values

The first two are those of arXiv:2104.14421. All but W2 compare predictive means; W2 sees whether the draws
themselves are as spread. The density of a regression is cut into cells (`features`), K a point, which take
the place of classes: total variation and KL are those of the densities up to what differs inside a cell, so
a little too small; entropies take the density inside a cell as even. Logarithms of less than `TINY` are cut.

Everything runs on NumPy arrays. T test points, K classes or cells, D draws, V values of a draw at a point.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from bnn_jax import metrics
from bnn_jax.metrics import TINY
from bnn_jax.types import UserError

CELLS = 200  # of a regression's density at a point
POINTS = 2000  # quantiles of each method's density from which the cells' edges are taken
SIGNED = ("entropy_gap", "calibration_gap")  # 0 is best, either sign is worse
_UNBOUNDED = ("nll", "rmse", "symmetric_kl", "w2", "entropy_gap")
LARGEST = {"brier": 2.0} | dict.fromkeys(_UNBOUNDED, np.inf)  # 1 for others
BEYOND = 4  # features of a regression after its cells: mean log width, mean, density and distribution at y


class Measures(NamedTuple):
    """What is measured of predictive means (T, F): K probabilities, or `features` of a regression."""

    scores: Mapping[str, Callable]  # name -> (p (T, F), targets (T,)) -> float
    distances: Mapping[str, Callable]  # name -> (p, q (T, F), targets) -> float
    check: Callable  # (predictions of draws (C, D, T, F)) -> them as an array; raises `UserError`
    least: Mapping[str, float]  # name -> its smallest value, 0 for others


def agreement(p, q) -> float:
    """Share of points where p and q rank the same class first. p, q (T, K); raises `UserError`."""
    p, q = _pair(p, q)
    return float(np.mean(p.argmax(axis=-1) == q.argmax(axis=-1)))


def total_variation(p, q) -> float:
    """Mean over points of half the L1 distance, in [0, 1]. p, q (T, K); raises `UserError`."""
    p, q = _pair(p, q)
    return float(np.mean(np.abs(p - q).sum(axis=-1, dtype=np.float64)) / 2)


def symmetric_kl(p, q) -> float:
    """Mean over points of (KL(p, q) + KL(q, p)) / 2, nats. p, q (T, K); raises `UserError`."""
    p, q = _pair(p, q)
    logs = np.log(np.maximum(p, TINY)) - np.log(np.maximum(q, TINY))
    return float(np.mean(((p - q) * logs).sum(axis=-1, dtype=np.float64)) / 2)


def entropy_gap(p, q) -> float:
    """Mean over points of H[p] - H[q], nats. p, q (T, K); raises `UserError`."""
    p, q = _pair(p, q)
    return float(np.mean(metrics.entropy(p) - metrics.entropy(q)))


def calibration_gap(p, q, labels) -> float:
    """ECE[p] - ECE[q]. p, q (T, K), labels (T,); raises `UserError`."""
    p, q = _pair(p, q)
    return metrics.ece(p, labels) - metrics.ece(q, labels)


def w2(p, q) -> np.ndarray:
    """2-Wasserstein distance of the draws of every value, in its unit, exact for the draws at hand.

    p (D, ...), q (D', ...) -> (...). Two finite sets of draws from one distribution differ, so it is biased
    upwards. Raises `UserError` for other shapes.
    """
    p, q = np.asarray(p), np.asarray(q)
    if not p.ndim or p.shape[1:] != q.shape[1:] or not (p.size and q.size):
        raise UserError(f"draws need shapes (D, ...) and (D', ...), not {p.shape} and {q.shape}")
    last = lambda draws: np.sort(np.moveaxis(draws, 0, -1), axis=-1)
    p, q = last(p), last(q)
    many, few = p.shape[-1], q.shape[-1]
    if many == few:
        return np.sqrt(np.mean((p - q) ** 2, axis=-1, dtype=np.float64))
    # The quantile functions are constant between the steps i / D and j / D'; times D D' these are integers,
    # so that no step is lost to rounding.
    steps = np.union1d(np.arange(many + 1) * few, np.arange(few + 1) * many)
    weights, starts = np.diff(steps) / (many * few), steps[:-1]
    return np.sqrt(np.square(p[..., starts // few] - q[..., starts // many], dtype=np.float64) @ weights)


def _pair(p, q) -> tuple[np.ndarray, np.ndarray]:
    """Two checked (T, K) arrays of one shape, or a `UserError`."""
    (p, _), (q, _) = metrics.check_probs(p, "TK"), metrics.check_probs(q, "TK")
    if p.shape != q.shape:
        raise UserError(f"predictive probabilities differ in shape: {p.shape} and {q.shape}")
    return p, q


def edges(predictions: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(T, CELLS + 1) edges of the cells: quantiles of all methods' densities mixed, each of equal weight and
    denser in the tails, so that no outlying draw makes the cells of the others wide. The outer ones are five
    standard deviations from the lowest and the highest mean.

    predictions: (means, variances), each (..., T), of every method, in one unit.
    """
    place = np.arange(POINTS)
    turns = (np.arange(len(predictions) * POINTS) + 0.5) * (np.sqrt(5) - 1) / 2  # evenly spread in every draw
    low, high, points = np.inf, -np.inf, []
    for (means, variances), z in zip(predictions, ndtri(turns % 1).reshape(-1, POINTS, 1), strict=True):
        means, std = (np.reshape(a, (-1, np.shape(a)[-1])) for a in (means, np.sqrt(variances)))
        low = np.minimum(low, np.min(means - 5 * std, axis=0))
        high = np.maximum(high, np.max(means + 5 * std, axis=0))
        draw = place * len(means) // POINTS
        points.append(means[draw] + z * std[draw])
    levels = (1 - np.cos(np.linspace(0, np.pi, CELLS + 1)[1:-1])) / 2
    return np.concatenate([low[None], np.quantile(np.concatenate(points), levels, axis=0), high[None]]).T


def features(means, variances, y, cuts) -> np.ndarray:
    """What the measures of a regression need, linear in the predictive density, so that it may be averaged.

    means, variances (..., T) of draws, y (T,), cuts (T, CELLS + 1): `edges` -> (..., T, CELLS + `BEYOND`):
    the probabilities of the cells, of which the outer ones reach to infinity, the mean logarithm of their
    widths, then mean, density and distribution function at y.
    """
    means, std = np.asarray(means, np.float64), np.sqrt(np.asarray(variances, np.float64))
    below = ndtr((cuts[:, 1:-1] - means[..., None]) / std[..., None])
    ends = np.zeros((*means.shape, 1))
    cells = np.diff(np.concatenate([ends, below, ends + 1], axis=-1), axis=-1)
    # A cell with a gap in it is no wider than four times the narrower of its neighbours.
    wide = np.pad(np.diff(cuts), ((0, 0), (1, 1)), constant_values=np.inf)
    width = np.minimum(wide[:, 1:-1], 4 * np.minimum(wide[:, :-2], wide[:, 2:]))
    mean_width = np.einsum("...tk,tk->...t", cells, np.log(width))
    away = (y - means) / std
    density = np.exp(-0.5 * away**2) / (np.sqrt(2 * np.pi) * std)
    return np.concatenate([cells, np.stack([mean_width, means, density, ndtr(away)], axis=-1)], axis=-1)


def _finite(probs):
    probs = np.asarray(probs)
    if probs.ndim != 4 or probs.size == 0 or not np.isfinite(probs).all():
        raise UserError(f"features need shape (C, D, T, F) and finite values, got {probs.shape}")
    return probs


def _of_cells(distance):
    return lambda p, q, y: distance(_cells(p), _cells(q))


def _cells(p):
    return p[..., :-BEYOND]


def _within(level):
    return lambda p, y: float(np.mean(np.abs(2 * p[:, -1] - 1) <= level))


CLASSIFICATION = Measures(
    {"accuracy": metrics.accuracy, "nll": metrics.nll, "brier": metrics.brier, "ece": metrics.ece},
    {
        "agreement": lambda p, q, labels: agreement(p, q),
        "total_variation": lambda p, q, labels: total_variation(p, q),
        "symmetric_kl": lambda p, q, labels: symmetric_kl(p, q),
        "entropy_gap": lambda p, q, labels: entropy_gap(p, q),
        "calibration_gap": calibration_gap,
    },
    lambda probs: metrics.check_probs(probs, "CDTK")[0],
    {"entropy_gap": -np.inf, "calibration_gap": -1.0},
)
REGRESSION = Measures(
    {
        "rmse": lambda p, y: metrics.rmse(p[:, -3], y),
        "nll": lambda p, y: float(-np.mean(np.log(np.maximum(p[:, -2], TINY)))),
        "coverage_50": _within(0.5),
        "coverage_90": _within(0.9),
    },
    {
        "total_variation": _of_cells(total_variation),
        "symmetric_kl": _of_cells(symmetric_kl),
        # of densities: the entropy of the cells and the mean logarithm of their widths
        "entropy_gap": lambda p, q, y: (
            entropy_gap(_cells(p), _cells(q)) + float(np.mean(p[:, -4] - q[:, -4]))
        ),
    },
    _finite,
    {"entropy_gap": -np.inf, "nll": -np.inf},
)
