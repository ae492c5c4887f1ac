"""Optimisation: the same run however it is cut into chunks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import ConvNet, linear

from bnn_jax import ensemble, loop, ops, stream
from bnn_jax.infer import map as map_infer
from bnn_jax.types import Algorithm, Batch, Scaling, UserError

PROBLEM = linear()
N = len(PROBLEM.batch.x)
START = PROBLEM.params([0.1, -0.2, 0.3])


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
    log_joint = PROBLEM.log_joint()
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
    """Members see the same minibatches, so that each alone gives what the mean is of."""
    algorithm = map_infer.build(PROBLEM.log_joint(), N, optax.adam(0.02))
    starts = jax.tree.map(lambda a: jnp.stack([a, a + 1, a - 1]), START)
    run = lambda algorithm, start: loop.fit(
        jax.random.key(0), algorithm, start, PROBLEM.batch, num_steps=4, batch_size=7, chunk_size=2
    )
    state, history = run(ensemble.build(algorithm, 3), starts)
    alone = [run(algorithm, jax.tree.map(lambda a, i=i: a[i], starts)) for i in range(3)]
    np.testing.assert_allclose(state.params["kernel"], [s.params["kernel"] for s, _ in alone], rtol=1e-5)
    apart = np.stack([h["log_joint"] for _, h in alone])
    assert apart.shape == (3, 2)
    assert (np.ptp(apart, axis=0) > 1).all()
    np.testing.assert_allclose(history["log_joint"], apart.mean(0), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [0, -1, N + 1])
def test_fit_bad_batch_size(batch_size):
    with pytest.raises(UserError, match=rf"between 1 and the {N} training examples, not {batch_size}"):
        fit(batch_size=batch_size)


def test_fit_stops_at_nan():
    log_joint = PROBLEM.log_joint()
    with pytest.raises(
        UserError, match=r"log_joint became NaN or infinite before step \d+: lower the learning"
    ) as e:
        fit(10, 40, algorithm=map_infer.build(log_joint, N, optax.sgd(1e20)))
    assert "\n" not in str(e.value)


def test_fit_refuses_weights_that_its_last_step_made_infinite():
    """The log joint of a step is that of the weights before it."""
    broken = map_infer.build(PROBLEM.log_joint(), N, optax.sgd(np.inf))
    with pytest.raises(UserError, match="weights became NaN or infinite in step 1: lower the learning rate"):
        fit(40, 1, algorithm=broken)


# --- stepper ---------------------------------------------------------------------------------------------


def recorder(steps, *, batch_size=5, num_data=20, **settings):
    """What an algorithm sees in so many steps: x (steps, B) and y (steps, B)."""
    seen = Algorithm(
        init=lambda key, params: (jnp.zeros((2, steps, batch_size)), jnp.zeros((), jnp.int32)),
        step=lambda key, state, batch: (
            (state[0].at[:, state[1]].set(jnp.stack([batch.x[:, 0], batch.y])), state[1] + 1),
            {},
        ),
        sample=None,
    )
    data = Batch(np.arange(float(num_data), dtype=np.float32)[:, None], np.arange(num_data, dtype=np.int32))
    advance = loop.stepper(jax.random.key(0), seen, data, batch_size=batch_size, **settings)
    state = loop.start(jax.random.key(0), seen, None)
    for first, last in loop.chunks(0, steps, 50, settings.get("chunk_size")):
        state, _ = advance(state, first, last)
    return np.asarray(state[0])


def test_every_place_of_visit_comes_once_an_epoch():
    """Repeated rows as often as they are repeated, left out ones never."""
    visit = np.array([3, 3, 3, 7, 9, 9, 11, 0, 1, 2, 19, 18, 18, 4, 4])
    for epoch in recorder(9, visit=visit)[1].reshape(3, -1):
        np.testing.assert_array_equal(np.sort(epoch), np.sort(visit))
    np.testing.assert_array_equal(recorder(8), recorder(8, visit=np.arange(20)))  # None is each once
    with pytest.raises(UserError, match="between 1 and the 4 training examples, not 5"):
        recorder(1, visit=np.arange(4))


def test_transform_gets_the_places_and_a_key_of_the_step():
    """`numbers` are places in `visit`; the key is one of its own for every step, whatever the chunks."""
    visit = np.array([3, 3, 3, 7, 9, 9, 11, 0, 1, 2])
    places = recorder(6, visit=visit, transform=lambda key, x, numbers: x * 0 + numbers[:, None])
    assert (np.sort(places[0].reshape(3, -1)) == np.arange(10)).all()
    np.testing.assert_array_equal(visit[places[0].astype(int)], places[1])
    draw = lambda key, x, numbers: x * 0 + jax.random.uniform(key)
    keys = recorder(6, transform=draw)[0]
    assert len(np.unique(keys)) == 6
    np.testing.assert_array_equal(recorder(6, transform=draw, chunk_size=4)[0], keys)
    plain = recorder(6)
    np.testing.assert_array_equal(recorder(6, transform=lambda key, x, numbers: x), plain)  # the identity


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ((0, 10, 4), [(0, 4), (4, 8), (8, 10)]),
        ((0, 10, 4, 5), [(0, 4), (4, 5), (5, 9), (9, 10)]),
        ((5, 10, 4, 5), [(5, 9), (9, 10)]),
        ((4, 10, 4, 5), [(4, 5), (5, 9), (9, 10)]),
        ((0, 7, 50, 3), [(0, 3), (3, 6), (6, 7)]),
        ((10, 10, 4, 5), []),
        ((0, 0, 4), []),
        ((0, 3, 4, 100), [(0, 3)]),
    ],
)
def test_chunks(arguments, want):
    assert list(loop.chunks(*arguments)) == want


def test_start_leaves_the_parameters_to_the_caller():
    algorithm = map_infer.build(PROBLEM.log_joint(), N, optax.adam(0.02))
    state = loop.start(jax.random.key(0), algorithm, START)
    loop.stepper(jax.random.key(0), algorithm, PROBLEM.batch, batch_size=7)(state, 0, 2)
    assert np.isfinite(START["kernel"]).all()  # not given away


def source(shift=0.0, scale=1.0):
    """The problem's inputs as if they were on disk."""
    raw = PROBLEM.batch.x * scale + shift
    scaling = Scaling(np.float32(shift), np.float32(scale))
    return stream.Source(len(raw), lambda i: raw[i], raw.shape[1:], scaling, 2)


