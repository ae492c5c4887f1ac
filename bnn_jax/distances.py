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
a little too small. Logarithms of less than `TINY` are cut.

Everything runs on NumPy arrays. T test points, K classes or cells, D draws, V values of a draw at a point.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from bnn_jax import metrics
from bnn_jax.metrics import TINY
from bnn_jax.types import UserError

CELLS = 200  # of a regression's density at a point
SIGNED = ("entropy_gap", "calibration_gap")  # 0 is best, either sign is worse
LARGEST = {"nll": np.inf, "rmse": np.inf, "brier": 2.0, "symmetric_kl": np.inf, "w2": np.inf}  # 1 for others
BEYOND = 3  # features of a regression after its cells: mean, density and distribution function at y


class Measures(NamedTuple):
    """What is measured of predictive means (T, F): K probabilities, or `features` of a regression."""

    scores: Mapping[str, Callable]  # name -> (p (T, F), targets (T,)) -> float
    distances: Mapping[str, Callable]  # name -> (p, q (T, F), targets) -> float
    check: Callable  # (predictions of draws (C, D, T, F)) -> them as an array; raises `UserError`


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
    """(T, CELLS - 1) inner edges of the cells: equally wide from the lowest to the highest place where any
    draw of any method has density, five standard deviations from its mean.

    predictions: (means, variances), each (..., T), of every method, in one unit.
    """
    low, high = np.inf, -np.inf
    for means, variances in predictions:
        reach = 5 * np.sqrt(variances)
        axes = tuple(range(np.ndim(means) - 1))
        low = np.minimum(low, np.min(means - reach, axis=axes))
        high = np.maximum(high, np.max(means + reach, axis=axes))
    return np.linspace(low, high, CELLS - 1, axis=-1)


def features(means, variances, y, inner) -> np.ndarray:
    """What the measures of a regression need, linear in the predictive density, so that it may be averaged.

    means, variances (..., T) of draws, y (T,), inner (T, CELLS - 1): `edges` -> (..., T, CELLS + `BEYOND`):
    the probabilities of the cells, of which the outer ones reach to infinity, then mean, density and
    distribution function at y.
    """
    means, std = np.asarray(means, np.float64), np.sqrt(np.asarray(variances, np.float64))
    below = ndtr((inner - means[..., None]) / std[..., None])
    ends = np.zeros((*means.shape, 1))
    cells = np.diff(np.concatenate([ends, below, ends + 1], axis=-1), axis=-1)
    away = (y - means) / std
    density = np.exp(-0.5 * away**2) / (np.sqrt(2 * np.pi) * std)
    return np.concatenate([cells, np.stack([means, density, ndtr(away)], axis=-1)], axis=-1)


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
        "entropy_gap": _of_cells(entropy_gap),
    },
    _finite,
)
