r"""Mean-field Gaussian: q(w) = prod_i N(w_i; mean_i, std_i^2), std = softplus(rho).

KL to a Gaussian prior N(m, s^2), summed over weights, in nats:

    KL(q || p) = sum_i log(s_i / std_i) + (std_i^2 + (mean_i - m_i)^2) / (2 s_i^2) - 1/2.

The one approximation is the family itself: correlations between weights are dropped, which makes the
standard deviations those of the conditionals rather than of the marginals (Blundell et al.,
arXiv:1505.05424).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from bnn_jax.posteriors import prior_moments, rho_like
from bnn_jax.trees import normal_like, tree_sum
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
        return phi.mean, jax.tree.map(jax.nn.softplus, phi.rho)

    def sample(key: Key, phi: MeanField) -> Params:
        mean, std = moments(phi)
        return jax.tree.map(lambda m, s, e: m + s * e, mean, std, normal_like(key, mean))

    def log_prob(phi: MeanField, params: Params) -> jax.Array:
        return tree_sum(jax.tree.map(norm.logpdf, params, *moments(phi)))

    def kl(phi: MeanField, prior: Prior) -> jax.Array:
        mean, std = moments(phi)
        return tree_sum(jax.tree.map(_kl_normal, mean, std, *prior_moments(prior, mean)))

    return Posterior(init, sample, log_prob, kl, moments)


def _kl_normal(mean, std, prior_mean, prior_std):
    ratio = std / prior_std
    return 0.5 * (ratio**2 + ((mean - prior_mean) / prior_std) ** 2 - 1) - jnp.log(ratio)
