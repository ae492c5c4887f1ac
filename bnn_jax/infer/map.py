"""Maximum a posteriori: the mode of the posterior, by stochastic gradients.

    maximise (1/N) log p(w, D)

One draw and no uncertainty: the baseline, and where the chains of HMC and the means of VI start.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from bnn_jax.types import Algorithm, Batch, Info, Key, Params


class MapState(NamedTuple):
    params: Params
    optimizer: Any


def build(log_joint: Callable, num_data: int, optimizer: optax.GradientTransformation) -> Algorithm:
    """MAP.

    Args:
        log_joint: (params, batch) -> (), nats on the full-data scale.
        num_data: N; the loss is divided by it, so that learning rates do not depend on N.
        optimizer: any optax transformation.
    """

    def init(key: Key, params: Params) -> MapState:
        return MapState(params, optimizer.init(params))

    def step(key: Key, state: MapState, batch: Batch) -> tuple[MapState, Info]:
        def loss(params):
            return -log_joint(params, batch) / num_data

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        return MapState(optax.apply_updates(state.params, updates), opt_state), {
            "log_joint": -value * num_data
        }

    return Algorithm(init, step, sample=lambda key, state: state.params)
