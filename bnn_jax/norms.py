r"""Filter response normalisation (Singh & Krishnan, arXiv:1911.09737), in place of batch normalisation.

    nu^2 = mean of x^2 over the positions of one channel of one example
    y    = gamma x / sqrt(nu^2 + epsilon) + beta
    z    = max(y, tau)                                   the thresholded linear unit

Batch normalisation takes its mean and variance over the batch: the likelihood of an example then depends on
the others in its batch, the posterior is no product over examples, and there is no density that HMC could
sample. Here all means are over one example. Nothing is centred; the learned tau makes up for that.

gamma starts at 1, beta and tau at 0 (the unit starts as ReLU), and epsilon is 1e-6, as in the paper. With one
position nu^2 is x^2, and only the sign of x is left: keep feature maps larger than 1x1. For those the paper
learns epsilon, which is left out here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnn_jax.types import UserError

EPSILON = 1e-6


class FilterResponseNorm(nn.Module):
    """The norm of (B, *spatial, C) feature maps, with one gamma, beta and tau a channel.

    Args:
        threshold: whether the thresholded linear unit follows; without it there is no tau.

    Raises:
        UserError: the inputs have no spatial axis.
    """

    threshold: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim < 3:
            raise UserError(f"filter response normalisation needs (B, *spatial, C) inputs, not {x.shape}")
        weights = lambda name, init: self.param(name, init, x.shape[-1:])
        gamma, beta = weights("gamma", nn.initializers.ones), weights("beta", nn.initializers.zeros)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # half precision cannot hold squares
        mean_square = jnp.mean(jnp.square(wide), tuple(range(1, x.ndim - 1)), keepdims=True)
        y = gamma * (wide * jax.lax.rsqrt(mean_square + EPSILON)).astype(x.dtype) + beta
        if not self.threshold:
            return y
        tau = weights("tau", nn.initializers.zeros)
        return tau + nn.relu(y - tau)  # max(y, tau), whose own gradient is lost where XLA computes y twice
