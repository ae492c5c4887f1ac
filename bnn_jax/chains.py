"""Chains: `collect` runs them and streams their draws out, block by block.

Step t of chain c uses the key fold_in(fold_in(key, c), t), so that a run resumed after any block
continues as if it had not stopped.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bnn_jax import processes, sharding
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError


class Block(NamedTuple):
    """What `collect` streams: consecutive draws of all chains, and the state after them."""

    index: int
    draws: Params  # leaves (C, block_size, ...)
    trace: Info  # (C, block_size) each, means over the steps of a draw
    state: Any  # after the block: resume from here


def collect(
    key: Key,
    algorithm: Algorithm,
    starts: Params,
    data: Batch,
    *,
    num_warmup: int,
    num_draws: int,
    thin: int = 1,
    block_size: int = 20,
    mesh: Mesh | None = None,
    resume: tuple[int, Any] | None = None,
    progress: Callable[[int, Info], None] = lambda done, info: None,
) -> Iterator[Block]:
    """Run chains on the full data and yield their draws block by block; nothing is kept.

    Args:
        starts: one start a chain, leaves (C, ...).
        num_warmup: steps before the first draw, a multiple of `block_size`; their draws are dropped.
        num_draws: draws a chain, a multiple of `block_size`.
        thin: steps a draw.
        block_size: draws a chain in one block: the memory that a run needs.
        mesh: devices for the chains, its sample axis, and for the data of each, its data axis; None spreads
            the chains over the devices there are, and their data over those that are left.
        resume: (index, state) of the last block that was kept; its successors come next.
        progress: called with the number of steps done and the last trace, name -> (C,).

    Yields:
        `num_draws / block_size` blocks; after a resume, those that are missing.

    Raises:
        UserError: zero chains or draws, or sizes that do not divide.
    """
    chains = jax.tree.leaves(starts)[0].shape[0]
    check_blocks(chains, num_warmup, num_draws, thin, block_size)
    mesh = mesh or sharding.chain_mesh(chains)
    key_init, key_steps = jax.random.split(key)
    numbers = sharding.place(jnp.arange(chains), mesh, "sample")
    data = sharding.place_examples(jax.tree.map(jnp.asarray, data), mesh)

    def init(_, per_chain):
        number, start = per_chain
        return algorithm.init(jax.random.fold_in(key_init, number), start)

    def run(shared, per_chain):
        data, first, stride = shared
        data = sharding.constrain(data, None, "data")
        number, state = per_chain
        own = jax.random.fold_in(key_steps, number)
        take = lambda state, t: algorithm.step(jax.random.fold_in(own, t), state, data)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), jax.eval_shape(take, state, first)[1])

        def draw(state, t):
            def body(i, carry):
                state, total = carry
                state, info = take(state, t + i)
                return state, jax.tree.map(jnp.add, total, info)

            state, total = jax.lax.fori_loop(0, stride, body, (state, zeros))
            return state, (algorithm.sample(own, state), jax.tree.map(lambda a: a / stride, total))

        state, (draws, trace) = jax.lax.scan(draw, state, first + stride * jnp.arange(block_size))
        return state, draws, trace

    block = jax.jit(sharding.over_chains(run, mesh))
    if resume is None:
        starts = sharding.place(starts, mesh, "sample")
        state = jax.jit(sharding.over_chains(init, mesh))(None, (numbers, starts))
        warmup, done = num_warmup // block_size, 0
    else:
        state = sharding.place(resume[1], mesh, "sample")
        warmup, done = 0, resume[0] + 1
    # One compiled program serves both: warm-up takes single steps, sampling `thin` steps a draw.
    plan = [(None, i * block_size, 1) for i in range(warmup)]
    plan += [(i, num_warmup + i * block_size * thin, thin) for i in range(done, num_draws // block_size)]
    for index, first, stride in plan:
        state, draws, trace = block((data, first, stride), (numbers, state))
        trace = processes.readable(trace)
        progress(first + block_size * stride, {name: np.asarray(a)[:, -1] for name, a in trace.items()})
        if index is not None:
            yield Block(index, processes.readable(draws), trace, processes.readable(state))


def check_blocks(num_chains: int, num_warmup: int, num_draws: int, thin: int, block_size: int) -> None:
    """Raise a UserError unless `collect` can run with these sizes."""
    if min(num_chains, num_draws, thin, block_size) < 1:
        raise UserError("num_chains, num_draws, thin and block_size must be at least 1")
    for name, value in (("num_draws", num_draws), ("num_warmup", num_warmup)):
        if value % block_size:
            raise UserError(f"{name} {value} must be a multiple of block_size {block_size}")
