"""Optimisation: the same run however it is cut into chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import linear

from bnn_jax import ensemble, loop, objectives
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
