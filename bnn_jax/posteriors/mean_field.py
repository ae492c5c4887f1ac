r"""Mean-field Gaussian: q(w) = prod_i N(w_i; mean_i, std_i^2), std = softplus(rho).

KL to a Gaussian prior N(m, s^2), summed over weights, in nats:

    KL(q || p) = sum_i log(s_i / std_i) + (std_i^2 + (mean_i - m_i)^2) / (2 s_i^2) - 1/2.

The one approximation is the family itself: correlations between weights are dropped, which makes the
standard deviations those of the conditionals rather than of the marginals (Blundell et al.,
arXiv:1505.05424).

What is done to every weight alone is done to all of them as one vector: XLA's CPU backend compiles a kernel
for each array, and ten layers in a dozen operations take it longer than the network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

from bnn_jax.posteriors import prior_moments, rho_like
from bnn_jax.trees import normal_like
from bnn_jax.types import Key, Params, Posterior, Prior, positive


class MeanField(NamedTuple):
    """phi: two pytrees in the structure of the weights."""

    mean: Params
    rho: Params  # std = softplus(rho)


def build(init_std: float = 0.01) -> Posterior:
    """Mean-field Gaussian, starting at `mean = params` and `std = init_std` for every weight.

    A small start keeps the first steps near those of the deterministic network; large ones are the
    usual reason for a network that does not train.

    Raises:
        UserError: `init_std` is not positive.
    """
    init_std = positive("the posterior's init_std", init_std)

    def init(params: Params) -> MeanField:
        return MeanField(params, rho_like(params, init_std))

    def moments(phi: MeanField) -> tuple[Params, Params]:
        _, std, to_params = _vectors(phi)
        return phi.mean, to_params(std)

    def sample(key: Key, phi: MeanField) -> Params:
        mean, std, to_params = _vectors(phi)
        return to_params(mean + std * _vector(normal_like(key, phi.mean)))

    def log_prob(phi: MeanField, params: Params) -> jax.Array:
        mean, std, _ = _vectors(phi)
        return jnp.sum(norm.logpdf(_vector(params), mean, std))

    def kl(phi: MeanField, prior: Prior) -> jax.Array:
        mean, std, _ = _vectors(phi)
        # The barrier keeps the compiler from making one large constant of a prior's few numbers.
        centre, scale = jax.lax.optimization_barrier(prior_moments(prior, phi.mean))
        return jnp.sum(_kl_normal(mean, std, _vector(centre), _vector(scale)))

    return Posterior(init, sample, log_prob, kl, moments)


def _vectors(phi):
    """Means and standard deviations of all weights, (P,) each, and the way back to a pytree."""
    mean, to_params = ravel_pytree(phi.mean)
    return mean, jax.nn.softplus(_vector(phi.rho)), to_params


def _vector(tree):
    return ravel_pytree(tree)[0]


def _kl_normal(mean, std, prior_mean, prior_std):
    ratio = std / prior_std
    return 0.5 * (ratio**2 + ((mean - prior_mean) / prior_std) ** 2 - 1) - jnp.log(ratio)
