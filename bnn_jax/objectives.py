r"""The objectives: log joint and evidence lower bound. The one place where N, the number of data, appears.

    log joint   log p(w) + N mean_b log p(y_b | x_b, w)
    ELBO        N mean_b E_q log p(y_b | x_b, w) - beta KL(q || p)

Both are on the scale of the full data, in nats, and unbiased over minibatches. The KL weight beta is explicit
and 1 by default. So is the temperature T of a posterior p(w | D)^(1/T), below 1 a cold one: `tempered` makes
p(w)^(1/T) and p(y | x, w)^(1/T) of prior and likelihood, whose posterior any method finds as it does at T = 1
(arXiv:2002.02405). Neither is ever folded into N.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from bnn_jax import pieces
from bnn_jax.trees import tree_sum
from bnn_jax.types import (
    Batch,
    Estimator,
    Info,
    Key,
    Likelihood,
    Params,
    Posterior,
    Prior,
    UserError,
    positive,
)


def tempered(prior: Prior, likelihood: Likelihood, temperature: float) -> tuple[Prior, Likelihood]:
    """Prior and likelihood whose posterior is p(w | D)^(1/T), that of the given ones at temperature T.

    A Gaussian prior N(m, s^2) becomes N(m, T s^2), normalised. The density of another is p(w)^(1/T) up to a
    constant, and it cannot be sampled. Predictions are not tempered: `mean` and `noise` stay.

    Raises:
        UserError: T is not positive, or later a draw of such a prior.
    """
    positive("temperature", temperature)
    if temperature == 1:
        return prior, likelihood
    root = temperature**0.5
    divided = lambda f, by: lambda *args: f(*args) / by
    changes = {"log_prob": divided(likelihood.log_prob, temperature)}
    if likelihood.fisher_root is not None:
        changes["fisher_root"] = divided(likelihood.fisher_root, root)
    likelihood = likelihood._replace(**changes)
    if prior.moments is None:
        return prior._replace(sample=_refuse, log_prob=divided(prior.log_prob, temperature)), likelihood

    def moments(like: Params) -> tuple[Params, Params]:
        mean, std = prior.moments(like)
        return mean, jax.tree.map(lambda s: root * s, std)

    def sample(key: Key, like: Params) -> Params:
        mean, _ = prior.moments(like)
        return jax.tree.map(lambda w, m: m + root * (w - m), prior.sample(key, like), mean)

    def log_prob(params: Params) -> jax.Array:
        return tree_sum(jax.tree.map(norm.logpdf, params, *moments(params)))

    scale = lambda like: jax.tree.map(lambda s: root * s, prior.scale(like))
    return Prior(sample, log_prob, scale, moments), likelihood


def log_joint(
    apply: Callable, prior: Prior, likelihood: Likelihood, num_data: int
) -> Callable[[Params, Batch], jax.Array]:
    """The log of p(w) p(D | w): the target of MAP and of every Monte Carlo method.

    Args:
        apply: (params, x) -> outputs.
        num_data: N, the number of training examples that the posterior is for.

    Returns:
        (params, batch) -> (), nats. With the full data as the batch it is exact.

    Raises:
        UserError: N is not positive.
    """
    positive("num_data", num_data)

    def log_likelihood(params: Params, batch: Batch) -> jax.Array:
        return likelihood.log_prob(apply(params, batch.x), batch.y)

    def target(params: Params, batch: Batch) -> jax.Array:
        total = pieces.total(log_likelihood, params, batch)
        return prior.log_prob(params) + num_data / len(batch.x) * total

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
    positive("num_data", num_data)
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


def _refuse(key, like):
    raise UserError("a tempered prior that is not Gaussian cannot be sampled")
