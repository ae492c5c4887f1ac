r"""SWAG: a Gaussian around the average of SGD's iterates, with their covariance.

    q(w) = N(mean, (diag(E w^2 - mean^2) + D D^T / (K - 1)) / 2),      D: the last K deviations from the mean

Iterates of a constant learning rate wander around an optimum; how far is taken for the posterior's width.
That it depends on learning rate and batch size, and not on the data alone, is the approximation (Maddox et
al., arXiv:1902.02476). The first steps are plain MAP. The learning rate is constant, whatever the schedule of
other methods.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bnn_jax import optimizers
from bnn_jax.trees import normal_like
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError


class SwagState(NamedTuple):
    params: Params
    optimizer: Any
    mean: Params  # of the iterates that were taken
    square: Params  # mean squared deviation from `mean`
    deviations: Params | None  # leaves (rank, ...), the last ones; None in the diagonal form
    t: jax.Array  # () int32, steps taken
    taken: jax.Array  # () int32, iterates taken


def build(
    log_joint: Callable,
    num_data: int,
    num_steps: int,
    constant_optimizer: optax.GradientTransformation,
    start: float = 0.5,
    number: int = 40,
    rank: int = 20,
) -> Algorithm:
    """SWAG; before iterates were taken, draws are the current weights.

    Args:
        log_joint: (params, batch) -> (), nats on the full-data scale.
        num_data: N; the loss is divided by it.
        num_steps: of the whole run.
        constant_optimizer: any optax transformation whose learning rate does not fall: the iterates of one
            that does stand still in the end, and tell no width.
        start: share of the steps before the first iterate is taken.
        number: iterates, evenly over the rest.
        rank: K; 0 is the diagonal form, whose variance is not halved.

    Raises:
        UserError: a setting out of range, or fewer steps than iterates.
    """
    if not 0 <= start < 1:
        raise UserError(f"SWAG's start must lie in [0, 1), not {start}")
    if number < 2 or not (rank == 0 or 2 <= rank <= number):
        raise UserError(f"SWAG needs 2 iterates or more and rank 0 or 2 to {number}, not {number} and {rank}")
    first = int(start * num_steps)
    period = (num_steps - first) // number
    if period < 1:
        raise UserError(f"{num_steps - first} steps from SWAG's start on are too few for {number} iterates")

    def init(key: Key, params: Params) -> SwagState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        deviations = jax.tree.map(lambda a: jnp.zeros((rank, *a.shape), a.dtype), params) if rank else None
        count = jnp.zeros((), jnp.int32)
        return SwagState(params, constant_optimizer.init(params), params, zeros, deviations, count, count)

    def step(key: Key, state: SwagState, batch: Batch) -> tuple[SwagState, Info]:
        objective = lambda params: log_joint(params, batch)
        params, opt_state, info = optimizers.ascend(
            objective, num_data, constant_optimizer, state.params, state.optimizer
        )
        t = state.t + 1
        take = (t > first) & ((t - first) % period == 0) & (state.taken < number)
        n = state.taken + take
        share = jnp.where(take, 1 / jnp.maximum(n, 1), 0.0)
        # Welford: squares of weights in float32 would lose the variance. A mean of two terms that are not
        # negative, unlike c (w - mean): rounding would make the variance of a weight at rest negative.
        change = jax.tree.map(lambda w, m: w - m, params, state.mean)
        mean = jax.tree.map(lambda m, c: m + share * c, state.mean, change)
        square = jax.tree.map(lambda s, c: (1 - share) * (s + share * c**2), state.square, change)
        deviations = state.deviations
        if rank:
            slot = (n - 1) % rank
            put = lambda d, w, m: jnp.where(take, d.at[slot].set(w - m), d)
            deviations = jax.tree.map(put, deviations, params, mean)
        return SwagState(params, opt_state, mean, square, deviations, t, n), info

    def sample(key: Key, state: SwagState) -> Params:
        key_diagonal, key_rank = jax.random.split(key)
        noise = normal_like(key_diagonal, state.mean)
        half = 0.5 if rank else 1.0
        draw = jax.tree.map(lambda m, s, e: m + jnp.sqrt(half * s) * e, state.mean, state.square, noise)
        if rank:
            weights = jax.random.normal(key_rank, (rank,)) / jnp.sqrt(2.0 * (rank - 1))
            draw = jax.tree.map(lambda w, d: w + jnp.tensordot(weights, d, 1), draw, state.deviations)
        return jax.tree.map(lambda w, now: jnp.where(state.taken > 0, w, now), draw, state.params)

    return Algorithm(init, step, sample, whole=True)
