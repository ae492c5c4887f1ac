"""The two loops: the same run however it is cut into chunks, blocks and processes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import linear

from bnn_jax import checkpoint, draws, ensemble, loop, objectives
from bnn_jax.infer import hmc
from bnn_jax.infer import map as map_infer
from bnn_jax.likelihoods import gaussian
from bnn_jax.priors import isotropic
from bnn_jax.types import Algorithm, Batch, UserError

PROBLEM = linear()
N = len(PROBLEM.batch.x)
START = PROBLEM.params([0.1, -0.2, 0.3])


def target():
    prior = isotropic.build(PROBLEM.std)
    return objectives.log_joint(PROBLEM.apply, prior, gaussian.build(PROBLEM.sigma), N), prior


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_data", "batch_size"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_order_visits_every_example_once_an_epoch(num_data, batch_size):
    per_epoch = num_data // batch_size
    rows = loop.order(jax.random.key(0), num_data, batch_size, 0, 3 * per_epoch)
    assert rows.shape == (3 * per_epoch, batch_size)
    assert rows.dtype == np.int32
    epochs = rows.reshape(3, -1)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == per_epoch * batch_size
        assert set(epoch.tolist()) <= set(range(num_data))
    assert (epochs[0] != epochs[1]).any()
    assert (rows != loop.order(jax.random.key(1), num_data, batch_size, 0, 3 * per_epoch)).any()


def test_order_starts_anywhere():
    key = jax.random.key(3)
    whole = loop.order(key, 13, 4, 0, 20)
    for start in range(12):
        for count in (1, 2, 8):
            np.testing.assert_array_equal(loop.order(key, 13, 4, start, count), whole[start : start + count])


# --- fit -------------------------------------------------------------------------------------------------


def fit(chunk_size=50, num_steps=23, seed=0, algorithm=None, **changes):
    log_joint, _ = target()
    algorithm = algorithm or map_infer.build(log_joint, N, optax.adam(0.02))
    settings = dict(num_steps=num_steps, batch_size=7, chunk_size=chunk_size) | changes
    return loop.fit(jax.random.key(seed), algorithm, START, PROBLEM.batch, **settings)


def test_fit_is_a_function_of_the_key_whatever_the_chunks():
    state, history = fit()
    again, _ = fit()
    equal(state, again)
    for chunk_size in (1, 7, 23):
        other, rows = fit(chunk_size)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), other, state)
        assert rows["step"].tolist() == [*range(chunk_size, 23, chunk_size), 23]
        weights = np.diff(rows["step"], prepend=0)
        assert np.average(rows["log_joint"], weights=weights) == pytest.approx(
            history["log_joint"][0], rel=1e-5
        )
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state, fit(seed=1)[0])), strict=True))
    assert history["step"].tolist() == [23]
    np.testing.assert_array_equal(START["kernel"][:, 0], np.float32([0.1, -0.2, 0.3]))  # not donated away


def test_fit_feeds_the_batches_of_order():
    """An algorithm that records what it sees: 3 epochs of 5 batches, each example of an epoch once."""
    seen = Algorithm(
        init=lambda key, params: (jnp.zeros((15, 7), jnp.int32), jnp.zeros((), jnp.int32)),
        step=lambda key, state, batch: (
            (state[0].at[state[1]].set(batch.y), state[1] + 1),
            {"t": state[1] + 0.0},
        ),
        sample=None,
    )
    log = []
    data = Batch(np.zeros((N, 1), np.float32), np.arange(N, dtype=np.int32))
    (rows, count), history = loop.fit(
        jax.random.key(0),
        seen,
        START,
        data,
        num_steps=15,
        batch_size=7,
        chunk_size=4,
        progress=lambda done, info: log.append((done, info["t"])),
    )
    assert int(count) == 15
    for epoch in np.asarray(rows).reshape(3, -1):
        assert len(set(epoch.tolist())) == 35
    assert log == [(4, 1.5), (8, 5.5), (12, 9.5), (15, 13.0)]  # the means of each chunk
    assert history["t"].tolist() == [1.5, 5.5, 9.5, 13.0]


def test_fit_gives_every_step_a_key_of_its_own():
    """Whatever the chunks: step t has the key of t."""
    record = lambda key, state, batch: (
        (state[0].at[state[1]].set(jax.random.uniform(key)), state[1] + 1),
        {},
    )
    init = lambda key, params: (jnp.zeros(12), jnp.zeros((), jnp.int32))
    numbers = [fit(size, 12, algorithm=Algorithm(init, record, None))[0][0] for size in (12, 5)]
    assert len(set(numbers[0].tolist())) == 12
    np.testing.assert_array_equal(*numbers)


def test_fit_zero_steps():
    state, history = fit(num_steps=0)
    equal(state.params, START)
    assert history == {}


def test_fit_of_an_ensemble_averages_the_history():
    log_joint, _ = target()
    algorithm = ensemble.build(map_infer.build(log_joint, N, optax.adam(0.02)), 3)
    starts = jax.tree.map(lambda a: jnp.stack([a, a + 1, a - 1]), START)
    settings = dict(num_steps=4, batch_size=7, chunk_size=2)
    state, history = loop.fit(jax.random.key(0), algorithm, starts, PROBLEM.batch, **settings)
    assert state.params["kernel"].shape == (3, 3, 1)
    assert history["log_joint"].shape == (2,)


@pytest.mark.parametrize("batch_size", [0, -1, N + 1])
def test_fit_bad_batch_size(batch_size):
    with pytest.raises(UserError, match=rf"between 1 and the {N} training examples, not {batch_size}"):
        fit(batch_size=batch_size)


def test_fit_stops_at_nan():
    log_joint, _ = target()
    with pytest.raises(
        UserError, match=r"log_joint became NaN or infinite before step \d+: lower the learning"
    ) as e:
        fit(10, 40, algorithm=map_infer.build(log_joint, N, optax.sgd(1e20)))
    assert "\n" not in str(e.value)


# --- collect ---------------------------------------------------------------------------------------------

COLLECT = dict(num_warmup=6, num_draws=12, block_size=3)


def sampler() -> Algorithm:
    log_joint, prior = target()
    return hmc.build(log_joint, prior.scale, num_warmup=6, trajectory_length=0.5, step_size=0.1)


def collect(**changes):
    starts = jax.tree.map(lambda a: jnp.stack([a, a + 0.3]), START)
    key = jax.random.key(changes.pop("seed", 0))
    algorithm = changes.pop("algorithm", None) or sampler()
    return list(loop.collect(key, algorithm, starts, PROBLEM.batch, **COLLECT | changes))


def joined(blocks, what="draws"):
    return jax.tree.map(lambda *a: np.concatenate(a, 1), *[getattr(block, what) for block in blocks])


@pytest.fixture(scope="module")
def unbroken():
    return collect()


def test_shapes_and_indices(unbroken):
    assert [block.index for block in unbroken] == [0, 1, 2, 3]
    for block in unbroken:
        assert block.draws["kernel"].shape == (2, 3, 3, 1)
        assert {"accept_prob", "num_steps", "diverging", "step_size", "log_joint"} <= set(block.trace)
        assert {value.shape for value in block.trace.values()} == {(2, 3)}
    weights = joined(unbroken)["kernel"]
    assert len(np.unique(weights[..., 0, 0])) > 18  # moving, each chain on its own
    np.testing.assert_allclose(
        joined(unbroken, "trace")["step_size"], unbroken[-1].state.step_size[:, None].repeat(12, 1)
    )


def test_deterministic(unbroken):
    equal(joined(collect()), joined(unbroken))
    assert (joined(collect(seed=1))["kernel"] != joined(unbroken)["kernel"]).any()


def run_and_stop(folder: Path, last: int):
    """A run that is killed after block `last`: draws and state on disk, the rest is lost."""
    starts = jax.tree.map(lambda a: jnp.stack([a, a + 0.3]), START)
    for block in loop.collect(jax.random.key(0), sampler(), starts, PROBLEM.batch, **COLLECT):
        draws.write_block(folder / "draws", block.index, block.draws, block.trace)
        path = folder / f"state-{block.index}"
        checkpoint.save(path, block.state)
        checkpoint.keep_only(path)
        if block.index == last:
            return


def continue_run(folder: Path, last: int):
    """What a new process does: everything is built anew, the state comes from disk."""
    algorithm = sampler()
    abstract = jax.eval_shape(jax.vmap(algorithm.init), jax.random.split(jax.random.key(0), 2),
                              jax.tree.map(lambda a: jnp.stack([a, a]), START))  # fmt: skip
    resume = last, checkpoint.load(folder / f"state-{last}", abstract)
    for block in collect(algorithm=algorithm, resume=resume):
        draws.write_block(folder / "draws", block.index, block.draws, block.trace)


def check_against(unbroken, folder):
    found, trace = draws.load(folder / "draws", START, 4)
    equal(found, joined(unbroken))
    equal(trace, joined(unbroken, "trace"))


@pytest.mark.parametrize("last", [0, 1, 2])
def test_resumed_from_any_block(last, unbroken, tmp_path):
    """Bit-identical draws."""
    run_and_stop(tmp_path, last)
    continue_run(tmp_path, last)
    check_against(unbroken, tmp_path)


def test_resumed_in_another_process(unbroken, tmp_path):
    run_and_stop(tmp_path, 1)
    here = Path(__file__).parent
    script = "import conftest, test_loop, sys, pathlib; test_loop.continue_run(pathlib.Path(sys.argv[1]), 1)"
    paths = os.pathsep.join(map(str, (here, here.parent)))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check_against(unbroken, tmp_path)


def test_resumed_after_the_last_block(unbroken):
    assert collect(resume=(3, unbroken[-1].state)) == []


@pytest.mark.parametrize("block_size", [1, 2, 6])
def test_block_size_does_not_matter(block_size, unbroken):
    blocks = collect(block_size=block_size)
    assert len(blocks) == 12 // block_size
    np.testing.assert_allclose(joined(blocks)["kernel"], joined(unbroken)["kernel"], rtol=1e-5, atol=1e-6)


def test_thinned_draws_are_every_second(unbroken):
    """And their trace is the mean over the steps of a draw."""
    blocks = collect(thin=2, num_draws=6)
    np.testing.assert_allclose(
        joined(blocks)["kernel"], joined(unbroken)["kernel"][:, 1::2], rtol=1e-5, atol=1e-6
    )
    pairs = lambda a: a.reshape(2, 6, 2).mean(-1)
    for name in ("accept_prob", "log_joint"):
        want = pairs(joined(unbroken, "trace")[name])
        np.testing.assert_allclose(joined(blocks, "trace")[name], want, rtol=1e-4)


def test_progress_counts_all_steps():
    log = []
    collect(num_draws=6, thin=2, progress=lambda done, info: log.append((done, info["accept_prob"].shape)))
    assert log == [(3, (2,)), (6, (2,)), (12, (2,)), (18, (2,))]


def test_chains_do_not_know_of_each_other(unbroken):
    """The first of two chains alone, under the same key, draws the same."""
    first = jax.tree.map(lambda a: a[None], START)
    blocks = list(loop.collect(jax.random.key(0), sampler(), first, PROBLEM.batch, **COLLECT))
    np.testing.assert_allclose(joined(blocks)["kernel"], joined(unbroken)["kernel"][:1], rtol=1e-5, atol=1e-6)


def test_chains_from_one_start_go_their_own_ways():
    same = jax.tree.map(lambda a: jnp.stack([a, a]), START)
    (block,) = loop.collect(
        jax.random.key(0), sampler(), same, PROBLEM.batch, num_warmup=0, num_draws=3, block_size=3
    )
    assert (block.draws["kernel"][0] != block.draws["kernel"][1]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_draws=0), "at least 1"),
        (dict(thin=0), "at least 1"),
        (dict(block_size=0), "at least 1"),
        (dict(num_draws=10), "num_draws 10 must be a multiple of block_size 3"),
        (dict(num_warmup=5), "num_warmup 5 must be a multiple of block_size 3"),
    ],
)
def test_bad_sizes(changes, message):
    with pytest.raises(UserError, match=message):
        collect(**changes)


def test_zero_chains():
    none = jax.tree.map(lambda a: jnp.zeros((0, *a.shape)), START)
    with pytest.raises(UserError, match="num_chains"):
        next(loop.collect(jax.random.key(0), sampler(), none, PROBLEM.batch, **COLLECT))
