r"""Matrix-normal Gaussian, one a layer: W = M + A E B^T with E standard normal.

    q(W) = MN(W; M, A A^T, B B^T),      cov(vec W) = B B^T (x) A A^T,      W: (inputs, outputs)
    KL = sum_ij ((A A^T)_ii (B B^T)_jj + (M - m)_ij^2) / (2 s_ij^2) - 1/2 + log s_ij
         - outputs log |A| - inputs log |B|              to an independent Gaussian prior N(m, s^2)

A and B are lower triangular with diagonals exp(.): within a layer all weights are correlated, over inputs in
the same way for every output and the other way round; between layers they are not. A convolution's inputs are
window and channels; leaves of fewer than two axes are independent. The price is inputs^2 + outputs^2 numbers
a layer. (Louizos & Welling, arXiv:1603.04733)
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from bnn_jax.posteriors import cross_term, prior_moments
from bnn_jax.trees import normal_like, tree_sum
from bnn_jax.types import Key, Params, Posterior, Prior, positive


class Kronecker(NamedTuple):
    """phi: pytrees in the structure of the weights."""

    mean: Params
    rows: Params  # (inputs, inputs): A, with the logarithm of its diagonal; (1, 1) where there is one axis
    columns: Params  # (outputs, outputs): B likewise; where there is one axis (size,), logarithms


def build(init_std: float = 0.01) -> Posterior:
    """The family, starting at M = params with independent weights of standard deviation `init_std`.

    Raises:
        UserError: `init_std` is not positive.
    """
    half = 0.5 * math.log(positive("the posterior's init_std", init_std))

    def init(params: Params) -> Kronecker:
        rows = jax.tree.map(lambda a: half * jnp.eye(_matrix(a).shape[0]), params)
        columns = jax.tree.map(
            lambda a: half * jnp.eye(a.shape[-1]) if a.ndim > 1 else jnp.full(a.size, half), params
        )
        return Kronecker(params, rows, columns)

    def sample(key: Key, phi: Kronecker) -> Params:
        def one(mean, rows, columns, noise):
            a, b = _factors(rows, columns)
            return mean + (a @ _matrix(noise) @ b.T).reshape(mean.shape)

        return jax.tree.map(one, *phi, normal_like(key, phi.mean))

    def log_prob(phi: Kronecker, params: Params) -> jax.Array:
        def one(mean, rows, columns, w):
            a, b = _factors(rows, columns)
            left = solve_triangular(a, _matrix(w - mean), lower=True)
            white = solve_triangular(b, left.T, lower=True)
            squares = 0.5 * jnp.sum(white**2) + 0.5 * mean.size * math.log(2 * math.pi)
            return -squares - _half_log_det(a, b)

        return tree_sum(jax.tree.map(one, *phi, params))

    def kl(phi: Kronecker, prior: Prior) -> jax.Array:
        def one(mean, rows, columns, prior_mean, prior_std):
            a, b = _factors(rows, columns)
            variance = jnp.outer(jnp.sum(a**2, 1), jnp.sum(b**2, 1)).reshape(mean.shape)
            return jnp.sum(cross_term(variance, mean, prior_mean, prior_std)) - _half_log_det(a, b)

        return tree_sum(jax.tree.map(one, *phi, *prior_moments(prior, phi.mean)))

    return Posterior(init, sample, log_prob, kl)


def _matrix(leaf):
    """(inputs, outputs); (1, size) of fewer than two axes."""
    return leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim > 1 else leaf.reshape(1, -1)


def _factors(rows, columns):
    """A and B."""
    lower = lambda raw: jnp.tril(raw, -1) + jnp.diag(jnp.exp(jnp.diagonal(raw)))
    return lower(rows), lower(columns) if columns.ndim > 1 else jnp.diag(jnp.exp(columns))


def _half_log_det(a, b):
    log_det = lambda x: jnp.sum(jnp.log(jnp.diagonal(x)))
    return len(b) * log_det(a) + len(a) * log_det(b)
