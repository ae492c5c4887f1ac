r"""MC dropout: a posterior whose weights are there or not, unit by unit.

    q(w): w_l = diag(z_l) M_l / (1 - rate),   z_lj ~ Bernoulli(1 - rate) one an input unit of layer l
    maximise (1/N) E_q log p(w, D)            over M

The inputs of all layers but the first are dropped, of a convolution whole channels. The objective is the ELBO
without the entropy of q, which does not depend on M; a Gaussian prior becomes weight decay. One mask a step
serves the whole batch, so that a draw is a network like any other, and gradients are noisier than with a mask
an example. The rate is not learned: it, and not the data, sets how wide q is (Gal & Ghahramani,
arXiv:1506.02142; Osband, "Risk versus uncertainty in deep learning", 2016).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnn_jax import optimizers
from bnn_jax.trees import at, put
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError


class DropoutState(NamedTuple):
    params: Params  # M
    optimizer: Any


def build(
    log_joint: Callable,
    layers: Sequence[tuple[str, ...]],
    num_data: int,
    optimizer: optax.GradientTransformation,
    rate: float = 0.2,
) -> Algorithm:
    """MC dropout.

    Args:
        log_joint: (params, batch) -> (), nats on the full-data scale.
        layers: paths of the dense and convolutional layers in the order of their calls; see `ops.layers`.
        num_data: N; the loss is divided by it, so that learning rates do not depend on N.
        optimizer: any optax transformation.
        rate: probability that a unit is dropped.

    Raises:
        UserError: `rate` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise UserError(f"the rate of dropout must lie in [0, 1), not {rate}")

    def drop(key: Key, params: Params) -> Params:
        later = layers[1:]
        if not later:
            return params
        ends = np.cumsum([at(params, (*path, "kernel")).shape[-2] for path in later])
        kept = jax.random.bernoulli(key, 1 - rate, (int(ends[-1]),))  # one draw: compiles faster than many
        for path, units in zip(later, jnp.split(kept, ends[:-1]), strict=True):
            masked = jnp.where(units[:, None], at(params, (*path, "kernel")) / (1 - rate), 0)
            params = put(params, (*path, "kernel"), masked)
        return params

    def init(key: Key, params: Params) -> DropoutState:
        return DropoutState(params, optimizer.init(params))

    def step(key: Key, state: DropoutState, batch: Batch) -> tuple[DropoutState, Info]:
        objective = lambda params: log_joint(drop(key, params), batch)
        *new, info = optimizers.ascend(objective, num_data, optimizer, *state)
        return DropoutState(*new), info

    return Algorithm(init, step, sample=lambda key, state: drop(key, state.params), point=rate == 0)
