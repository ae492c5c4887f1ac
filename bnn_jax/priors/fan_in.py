"""Fan-in scaled Gaussian: w ~ N(0, gain / fan_in), biases N(0, bias_std^2).

With `gain` 2 (He et al., arXiv:1502.01852) a wide network keeps the variance of its signal from layer
to layer, so that its prior over functions has a limit as the width grows (Neal 1996). A kernel's
fan-in is the product of all its axes but the last.
"""

import jax
from jax.scipy.stats import norm

from bnn_jax.priors import independent
from bnn_jax.trees import fan_in
from bnn_jax.types import Prior, positive


def build(gain: float = 2.0, bias_std: float = 1.0) -> Prior:
    """N(0, gain / fan_in) for kernels (leaves of two axes or more), N(0, bias_std^2) for the rest.

    Raises:
        UserError: `gain` or `bias_std` is not positive.
    """
    positive("the prior's gain", gain)
    positive("the prior's bias_std", bias_std)

    def scale(leaf):
        return (gain / fan_in(leaf)) ** 0.5 if leaf.ndim > 1 else bias_std

    return independent(
        sample=lambda key, leaf: scale(leaf) * jax.random.normal(key, leaf.shape, leaf.dtype),
        log_prob=lambda leaf: norm.logpdf(leaf, scale=scale(leaf)),
        scale=scale,
        gaussian=True,
    )
