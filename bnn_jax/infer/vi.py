r"""Variational inference: maximise the ELBO over the parameters phi of a family q_phi(w).

    maximise (1/N) [ N mean_b E_q log p(y_b | x_b, w) - beta KL(q || p) ]

The gradient is unbiased over minibatches and weight samples (reparameterised). beta < 1 warms the KL
up; at beta = 1 the objective bounds the log evidence (Blundell et al., arXiv:1505.05424).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bnn_jax.types import Algorithm, Batch, Info, Key, Params, Posterior


class VIState(NamedTuple):
    phi: Any
    optimizer: Any
    t: jax.Array  # () int32, steps taken: the schedule of beta


def build(
    elbo: Callable,
    posterior: Posterior,
    num_data: int,
    optimizer: optax.GradientTransformation,
    beta: float | Callable = 1.0,
) -> Algorithm:
    """VI with any family and estimator.

    Args:
        elbo: (key, phi, batch, beta) -> (ELBO in nats on the full-data scale, info); see `objectives.elbo`.
        num_data: N; the loss is divided by it, so that learning rates do not depend on N.
        optimizer: any optax transformation.
        beta: the KL weight, or a schedule t -> weight such as `optax.linear_schedule(0, 1, 500)`.
    """
    schedule = beta if callable(beta) else lambda t: beta

    def init(key: Key, params: Params) -> VIState:
        phi = posterior.init(params)
        return VIState(phi, optimizer.init(phi), jnp.zeros((), jnp.int32))

    def step(key: Key, state: VIState, batch: Batch) -> tuple[VIState, Info]:
        weight = jnp.asarray(schedule(state.t), jnp.float32)

        def loss(phi):
            value, info = elbo(key, phi, batch, weight)
            return -value / num_data, info

        (_, info), grads = jax.value_and_grad(loss, has_aux=True)(state.phi)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.phi)
        phi = optax.apply_updates(state.phi, updates)
        return VIState(phi, opt_state, state.t + 1), {**info, "beta": weight}

    return Algorithm(
        init,
        step,
        sample=lambda key, state: posterior.sample(key, state.phi),
        log_prob=lambda state, params: posterior.log_prob(state.phi, params),
    )
