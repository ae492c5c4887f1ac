r"""Judging a regression: error of the mean, density and central intervals of the predictive distribution.

    p(y | x_t) = 1/D sum_d Normal(y; mean_dt, variance_dt)

Coverage and interval width are those of this mixture, not of a Gaussian of its mean and variance, which
differs where draws disagree. Nothing is approximated but the quantiles, by bisection. A
scale-free check of the whole distribution is the level of the central interval that just reaches y, which is
uniform for a calibrated model (doi:10.1111/j.1467-9868.2007.00587.x).
T examples, D draws; all in the unit of y, which the caller scales back.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp, ndtr, ndtri
from scipy.stats import norm

from bnn_jax.types import UserError


def regression(means, variances, y) -> dict[str, float]:
    """The scores of a predictive mixture of D Gaussians, by name, in the unit of y.

    `rmse` and `mae` of the mixture's mean, `nll` (nats), `coverage_50`, `coverage_90`, `coverage_95`: share
    of targets inside the central interval of the mixture, `interval_width_95`: its mean width.

    Args:
        means, variances: (D, T), variances positive. y: (T,).

    Raises:
        UserError: shapes that do not match, variances that are not positive, values that are not finite.
    """
    return weighted_regression(means, variances, y)(np.ones(np.size(y)))


def weighted_regression(means, variances, y) -> Callable[[np.ndarray], dict[str, float]]:
    """`regression` as a function of the weights (T,), for `bootstrap`. Raises `UserError` as it does."""
    means, std, y = _mixture(means, variances, y)
    error = means.mean(axis=0) - y
    log_prob = logsumexp(norm.logpdf(y, means, std), axis=0) - np.log(len(means))
    terms = {"rmse": error**2, "mae": np.abs(error), "nll": -log_prob}
    reach = interval_level(means, std**2, y)
    terms |= {f"coverage_{level}": reach <= level / 100 for level in (50, 90, 95)}
    low, high = mixture_interval(means, std**2, 0.95)
    terms["interval_width_95"] = high - low

    def score(weights: np.ndarray) -> dict[str, float]:
        found = {name: float(weights @ values / weights.sum()) for name, values in terms.items()}
        return found | {"rmse": float(np.sqrt(found["rmse"]))}

    return score


def interval_level(means, variances, y) -> np.ndarray:
    """(T,) level in [0, 1] of the central interval of the mixture that just reaches y: |2 F(y) - 1|.

    The share of examples with a level of at most c is the coverage of the central intervals of level c.
    means, variances (D, T), y (T,); raises `UserError`.
    """
    means, std, y = _mixture(means, variances, y)
    return np.abs(2 * ndtr((y - means) / std).mean(axis=0) - 1)


def mixture_interval(means, variances, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends (T,) and (T,) of the central interval of probability `level` of a mixture of D Gaussians.

    means, variances (D, T); raises `UserError`. By bisection between the smallest and the largest quantile
    of a component, which enclose the mixture's: to 1e-12 of their distance.
    """
    if not 0 < level < 1:
        raise UserError(f"the level of an interval must lie in (0, 1), not {level}")
    means, std, _ = _mixture(means, variances)

    def quantile(probability):
        ends = means + ndtri(probability) * std
        low, high = ends.min(axis=0), ends.max(axis=0)
        for _ in range(40):
            middle = (low + high) / 2
            short = ndtr((middle - means) / std).mean(axis=0) < probability
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        return (low + high) / 2

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


def _mixture(means, variances, y=None):
    """(means, standard deviations, y) in float64."""
    means, variances = np.asarray(means, np.float64), np.asarray(variances, np.float64)
    y = None if y is None else np.asarray(y, np.float64)
    if means.ndim != 2 or not means.size or means.shape != variances.shape:
        raise UserError(f"means and variances need one shape (D, T), got {means.shape} and {variances.shape}")
    if y is not None and y.shape != means.shape[1:]:
        raise UserError(f"y needs {means.shape[1]} numbers, one an example, got shape {y.shape}")
    if not (variances > 0).all() or not all(
        np.isfinite(a).all() for a in (means, variances, y) if a is not None
    ):
        raise UserError("means, variances and y must be finite, variances positive")
    return means, np.sqrt(variances), y
