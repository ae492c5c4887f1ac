"""Maximum a posteriori: the mode of the posterior, by stochastic gradients.

    maximise (1/N) log p(w, D)

One draw and no uncertainty: the baseline, and where the chains of HMC and the means of VI start.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from bnn_jax import optimizers
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
        objective = lambda params: log_joint(params, batch)
        *new, info = optimizers.ascend(objective, num_data, optimizer, *state)
        return MapState(*new), info

    return Algorithm(init, step, sample=lambda key, state: state.params, point=True)
