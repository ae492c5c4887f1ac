"""A sum over pieces of the data equals the plain one: values, derivatives, under vmap, on several devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnn_jax import models, objectives, ops, pieces, sharding
from bnn_jax.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")
COUNTS = (256, 257, 300)  # two whole pieces; three, the last two of them padded


def problem(count):
    keys = jax.random.split(jax.random.key(count), 3)
    batch = Batch(jax.random.normal(keys[0], (count, 4, 4, 1)), jax.random.randint(keys[1], (count,), 1, 4))
    f = lambda w, batch: jnp.tanh(batch.x.reshape(-1, 16) @ w).sum(-1) * batch.y
    return f, jax.random.normal(keys[2], (16, 3)), batch


def agree(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("count", COUNTS)
def test_values_and_derivatives_are_those_of_the_plain_sum(count):
    f, w, batch = problem(count)
    plain, cut = lambda w: f(w, batch).sum(), lambda w: pieces.total(f, w, batch)
    several = jnp.stack([w, -2 * w])
    agree(jax.jit(cut)(w), plain(w))
    agree(jax.jit(jax.vmap(cut))(several), jax.vmap(plain)(several))
    agree(jax.grad(lambda w: cut(w) ** 2)(w), jax.grad(lambda w: plain(w) ** 2)(w))
    agree(jax.jit(jax.vmap(jax.grad(cut)))(several), jax.vmap(jax.grad(plain))(several))
    agree(jax.hessian(cut)(w), jax.hessian(plain)(w))


def test_examples_beyond_the_last_count_for_nothing():
    _, w, batch = problem(257)
    f = lambda w, batch: w.sum() * jnp.ones(len(batch.x))
    value, grad = jax.value_and_grad(lambda w: pieces.total(f, w, batch))(w)
    agree(value, 257 * w.sum())
    agree(grad, 257 * np.ones_like(w))


def test_which_sums_are_cut(monkeypatch):
    def cut(batch):
        sizes = []

        def f(w, batch):
            sizes.append(len(batch.x))
            return batch.x.sum(axis=tuple(range(1, batch.x.ndim))) * w

        pieces.total(f, jnp.float32(2.0), batch)
        return min(sizes) < len(batch.x)

    def cut_by_chains(*devices):
        chains = sharding.over_chains(lambda data, number: number + cut(data), sharding.make_mesh(*devices))
        return jax.jit(chains)(Batch(images, None), jnp.zeros(8)).all()

    images, table = jnp.ones((257, 4, 4, 1)), jnp.ones((257, 16))
    assert cut(Batch(images, None))
    assert not cut(Batch(images[:255], None))
    assert not cut(Batch(table, None))
    with ops.outside_loops():
        assert not cut(Batch(images, None))
    assert not cut_by_chains(4, 2)
    assert cut_by_chains(8, 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not cut(Batch(images, None))


def test_other_derivatives_are_refused_not_wrong():
    f, w, batch = problem(300)
    of_data = lambda x: pieces.total(f, w, batch._replace(x=x))
    for grad in (jax.grad(of_data), jax.jit(jax.grad(of_data))):
        with pytest.raises(TypeError, match="derivatives by the weights, not by the data"):
            grad(batch.x)
    with pytest.raises(TypeError, match=re.escape("forward-mode autodiff (jvp)")):
        jax.jvp(lambda w: pieces.total(f, w, batch), (w,), (w,))


def test_the_log_joint_is_the_same(monkeypatch):
    model = models.build("digits", 10)
    x = jax.random.normal(jax.random.key(0), (301, 8, 8, 1))
    batch = Batch(x, jnp.arange(301) % 10)
    params = model.module.init(jax.random.key(1), x[:1])["params"]
    log_joint = objectives.log_joint(model.apply, model.prior, model.likelihood, 301)
    value, grads = jax.jit(jax.value_and_grad(log_joint))(params, batch)
    split = sharding.place_examples(batch, sharding.make_mesh(1, 4))
    shared_value, shared = jax.jit(jax.value_and_grad(log_joint))(params, split)
    monkeypatch.setattr(pieces, "PIECE", 1000)
    jax.clear_caches()
    plain_value, plain = jax.jit(jax.value_and_grad(log_joint))(params, batch)
    agree(value, plain_value)
    agree(shared_value, plain_value)
    jax.tree.map(agree, grads, plain)
    jax.tree.map(agree, shared, plain)