@pytest.mark.parametrize("changes", [{}, {"visit": np.array([*range(N), *range(9)])}, {"transform": True}])
def test_streamed_data_give_the_same_parameters(changes):
    """The same batches in the same order, in chunks of any length."""
    if "transform" in changes:
        changes = {"transform": lambda key, x, n: x + jax.random.normal(key, x.shape) + n[:, None] / 99}
    algorithm = map_infer.build(PROBLEM.log_joint(), N, optax.adam(0.02))
    found, infos = {}, {}
    for name, x, cuts in (("array", PROBLEM.batch.x, (0, 10, 13)), ("stream", source(3.0, 2.0), (0, 6, 13))):
        advance = loop.stepper(
            jax.random.key(0), algorithm, Batch(x, PROBLEM.batch.y), batch_size=7, **changes
        )
        state = loop.start(jax.random.key(0), algorithm, START)
        for first, last in itertools.pairwise(cuts):
            state, infos[name] = advance(state, first, last)
        found[name] = state
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, found["stream"], found["array"])
    assert infos["stream"].keys() == infos["array"].keys()


# --- convolutions, which are slow in loops ---------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 2], ids=["one", "ensemble"])
@pytest.mark.parametrize("streamed", [False, True])
def test_steps_with_convolutions_one_by_one_equal_those_of_the_loop(size, streamed, monkeypatch):
    """On CPU native convolutions are called from Python; an ensemble's, of many kernels, stay in the loop."""
    module, rng = ConvNet(), np.random.default_rng(0)
    x = rng.standard_normal((12, 6, 6, 2)).astype(np.float32)
    y = rng.integers(0, 2, 12).astype(np.int32)
    params = module.init(jax.random.key(1), x)["params"]
    apply = ops.apply_fn(module)
    lowered = []

    def log_joint(params, batch):
        lowered.append(ops.loop_safe())
        return -12 * jnp.mean((apply(params, batch.x)[:, 0] - batch.y) ** 2)

    algorithm = map_infer.build(log_joint, 12, optax.sgd(0.01))
    if size:
        algorithm = ensemble.build(algorithm, size)
        params = jax.tree.map(lambda a: jnp.stack([a * (1 + i) for i in range(size)]), params)

    def run(x, cuts):
        advance = loop.stepper(jax.random.key(0), algorithm, Batch(x, y), batch_size=4)
        state, infos = loop.start(jax.random.key(0), algorithm, params), []
        for first, last in itertools.pairwise(cuts):
            state, info = advance(state, first, last)
            infos.append(info)
        return state, infos

    scaling = Scaling(np.float32(0), np.float32(1))
    given = stream.Source(12, lambda i: x[i], x.shape[1:], scaling, 2) if streamed else x
    got, infos = run(given, (0, 5, 7))
    assert lowered[0] == bool(size)
    monkeypatch.setattr(ops, "slow_in_loops", lambda jaxpr: False)
    monkeypatch.setattr(ops, "loop_safe", lambda: True)
    want, wanted = run(x, (0, 5, 7))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    jax.tree.map(close, got, want)
    jax.tree.map(close, infos, wanted)
