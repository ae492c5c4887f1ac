"""Optimisers by name: every one steps, schedules go through their corners, the factor scales exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnn_jax import optimizers
from bnn_jax.nets import mlp
from bnn_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compile")
ONE = jnp.ones(())


@pytest.fixture(scope="module")
def problem():
    """Weights of a small perceptron and the gradient of a squared error."""
    net = mlp.build(2, (4,))
    x = jax.random.normal(jax.random.key(0), (5, 3))
    params = net.init(jax.random.key(1), x)["params"]
    grads = jax.grad(lambda p: jnp.sum((net.apply({"params": p}, x) - 1) ** 2))(params)
    return params, grads


def kinds(tree):
    return jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)


def test_the_usual_names_are_there_and_those_that_need_more_are_not():
    assert {"adam", "adamw", "sgd", "rmsprop", "lion", "nadam"} <= set(optimizers.names())
    others = {"lbfgs", "noisy_sgd", "rprop", "sm3", "optimistic_adam", "polyak_sgd", "chain", "scale_by_sm3"}
    assert not others & set(optimizers.names())


@pytest.mark.parametrize("name", optimizers.names())
def test_every_optimizer_steps(name, problem):
    """Under a schedule, with a state that keeps its structure, shapes and dtypes, as loops and checkpoints
    need, and alike for the members of an ensemble."""
    params, grads = problem
    optimizer = optimizers.build(name, 1e-2, 10, "cosine", 2)
    start = state = optimizer.init(params)
    assert all(a.dtype in (jnp.float32, jnp.int32, bool) for a in jax.tree.leaves(start))  # no random key
    for _ in range(3):
        updates, state = optimizer.update(grads, state, params)
        assert kinds(state) == kinds(start)
        assert kinds(updates) == kinds(params)
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
    assert any((np.asarray(u) != 0).any() for u in jax.tree.leaves(updates))
    pair = jax.eval_shape(jax.vmap(optimizer.init), jax.tree.map(lambda a: jnp.stack([a, a]), params))
    assert optax.tree_utils.tree_get(pair, "learning_rate_factor").shape == (2,)


def rates(num_steps, **settings):
    """The learning rate of the steps 0..num_steps: SGD's update for a gradient of -1."""
    optimizer = optimizers.build("sgd", 0.5, num_steps, **settings)
    state, found = optimizer.init(ONE), []
    for _ in range(num_steps + 1):
        update, state = optimizer.update(-ONE, state, ONE)
        found.append(float(update))
    return found


def test_schedules_at_their_corners():
    cosine = rates(8)
    np.testing.assert_allclose(cosine, 0.25 * (1 + np.cos(np.pi * np.arange(9) / 8)), atol=1e-7)
    assert cosine[0] == 0.5
    assert cosine[4] == pytest.approx(0.25)
    assert cosine[8] == 0
    assert rates(3, schedule="constant") == [0.5] * 4
    warm = rates(12, warmup=4)
    np.testing.assert_allclose(warm[:4], [0, 0.125, 0.25, 0.375])
    np.testing.assert_allclose(warm[4:], cosine, atol=1e-7)  # the highest where the warm-up ends
    np.testing.assert_allclose(rates(6, warmup=2, schedule="constant"), [0, 0.25] + [0.5] * 5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_factor_scales_the_update_exactly(name, problem):
    """Half the update, weight decay included; the rest of the state is left alone."""
    params, grads = problem
    optimizer = optimizers.build(name, 0.1, 10)
    state = optimizer.update(grads, optimizer.init(params), params)[1]
    half = optimizers.set_factor(state, 0.5)
    assert jax.tree.structure(half) == jax.tree.structure(state)
    full, after_full = optimizer.update(grads, state, params)
    halved, after_half = optimizer.update(grads, half, params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(0.5 * a, b), full, halved)
    jax.tree.map(np.testing.assert_array_equal, optimizers.set_factor(after_half, 1), after_full)
    again = optimizers.set_factor(half, 0.25)  # set, not multiplied
    assert float(optax.tree_utils.tree_get(again, "learning_rate_factor")) == 0.25


def test_the_factor_of_an_ensemble_is_every_members(problem):
    params, grads = problem
    optimizer = optimizers.build("sgd", 0.1, 10)
    pair = jax.tree.map(lambda a: jnp.stack([a, a]), (params, grads))
    state = optimizers.set_factor(jax.vmap(optimizer.init)(pair[0]), 0.5)
    updates, state = jax.vmap(optimizer.update)(pair[1], state, pair[0])
    want = optimizer.update(grads, optimizer.init(params), params)[0]
    jax.tree.map(lambda u, w: np.testing.assert_array_equal(u, np.stack([w, w]) / 2), updates, want)


def test_the_factor_stays_usable_after_the_state_was_given_away(problem):
    """The loop donates its state: no array of the caller's may lie in it."""
    params, _ = problem
    factor = jnp.ones(()) / 2
    state = optimizers.set_factor(optimizers.build("sgd", 0.1, 10).init(params), factor)
    jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)(state)
    assert float(factor) == 0.5


# --- plateau ---------------------------------------------------------------------------------------------


def scales(values, *settings):
    rule = optimizers.plateau(*settings)
    state, found = rule.init({}), []
    for value in values:
        _, state = rule.update({}, state, value=np.float32(value))
        found.append(float(state.scale))
    return found


@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0])
def test_plateau_counts_values_that_are_not_lower(offset):
    """Patience 2: after two values in a row that are not lower than the lowest, and anew from there. An
    offset, which makes steps of 0.001 relatively small or values negative, changes nothing."""
    values = [5, 4, 4, 3.999, 3.999, 4, 3.998, 6, 6, 6, 6, 1]
    want = [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]
    np.testing.assert_allclose(scales([v + offset for v in values], 0.5, 2, 0.2), want)


def test_plateau_reaches_its_floor_and_stays():
    np.testing.assert_allclose(scales([1] * 6, 0.1, 1, 0.02), [1, 0.1, 0.02, 0.02, 0.02, 0.02], rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [(0, 1, 0), (1, 1, 0), (-0.1, 1, 0), (float("nan"), 1, 0), (0.1, 0, 0), (0.1, 1, -0.1), (0.1, 1, 1)],
)
def test_wrong_plateau(settings):
    with pytest.raises(UserError, match="reduce-on-plateau wants") as error:
        optimizers.plateau(*settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name="adan2"), r"unknown optimizer 'adan2': choose from .*adam, .*sgd"),
        (dict(name="lbfgs"), "unknown optimizer"),
        (dict(name="__init__"), "unknown optimizer"),
        (dict(schedule="linear"), "unknown schedule 'linear': choose from cosine, constant"),
        (dict(learning_rate=0.0), "learning rate must be a positive number, not 0.0"),
        (dict(learning_rate=-1.0), "must be a positive number"),
        (dict(learning_rate=float("nan")), "must be a positive number"),
        (dict(learning_rate=float("inf")), "must be a positive number"),
        (dict(warmup=-1), "warm-up must end before step 10, not last -1"),
        (dict(warmup=10), "warm-up must end before step 10, not last 10"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(UserError, match=message) as error:
        optimizers.build(**dict(name="adam", learning_rate=0.1, num_steps=10) | changes)
    assert "\n" not in str(error.value)
