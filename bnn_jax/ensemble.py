"""Ensembles of any method: members, seeds or restarts as one vmapped algorithm.

Every member sees the same batch and has its own key, start and state; nothing is shared, so that the
program splits over devices without communication (Lakshminarayanan et al., arXiv:1612.01474).
"""

import jax

from bnn_jax import ops
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError


def build(algorithm: Algorithm, size: int) -> Algorithm:
    """`size` independent copies of `algorithm`; params, states and infos get a leading axis.

    Raises:
        UserError: `size` is below 1.
    """
    if size < 1:
        raise UserError(f"an ensemble needs at least one member, not {size}")

    def init(key: Key, params: Params):
        return jax.vmap(algorithm.init)(jax.random.split(key, size), params)

    def step(key: Key, state, batch: Batch) -> tuple[object, Info]:
        keys = jax.random.split(key, size)
        return jax.vmap(ops.in_loop(algorithm.step), in_axes=(0, 0, None))(keys, state, batch)

    def sample(key: Key, state) -> Params:
        return jax.vmap(algorithm.sample)(jax.random.split(key, size), state)

    # The density of all members together is no member's.
    return algorithm._replace(init=init, step=step, sample=sample, log_prob=None)
