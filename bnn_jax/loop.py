"""Optimisation: `stepper` advances a state by a chunk of steps, `fit` takes all of them.

Step t uses the key fold_in(key, t), and epoch e the order of examples that (key, e) seeds, so that a
run resumed at step t continues as if it had not stopped. The steps of a chunk run inside one compiled
loop, or one by one where convolutions are slow in loops (`ops`); between chunks the host reports progress,
and only there.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bnn_jax import ops, sharding, stream
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError

CHUNK_SIZE = 50  # steps between two reports of progress


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
    chunk_size: int = CHUNK_SIZE,
    mesh: Mesh | None = None,
    progress: Callable[[int, Info], None] = lambda done, info: None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Take `num_steps` optimisation steps from `algorithm.init(params)`.

    Args:
        data, batch_size, chunk_size, mesh: as in `stepper`.
        progress: called with the number of steps done and the chunk's mean info.

    Returns:
        the last state, and the history: name -> (number of chunks,), the chunk means, with `step`.

    Raises:
        UserError: as `stepper`, also for weights that the last step made NaN.
    """
    state = start(key, algorithm, params)
    advance = stepper(key, algorithm, data, batch_size=batch_size, chunk_size=chunk_size, mesh=mesh)
    history: list[dict[str, float]] = []
    for first, last in chunks(0, num_steps, chunk_size):
        state, info = advance(state, first, last)
        history.append({"step": last, **info})
        progress(last, info)
    check_finite(state, num_steps)
    return state, {name: np.array([row[name] for row in history]) for name in history[0]} if history else {}


def start(key: Key, algorithm: Algorithm, params: Params) -> Any:
    """The state before step 0 of the run with `key`: a copy, so that the caller keeps `params`."""

    @jax.jit  # one program, not one of each operation
    def init(key, params):
        state = algorithm.init(jax.random.split(key, 3)[0], params)
        return jax.tree.map(lambda a: jnp.array(a, copy=True), state)

    return init(key, params)


def chunks(
    begin: int, num_steps: int, chunk_size: int, period: int | None = None
) -> Iterator[tuple[int, int]]:
    """(first, last) of the chunks that lie after step `begin`, where a chunk ended: at most `chunk_size`
    steps long, and ending at every multiple of `period`."""
    period = period or max(num_steps, 1)
    for base in range(0, num_steps, period):
        end = min(base + period, num_steps)
        for first in range(base, end, chunk_size):
            if first >= begin:
                yield first, min(first + chunk_size, end)


