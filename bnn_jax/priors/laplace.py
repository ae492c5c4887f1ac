"""Laplace: p(w) = exp(-|w| / b) / 2b. Its maximum a posteriori solution is sparse (L1)."""

import jax
from jax.scipy.stats import laplace

from bnn_jax.priors import independent
from bnn_jax.types import Prior, positive


def build(std: float = 1.0) -> Prior:
    """Laplace with mean 0 and standard deviation `std`, so b = std / sqrt(2).

    Raises:
        UserError: `std` is not positive.
    """
    b = positive("the prior's std", std) / 2**0.5
    return independent(
        sample=lambda key, leaf: b * jax.random.laplace(key, leaf.shape, leaf.dtype),
        log_prob=lambda leaf: laplace.logpdf(leaf, scale=b),
        scale=lambda leaf: std,
    )
