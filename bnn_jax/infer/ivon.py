r"""IVON: mean-field Gaussian VI by natural gradients, at the price of Adam.

    q(w) = N(mean, sigma^2),   sigma^2 = 1 / (N (h + delta)),   delta = 1 / (N s^2) of a prior N(m_0, s^2)
    w ~ q,  g^ = grad l(w),  h^ = g^ (w - mean) / sigma^2            l: mean negative log likelihood
    g <- beta1 g + (1 - beta1) g^
    h <- beta2 h + (1 - beta2) h^ + (1 - beta2)^2 (h - h^)^2 / (2 (h + delta))
    mean <- mean - alpha (g / (1 - beta1^t) + delta (mean - m_0)) / (h + delta)

Beside mean field itself nothing is approximated: h^ estimates E_q of the Hessian's diagonal without a second
derivative, and the last term of h keeps h + delta positive (Shen et al., arXiv:2402.17641).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

from bnn_jax import estimators
from bnn_jax.trees import normal_like, tree_sum
from bnn_jax.types import Algorithm, Batch, Info, Key, Likelihood, Params, Prior, UserError, positive


class IvonState(NamedTuple):
    mean: Params
    hess: Params  # h, the likelihood's part of the precision, a share of an example
    momentum: Params
    t: jax.Array  # () int32, steps taken


def build(
    apply: Callable,
    likelihood: Likelihood,
    prior: Prior,
    num_data: int,
    num_steps: int,
    num_samples: int = 1,
    learning_rate: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.9999,
    hess_init: float = 1.0,
) -> Algorithm:
    """IVON; the learning rate falls to 0 along a cosine.

    Args:
        apply: (params, x) -> outputs.
        prior: a Gaussian one.
        num_data: N.
        num_steps: of the whole run.
        num_samples: weights drawn a step, whose gradients are averaged.
        beta1, beta2: decays of gradient and Hessian.
        hess_init: h at the start; the smaller, the wider q begins.

    Raises:
        UserError: a prior that is not Gaussian, or a setting out of range.
    """
    if prior.moments is None:
        raise UserError("IVON needs a Gaussian prior")
    if num_samples < 1:
        raise UserError(f"IVON needs at least one sample a step, not {num_samples}")
    positive("IVON's learning_rate", learning_rate)
    positive("IVON's hess_init", hess_init)
    if not (0 <= beta1 < 1 and 0 < beta2 < 1):
        raise UserError(f"IVON's beta1 and beta2 must lie between 0 and 1, not {beta1} and {beta2}")
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)

    def moments(params: Params) -> tuple[Params, Params]:
        mean, std = prior.moments(params)
        return mean, jax.tree.map(lambda s: 1 / (num_data * jnp.square(s)), std)

    def width(state: IvonState) -> Params:
        delta = moments(state.mean)[1]
        return jax.tree.map(lambda h, d: 1 / jnp.sqrt(num_data * (h + d)), state.hess, delta)

    def init(key: Key, params: Params) -> IvonState:
        hess = jax.tree.map(lambda a: jnp.full_like(a, hess_init), params)
        return IvonState(params, hess, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))

    def step(key: Key, state: IvonState, batch: Batch) -> tuple[IvonState, Info]:
        std = width(state)

        def loss(params):
            return -jnp.mean(likelihood.log_prob(apply(params, batch.x), batch.y))

        def one(key):
            away = jax.tree.map(jnp.multiply, std, normal_like(key, std))
            value, grads = jax.value_and_grad(loss)(jax.tree.map(jnp.add, state.mean, away))
            return value, grads, jax.tree.map(lambda g, a, s: g * a / s**2, grads, away, std)

        each = estimators.over_samples(one, jax.random.split(key, num_samples))
        value, grads, hess = jax.tree.map(lambda a: a.mean(0), each)
        momentum = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.momentum, grads)
        unbiased = 1 / (1 - beta1 ** (state.t + 1))
        prior_mean, delta = moments(state.mean)
        rate = schedule(state.t)

        def newer(h, seen, d):
            return h + (1 - beta2) * (seen - h) + 0.5 * (1 - beta2) ** 2 * (h - seen) ** 2 / (h + d)

        new_hess = jax.tree.map(newer, state.hess, hess, delta)
        mean = jax.tree.map(
            lambda m, g, h, d, m0: m - rate * (unbiased * g + d * (m - m0)) / (h + d),
            state.mean,
            momentum,
            new_hess,
            delta,
            prior_mean,
        )
        return IvonState(mean, new_hess, momentum, state.t + 1), {"nll": value}

    def sample(key: Key, state: IvonState) -> Params:
        noise = normal_like(key, state.mean)
        return jax.tree.map(lambda m, s, e: m + s * e, state.mean, width(state), noise)

    def log_prob(state: IvonState, params: Params) -> jax.Array:
        return tree_sum(jax.tree.map(norm.logpdf, params, state.mean, width(state)))

    return Algorithm(init, step, sample, log_prob=log_prob)
