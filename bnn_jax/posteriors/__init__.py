"""Variational families q_phi(w), one a file, each `build(...) -> Posterior`."""

import jax
import jax.numpy as jnp

from bnn_jax.types import Params, Prior, UserError


def rho_like(params: Params, std: float) -> Params:
    """softplus^-1(std) for every weight: std = softplus(rho)."""
    rho = std + jnp.log(-jnp.expm1(-std))
    return jax.tree.map(lambda a: jnp.full_like(a, rho), params)


def prior_moments(prior: Prior, like: Params) -> tuple[Params, Params]:
    """Mean and standard deviation of a Gaussian prior's weights.

    Raises:
        UserError: it is not Gaussian.
    """
    if prior.moments is None:
        raise UserError("the closed-form KL needs a Gaussian prior; use kl='monte_carlo'")
    return prior.moments(like)


def cross_term(variance, mean, prior_mean, prior_std) -> jax.Array:
    """KL of Gaussian weights with these marginals to N(prior_mean, prior_std^2), each, but for half the
    logarithm of q's determinant, nats."""
    return 0.5 * ((variance + (mean - prior_mean) ** 2) / prior_std**2 - 1) + jnp.log(prior_std)
