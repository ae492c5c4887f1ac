"""Gaussian: y ~ N(mean, sigma^2), the noise known, learned or depending on the input.

Known:            sigma is given, the network has one output.
Input-dependent:  the network has two outputs, the mean and log sigma (Nix & Weigend 1994).
Learned:          one sigma for all inputs, itself a parameter with prior and posterior: wrap the
                  network in `LearnedNoise`, which gives it the second output.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from bnn_jax.likelihoods import require_outputs, squeeze
from bnn_jax.types import Likelihood, positive


def build(sigma: float | None = None) -> Likelihood:
    """Targets are floats (B,).

    Args:
        sigma: the known noise, for outputs (B,) or (B, 1); None for outputs (B, 2): mean, log sigma.

    Raises:
        UserError: `sigma` is not positive.
    """
    if sigma is not None:
        positive("the noise sigma", sigma)

    def mean_sigma(outputs):
        if sigma is not None:
            mean = squeeze(outputs)
            return mean, jnp.full_like(mean, sigma)
        require_outputs(outputs, "(B, 2)", outputs.ndim == 2 and outputs.shape[1] == 2)
        return outputs[:, 0], jnp.exp(outputs[:, 1])

    def fisher_root(outputs, y):
        if sigma is not None:
            return jnp.full((1, *outputs.shape), 1 / sigma, outputs.dtype)
        of_mean = jnp.stack([jnp.exp(-outputs[:, 1]), jnp.zeros_like(outputs[:, 0])], -1)
        return jnp.stack([of_mean, jnp.zeros_like(outputs).at[:, 1].set(math.sqrt(2))])

    return Likelihood(
        log_prob=lambda outputs, y: norm.logpdf(y, *mean_sigma(outputs)),
        mean=lambda outputs: mean_sigma(outputs)[0],
        noise=lambda outputs: mean_sigma(outputs)[1] ** 2,
        task="regression",
        fisher_root=fisher_root,
    )


class LearnedNoise(nn.Module):
    """`net` with the output log sigma beside its own: one more parameter, `log_sigma`, shared by all
    inputs. Works with every estimator and method, since it is a linen module like any other."""

    net: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, ...) -> (B, 2): mean, log sigma."""
        mean = squeeze(self.net(x))
        log_sigma = self.param("log_sigma", nn.initializers.zeros_init(), ())
        return jnp.stack([mean, jnp.broadcast_to(log_sigma, mean.shape)], -1)