def stepper(
    key: Key,
    algorithm: Algorithm,
    data: Batch,
    *,
    batch_size: int,
    chunk_size: int = CHUNK_SIZE,
    visit: np.ndarray | None = None,
    transform: Callable[[Key, jax.Array, jax.Array], jax.Array] | None = None,
    mesh: Mesh | None = None,
) -> Callable[[Any, int, int], tuple[Any, dict[str, float]]]:
    """The function (state, first, last) -> (state after the steps first..last-1, mean info of them).

    It consumes the state that it is given. What it returns depends on its arguments and nothing else, so
    that a run may stop and go on wherever a chunk ended.

    Args:
        data: the whole training data. Arrays are put on the device once; a `stream.Source` as `x` is
            read batch by batch, in the same order, by each of several processes its share.
        batch_size: examples a step.
        chunk_size: the most steps of one call.
        visit: rows of `data` that make up an epoch (balanced classes); None for each once.
        transform: (key, x (B, ...), numbers (B,)) -> x, the augmentation of a step; `numbers` are
            places in `visit`.
        mesh: devices that share each batch (data parallel); None for the default device.

    Raises:
        UserError: the batch is larger than the data or not divisible by the mesh's data axis; the
            function raises one if the optimisation has become NaN.
    """
    if mesh is None and jax.process_count() > 1:
        raise UserError("several processes share a batch over a mesh: pass mesh=sharding.make_mesh()")
    visit = np.arange(len(data.x), dtype=np.int32) if visit is None else np.asarray(visit, np.int32)
    check_batch(len(visit), batch_size)
    if mesh is not None and batch_size % mesh.shape["data"]:
        raise UserError(f"batch_size {batch_size} does not split over {mesh.shape['data']} devices")
    _, key_order, key_steps = jax.random.split(key, 3)
    key_transform = jax.random.fold_in(key_order, 0)  # `order` seeds NumPy from the key's words alone

    def take(state, t, batch, numbers):
        if transform is not None:
            batch = batch._replace(x=transform(jax.random.fold_in(key_transform, t), batch.x, numbers))
        return algorithm.step(jax.random.fold_in(key_steps, t), state, batch)

    if mesh is not None:
        take = sharding.over_examples(take, mesh)

    def zeros(state, batch, numbers):
        shapes = jax.eval_shape(take, state, 0, batch, numbers)[1]
        return jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), shapes)

    rows_of = lambda data, rows: jax.tree.map(lambda a: a[rows], data)

    @partial(jax.jit, donate_argnums=0)
    def run(state, data, rows, numbers, first, count):
        def body(i, carry):
            state, total = carry
            state, info = take(state, first + i, rows_of(data, rows[i]), numbers[i])
            return state, jax.tree.map(jnp.add, total, info)

        total = zeros(state, rows_of(data, rows[0]), numbers[0])
        state, total = jax.lax.fori_loop(0, count, body, (state, total))
        return state, jax.tree.map(lambda a: a / count, total)

    @partial(jax.jit, donate_argnums=0)
    def run_batch(state, batch, numbers, t):
        with ops.outside_loops():
            return take(state, t, batch, numbers)

    @partial(jax.jit, donate_argnums=0)
    def run_rows(state, data, rows, numbers, t):
        with ops.outside_loops():
            return take(state, t, rows_of(data, rows), numbers)

    def run_each(step, state, inputs):
        infos = []
        for given in inputs:
            state, info = step(state, *given)
            infos.append(info)
        return state, jax.tree.map(lambda *values: np.mean(values, axis=0), *jax.device_get(infos))

    one_by_one = None  # whether a step holds what is slow in loops: known when the first is traced

    def from_memory(state, first, last):
        nonlocal one_by_one
        numbers = order(key_order, len(visit), batch_size, first, chunk_size)
        if one_by_one is None:
            step = run_rows.trace(state, placed, visit[numbers[0]], numbers[0], first)
            one_by_one = ops.slow_in_loops(step.jaxpr)
        if not one_by_one:
            return run(state, placed, visit[numbers], numbers, first, last - first)
        steps = zip(numbers, range(first, last), strict=False)
        return run_each(run_rows, state, ((placed, visit[row], row, t) for row, t in steps))

    def from_stream(state, first, last):
        numbers = order(key_order, len(visit), batch_size, first, last - first)
        which = dict(process_index=jax.process_index(), process_count=jax.process_count())
        batches = stream.batches(data.x, data.y, visit[numbers], **which)
        given = (sharding.assemble(b, mesh) if mesh else jax.tree.map(jnp.asarray, b) for b in batches)
        return run_each(run_batch, state, zip(given, numbers, range(first, last), strict=True))

    streamed = isinstance(data.x, stream.Source)
    if not streamed:
        placed = jax.tree.map(jnp.asarray, data)
        placed = placed if mesh is None else sharding.place(placed, mesh)

    def advance(state: Any, first: int, last: int) -> tuple[Any, dict[str, float]]:
        state = state if mesh is None else sharding.place(state, mesh)
        state, info = (from_stream if streamed else from_memory)(state, first, last)
        means = {name: float(np.mean(value)) for name, value in info.items()}  # over an ensemble
        bad = ", ".join(name for name, value in means.items() if not np.isfinite(value))
        if bad:
            raise UserError(f"{bad} became NaN or infinite before step {last}: lower the learning rate")
        return state, means

    return advance


def check_finite(state: Any, step: int) -> None:
    """Raise a UserError if a state holds NaN or infinity: its info is of before the step that made it."""
    arrays = [np.asarray(a) for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)]
    if not all(np.isfinite(a).all() for a in arrays):
        raise UserError(f"weights became NaN or infinite in step {step}: lower the learning rate")


def check_batch(num_data: int, batch_size: int) -> None:
    """Raise a UserError unless 1 <= batch_size <= num_data."""
    if not 1 <= batch_size <= num_data:
        raise UserError(
            f"batch_size must lie between 1 and the {num_data} training examples, not {batch_size}"
        )
