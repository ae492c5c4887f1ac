"""Scale mixture of two Gaussians: pi N(0, s1^2) + (1 - pi) N(0, s2^2).

A wide part and a narrow one: many weights near zero, some free (Blundell et al., arXiv:1505.05424).
The KL to it has no closed form.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from bnn_jax.priors import independent
from bnn_jax.types import Prior, UserError, positive


def build(std_wide: float = 1.0, std_narrow: float = 0.0025, wide: float = 0.5) -> Prior:
    """Weight `wide` on N(0, std_wide^2), the rest on N(0, std_narrow^2).

    Raises:
        UserError: a standard deviation is not positive, or `wide` is not between 0 and 1.
    """
    positive("the prior's std_wide", std_wide)
    positive("the prior's std_narrow", std_narrow)
    if not 0 < wide < 1:
        raise UserError(f"the prior's share `wide` must lie between 0 and 1, not {wide}")

    def sample(key, leaf):
        key_component, key_noise = jax.random.split(key)
        std = jnp.where(jax.random.bernoulli(key_component, wide, leaf.shape), std_wide, std_narrow)
        return std.astype(leaf.dtype) * jax.random.normal(key_noise, leaf.shape, leaf.dtype)

    def log_prob(leaf):
        return jnp.logaddexp(
            jnp.log(wide) + norm.logpdf(leaf, scale=std_wide),
            jnp.log1p(-wide) + norm.logpdf(leaf, scale=std_narrow),
        )

    variance = wide * std_wide**2 + (1 - wide) * std_narrow**2
    return independent(sample, log_prob, scale=lambda leaf: variance**0.5)
