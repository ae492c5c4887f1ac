"""Isotropic Gaussian: w ~ N(0, std^2), the same width for every weight."""

import jax
from jax.scipy.stats import norm

from bnn_jax.priors import independent
from bnn_jax.types import Prior, positive


def build(std: float = 1.0) -> Prior:
    """N(0, std^2) for every weight.

    Raises:
        UserError: `std` is not positive.
    """
    positive("the prior's std", std)
    return independent(
        sample=lambda key, leaf: std * jax.random.normal(key, leaf.shape, leaf.dtype),
        log_prob=lambda leaf: norm.logpdf(leaf, scale=std),
        scale=lambda leaf: std,
        gaussian=True,
    )
