"""Student-t: heavy tails, found in the weights of trained networks (Fortuin et al., arXiv:2102.06571)."""

import jax
from jax.scipy.stats import t

from bnn_jax.priors import independent
from bnn_jax.types import Prior, positive


def build(scale: float = 1.0, df: float = 3.0) -> Prior:
    """scale * t_df. `scale` is the width of the bulk; the variance is scale^2 df / (df - 2) for df > 2.

    Raises:
        UserError: `scale` or `df` is not positive.
    """
    positive("the prior's scale", scale)
    positive("the prior's df", df)
    return independent(
        sample=lambda key, leaf: scale * jax.random.t(key, df, leaf.shape, leaf.dtype),
        log_prob=lambda leaf: t.logpdf(leaf, df, scale=scale),
        scale=lambda leaf: scale,
    )
