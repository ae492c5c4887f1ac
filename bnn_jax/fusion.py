r"""One prediction from the predictive distributions of several models, as of networks on different views.

    average   p(y) = sum_m w_m p_m(y),           w_m = 1 / M unless given     (linear pool)
    product   p(y) = prod_m p_m(y)^{w_m} / Z,    w_m = 1 unless given         (log-linear pool)

The average assumes that one model is right, with probability w_m the m-th: it is never surer than the surest.
The product with weights that sum to one assumes that all are about the same evidence: it is the p of smallest
sum_m w_m KL(p || p_m), and equal models give their common distribution back (doi:10.1214/ss/1177013825). The
product of experts, all w_m = 1, assumes that their evidence is independent given the class, and classes that
are equally probable beforehand: then it is Bayes' rule (doi:10.1162/089976602760128018). Otherwise it counts
shared evidence and the class shares M times; models of the same images share most, so it is too sure.

M models, T points, K classes.
"""

import numpy as np
from scipy.special import softmax, xlogy

from bnn_jax.metrics import check_probs
from bnn_jax.types import UserError


def average(probs, weights=None) -> np.ndarray:
    """The mean of the models' probabilities: (M, T, K) -> (T, K) float64.

    Args:
        probs: (M, T, K), one posterior predictive a model.
        weights: (M,) not negative, of sum 1; equal by default.

    Raises:
        UserError: not probabilities, or weights that do not match or sum to 1.
    """
    probs, weights = _check(probs, weights)
    weights = np.full(len(probs), 1 / len(probs)) if weights is None else weights
    return np.tensordot(weights, probs, axes=1)


def product(probs, weights=None) -> np.ndarray:
    """The normalised product of the models' probabilities: (M, T, K) -> (T, K) float64.

    A class that one model excludes, of probability 0 and weight above 0, is excluded.

    Args:
        probs: (M, T, K), one posterior predictive a model.
        weights: (M,) exponents, not negative, of sum 1; all 1 by default, which is the product of experts.

    Raises:
        UserError: as `average`; an example of which every class is excluded.
    """
    probs, weights = _check(probs, weights)
    weights = np.ones(len(probs)) if weights is None else weights
    log_product = xlogy(weights[:, None, None], probs).sum(axis=0)  # 0 log 0 = 0: weight 0 excludes nothing
    none_left = np.flatnonzero(np.isneginf(log_product).all(axis=1))
    if len(none_left):
        raise UserError(
            f"example {none_left[0]}: each class has probability 0 under some model, their product does not "
            "exist; use the average, or probabilities above 0"
        )
    return softmax(log_product, axis=1)


def _check(probs, weights):
    """Both in float64, the weights None if they are, or a `UserError`."""
    probs, _ = check_probs(probs, "MTK")
    probs = probs.astype(np.float64)
    if weights is None:
        return probs, None
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(probs),) or not (weights >= 0).all() or not abs(weights.sum() - 1) < 1e-6:
        raise UserError(f"weights need {len(probs)} numbers, none negative, of sum 1; got {weights.tolist()}")
    return probs, weights
