r"""Gaussian with low-rank plus diagonal covariance over all weights: w = mean + std (e + sum_k z_k v_k).

    q(w) = N(w; mean, D (I + V V^T) D),      D = diag(std), std = softplus(rho),      V: (P, K)
    log |cov| = 2 sum log std + log |M|,   M = I + V^T V                (matrix determinant lemma)
    r^T cov^-1 r = |s|^2 - |L^-1 V^T s|^2,   s = r / std,  M = L L^T    (Woodbury)

KL to an independent Gaussian prior in closed form. What mean field lacks, directions in which many weights
move together, is here for K of them; the price is K + 2 numbers a weight. V starts at 0, a saddle point that
the noise of the gradients leaves at once. It counts in units of std: added to the weights as it is, the steps
that Adam makes of that noise outgrow the stds of a large net, and it ends at the prior. (Ong et al.,
arXiv:1701.03208; Mishkin et al., arXiv:1811.04504)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from bnn_jax.posteriors import cross_term, prior_moments, rho_like
from bnn_jax.trees import normal_like, size, tree_sum
from bnn_jax.types import Key, Params, Posterior, Prior, UserError, positive


class LowRank(NamedTuple):
    """phi."""

    mean: Params
    rho: Params  # std = softplus(rho)
    directions: Params  # V, leaves (K, ...)


def build(init_std: float = 0.01, rank: int = 5) -> Posterior:
    """The family, starting at `mean = params`, `std = init_std` and V = 0.

    Raises:
        UserError: `init_std` is not positive, or `rank` below 1.
    """
    init_std = positive("the posterior's init_std", init_std)
    if rank < 1:
        raise UserError(f"the posterior's rank must be at least 1, not {rank}")

    def init(params: Params) -> LowRank:
        directions = jax.tree.map(lambda a: jnp.zeros((rank, *a.shape), a.dtype), params)
        return LowRank(params, rho_like(params, init_std), directions)

    def sample(key: Key, phi: LowRank) -> Params:
        key_each, key_common = jax.random.split(key)
        common = jax.random.normal(key_common, (rank,))
        move = lambda m, r, e, v: m + jax.nn.softplus(r) * (e + jnp.tensordot(common, v, 1))
        return jax.tree.map(move, phi.mean, phi.rho, normal_like(key_each, phi.mean), phi.directions)

    def log_prob(phi: LowRank, params: Params) -> jax.Array:
        std = jax.tree.map(jax.nn.softplus, phi.rho)
        away = jax.tree.map(lambda w, m, s: (w - m) / s, params, phi.mean, std)
        chol = _inner(phi.directions)
        along = jax.tree.map(lambda v, s: v.reshape(rank, -1) @ s.ravel(), phi.directions, away)
        squares = tree_sum(jax.tree.map(jnp.square, away))
        squares -= jnp.sum(solve_triangular(chol, sum(jax.tree.leaves(along)), lower=True) ** 2)
        return -0.5 * (squares + size(away) * jnp.log(2 * jnp.pi)) - _half_log_det(std, chol)

    def kl(phi: LowRank, prior: Prior) -> jax.Array:
        std = jax.tree.map(jax.nn.softplus, phi.rho)
        variance = jax.tree.map(lambda s, v: s**2 * (1 + jnp.sum(v**2, 0)), std, phi.directions)
        each = jax.tree.map(cross_term, variance, phi.mean, *prior_moments(prior, phi.mean))
        return tree_sum(each) - _half_log_det(std, _inner(phi.directions))

    return Posterior(init, sample, log_prob, kl)


def _inner(directions):
    """The Cholesky factor of M = I + V^T V."""
    flat = [v.reshape(v.shape[0], -1) for v in jax.tree.leaves(directions)]
    gram = sum(v @ v.T for v in flat)
    return jnp.linalg.cholesky(jnp.eye(len(gram)) + gram)


def _half_log_det(std, chol):
    return tree_sum(jax.tree.map(jnp.log, std)) + jnp.sum(jnp.log(jnp.diagonal(chol)))
