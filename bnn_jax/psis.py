r"""Pareto smoothed importance sampling: how far draws of q are from those of p, and their weights.

    r_s = p(w_s, D) / q(w_s),  w_s ~ q;     the largest M = min(S / 5, 3 sqrt S), less the next: GPD(k)

The tail of the ratios is taken for a generalised Pareto distribution, whose shape k says which moments the
ratios have: their variance below 1/2, their mean below 1. With k below 0.7 reweighted draws of q stand for
those of the posterior at a practical number of draws, above it they do not, and q is not close to it in all
directions (Vehtari et al., arXiv:1507.02646; of variational inference, Yao et al., arXiv:1802.02538). k sees
only what q draws: a mode that q never visits leaves no trace.

k is Zhang and Stephens' (2009) estimate, drawn towards 1/2 as by 10 more excesses: M k + 10 / 2 over M + 10,
as in ArviZ and loo. The tail of the weights is replaced by the fit's quantiles, no larger than the largest.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax

from bnn_jax.types import UserError

MIN_DRAWS = 25  # five in the tail
MIN_TAIL = 5  # of fewer excesses no shape is fitted
PRIOR_SHAPE, PRIOR_EXCESSES = 0.5, 10  # what k is drawn to, and with how much weight


class Smoothed(NamedTuple):
    """S draws of q, weighted to be draws of p."""

    k: float  # shape of the tail; inf where it cannot be told, -inf where all ratios are equal
    log_weights: np.ndarray  # (S,) smoothed, sum exp = 1
    ess: float  # draws, 1 / sum of squared weights; to be believed where k is below 0.7


def smooth(log_ratios) -> Smoothed:
    """The shape of the ratios' tail, and smoothed weights.

    Args:
        log_ratios: (S,) nats, log p(w, D) - log q(w) up to a constant at independent draws of q, S >= 25;
            -inf is a weight of 0. What is the same for all draws cancels.

    Returns:
        `Smoothed`; k is inf, and nothing smoothed, where fewer than five ratios stand out of the rest or
        where they lie further apart than float64 reaches.

    Raises:
        UserError: another shape, fewer draws, nan or inf, or no ratio above 0.
    """
    log_ratios = np.asarray(log_ratios, np.float64)
    if log_ratios.ndim != 1 or len(log_ratios) < MIN_DRAWS:
        raise UserError(f"log ratios need shape (S,) with S >= {MIN_DRAWS} draws, got {log_ratios.shape}")
    largest = log_ratios.max()
    if not np.isfinite(largest):
        raise UserError("log ratios must not be nan or inf, nor all -inf: look at log p(w, D) and log q(w)")
    ratios = log_ratios - largest
    count = len(ratios)
    tail = int(np.ceil(min(count / 5, 3 * np.sqrt(count))))
    order = np.argsort(ratios, kind="stable")
    cutoff = max(ratios[order[-tail - 1]], np.log(np.finfo(float).tiny))
    above = order[ratios[order] > cutoff]
    k = -np.inf if ratios.min() == 0 else np.inf
    if len(above) >= MIN_TAIL:
        excesses = np.expm1(ratios[above] - cutoff)  # in units of the cutoff
        shape, scale = _fit(excesses)
        if np.isfinite(shape):
            k = shape
            places = np.arange(0.5, len(above)) / len(above)
            # No weight above the largest there was.
            ratios[above] = np.minimum(cutoff + np.log1p(_quantile(places, shape, scale)), 0)
    log_weights = ratios - logsumexp(ratios)
    return Smoothed(float(k), log_weights, float(np.exp(-logsumexp(2 * log_weights))))


def _fit(excesses):
    """Shape and scale of a generalised Pareto distribution, from rising positive numbers (M,).

    The mean over a grid of b = -k / scale, weighted by its profile likelihood; Zhang and Stephens 2009.
    """
    count = len(excesses)
    number = 30 + int(np.sqrt(count))
    quartile = excesses[int(count / 4 + 0.5) - 1]
    with np.errstate(all="ignore"):  # beyond float64: then not finite, as the caller sees
        b = 1 - np.sqrt(number / (np.arange(1, number + 1) - 0.5))
        b = b / (3 * quartile) + 1 / excesses[-1]
        shape = np.log1p(-b[:, None] * excesses).mean(1)
        mean = b @ softmax(count * (np.log(-b / shape) - shape - 1))
        shape = np.log1p(-mean * excesses).mean()
        scale = -shape / mean
    return (count * shape + PRIOR_EXCESSES * PRIOR_SHAPE) / (count + PRIOR_EXCESSES), scale


def _quantile(places, shape, scale):
    """The quantiles of that distribution; inf beyond float64."""
    tail = -np.log1p(-places)
    with np.errstate(over="ignore"):
        return scale * (np.expm1(shape * tail) / shape if shape else tail)
