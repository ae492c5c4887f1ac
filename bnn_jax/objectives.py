r"""The objectives: log joint and evidence lower bound. The one place where N, the number of data, appears.

    log joint   log p(w) / T + N / T mean_b log p(y_b | x_b, w)
    ELBO        N mean_b E_q log p(y_b | x_b, w) - beta KL(q || p)

Both are on the scale of the full data, in nats, and unbiased over minibatches. The temperature T and
the KL weight beta are explicit and 1 by default; neither is ever folded into N.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bnn_jax.types import Batch, Estimator, Info, Key, Likelihood, Params, Posterior, Prior, UserError


def log_joint(
    apply: Callable, prior: Prior, likelihood: Likelihood, num_data: int, temperature: float = 1.0
) -> Callable[[Params, Batch], jax.Array]:
    """The log of p(w) p(D | w), tempered: the target of MAP and of every Monte Carlo method.

    Args:
        apply: (params, x) -> outputs.
        num_data: N, the number of training examples that the posterior is for.
        temperature: T; 1 is Bayes' rule, below 1 is a cold posterior.

    Returns:
        (params, batch) -> (), nats. With the full data as the batch it is exact.

    Raises:
        UserError: N or T is not positive.
    """
    _positive(num_data, "num_data")
    _positive(temperature, "temperature")

    def target(params: Params, batch: Batch) -> jax.Array:
        log_likelihood = num_data * jnp.mean(likelihood.log_prob(apply(params, batch.x), batch.y))
        return (prior.log_prob(params) + log_likelihood) / temperature

    return target


def elbo(
    estimator: Estimator,
    posterior: Posterior,
    prior: Prior,
    likelihood: Likelihood,
    num_data: int,
    kl: str = "closed_form",
) -> Callable[[Key, Params, Batch, jax.Array | float], tuple[jax.Array, Info]]:
    """The evidence lower bound of a variational family.

    Args:
        estimator: how the distribution over weights passes through the network.
        num_data: N.
        kl: "closed_form", or "monte_carlo": mean over the weight samples of log q(w) - log p(w), at the
            samples that the forward pass used where the estimator draws weights, else at own draws.

    Returns:
        (key, phi, batch, beta) -> (ELBO in nats on the full-data scale, info). `info` keeps `nll`
        (nats per example) and `kl` (nats, unweighted) apart.

    Raises:
        UserError: N is not positive, `kl` is unknown, or family and prior have no closed form.
    """
    _positive(num_data, "num_data")
    if kl not in ("closed_form", "monte_carlo"):
        raise UserError(f"unknown kl {kl!r}: choose from closed_form, monte_carlo")
    if kl == "closed_form" and posterior.kl is None:
        raise UserError("this posterior family has no closed-form KL; use kl='monte_carlo'")
    if kl == "closed_form" and prior.moments is None:
        raise UserError("the closed-form KL needs a Gaussian prior; use kl='monte_carlo'")

    def divergence(key, phi, weights):
        if kl == "closed_form":
            return posterior.kl(phi, prior)
        if weights is None:
            weights = jax.tree.map(lambda a: a[None], posterior.sample(key, phi))
        return jnp.mean(jax.vmap(lambda w: posterior.log_prob(phi, w) - prior.log_prob(w))(weights))

    def bound(key: Key, phi: Params, batch: Batch, beta: jax.Array | float = 1.0) -> tuple[jax.Array, Info]:
        key_net, key_kl = jax.random.split(key)
        outputs, weights = estimator(key_net, phi, batch.x)
        nll = -jnp.mean(jax.vmap(lambda o: likelihood.log_prob(o, batch.y))(outputs))
        kl_value = divergence(key_kl, phi, weights)
        value = -num_data * nll - beta * kl_value
        return value, {"elbo": value, "nll": nll, "kl": kl_value}

    return bound


def _positive(value, name):
    if not value > 0:
        raise UserError(f"{name} must be positive, not {value}")
