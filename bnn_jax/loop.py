"""The two loops: `fit` optimises a state, `collect` runs chains and streams their draws out.

Step t uses the key fold_in(key, t), and epoch e the order of examples that (key, e) seeds, so that a
run resumed at step t continues as if it had not stopped. Steps run in chunks inside one compiled
program; between chunks the host reports progress, and only there.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bnn_jax import sharding
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError


class Block(NamedTuple):
    """What `collect` streams: consecutive draws of all chains, and the state after them."""

    index: int
    draws: Params  # leaves (C, block_size, ...)
    trace: Info  # (C, block_size) each, means over the steps of a draw
    state: Any  # after the block: resume from here


def order(key: Key, num_data: int, batch_size: int, start: int, count: int) -> np.ndarray:
    """The examples of steps `start` to `start + count`: every epoch a new permutation, its remainder
    left out.

    Returns:
        (count, batch_size) int32.
    """
    per_epoch = num_data // batch_size
    words = [int(word) for word in jax.random.key_data(key).ravel()]
    rows: list[np.ndarray] = []
    for epoch in range(start // per_epoch, (start + count - 1) // per_epoch + 1):
        permutation = np.random.default_rng([*words, epoch]).permutation(num_data)
        rows.append(permutation[: per_epoch * batch_size].reshape(per_epoch, batch_size))
    first = start % per_epoch
    return np.concatenate(rows)[first : first + count].astype(np.int32)


def fit(
    key: Key,
    algorithm: Algorithm,
    params: Params,
    data: Batch,
    *,
    num_steps: int,
    batch_size: int,
    chunk_size: int = 50,
    mesh: Mesh | None = None,
    progress: Callable[[int, Info], None] = lambda done, info: None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Take `num_steps` optimisation steps from `algorithm.init(params)`.

    Args:
        data: the whole training data; it is put on the device once.
        batch_size: examples a step.
        chunk_size: steps between two calls of `progress`.
        mesh: devices that share each batch (data parallel); None for the default device.
        progress: called with the number of steps done and the chunk's mean info.

    Returns:
        the last state, and the history: name -> (number of chunks,), the chunk means, with `step`.

    Raises:
        UserError: the batch is larger than the data or not divisible by the mesh's data axis, or the
            optimisation has become NaN.
    """
    num_data = len(data.x)
    check_batch(num_data, batch_size)
    if mesh is not None and batch_size % mesh.shape["data"]:
        raise UserError(f"batch_size {batch_size} does not split over {mesh.shape['data']} devices")
    key_init, key_order, key_steps = jax.random.split(key, 3)
    state = algorithm.init(key_init, params)
    data = jax.tree.map(jnp.asarray, data)
    if mesh is not None:
        state, data = sharding.place((state, data), mesh)

    @partial(jax.jit, donate_argnums=0)
    def run(state, data, indices, start, count):
        def body(i, carry):
            state, total = carry
            batch = jax.tree.map(lambda a: a[indices[i]], data)
            if mesh is not None:
                batch = sharding.constrain(batch, mesh, "data")
            state, info = algorithm.step(jax.random.fold_in(key_steps, start + i), state, batch)
            return state, jax.tree.map(jnp.add, total, info)

        first = jax.tree.map(lambda a: a[indices[0]], data)
        shapes = jax.eval_shape(algorithm.step, key_steps, state, first)[1]
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), shapes)
        state, total = jax.lax.fori_loop(0, count, body, (state, zeros))
        return state, jax.tree.map(lambda a: a / count, total)

    state = jax.tree.map(lambda a: jnp.array(a, copy=True), state)  # the caller keeps `params`
    history: list[dict[str, float]] = []
    for start in range(0, num_steps, chunk_size):
        count = min(chunk_size, num_steps - start)
        indices = order(key_order, num_data, batch_size, start, chunk_size)
        state, info = run(state, data, indices, start, count)
        info = {name: float(np.mean(value)) for name, value in info.items()}  # the mean of an ensemble
        if not all(map(np.isfinite, info.values())):
            bad = ", ".join(n for n, v in info.items() if not np.isfinite(v))
            raise UserError(
                f"{bad} became NaN or infinite before step {start + count}: lower the learning rate"
            )
        history.append({"step": start + count, **info})
        progress(start + count, info)
    return state, {name: np.array([row[name] for row in history]) for name in history[0]} if history else {}


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
        mesh: devices for the chains; None spreads them over those there are.
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
    data = sharding.place(jax.tree.map(jnp.asarray, data), mesh)

    def init(_, per_chain):
        number, start = per_chain
        return algorithm.init(jax.random.fold_in(key_init, number), start)

    def run(shared, per_chain):
        data, first, stride = shared
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
        progress(first + block_size * stride, {name: np.asarray(a)[:, -1] for name, a in trace.items()})
        if index is not None:
            yield Block(index, draws, trace, state)


def check_batch(num_data: int, batch_size: int) -> None:
    """Raise a UserError unless 1 <= batch_size <= num_data."""
    if not 1 <= batch_size <= num_data:
        raise UserError(
            f"batch_size must lie between 1 and the {num_data} training examples, not {batch_size}"
        )


def check_blocks(num_chains: int, num_warmup: int, num_draws: int, thin: int, block_size: int) -> None:
    """Raise a UserError unless `collect` can run with these sizes."""
    if min(num_chains, num_draws, thin, block_size) < 1:
        raise UserError("num_chains, num_draws, thin and block_size must be at least 1")
    for name, value in (("num_draws", num_draws), ("num_warmup", num_warmup)):
        if value % block_size:
            raise UserError(f"{name} {value} must be a multiple of block_size {block_size}")
