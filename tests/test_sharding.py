"""On eight devices every program computes what it computes on one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnn_jax import chains, estimators, loop, objectives, ops, parts, sharding
from bnn_jax.likelihoods import categorical
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import isotropic
from bnn_jax.types import Algorithm, Batch, UserError

N = 24
CHAINS = 8
ESTIMATORS = ("sampling", "antithetic", "local_reparam", "flipout")
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "send(",
    "recv(",
)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(3, (2, 2), strides=2)(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def random_like(tree, seed=0, lead=()):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(0.3 * rng.standard_normal((*lead, *a.shape)), jnp.float32), tree
    )


RNG = np.random.default_rng(0)
NET, PRIOR, LIKELIHOOD, FAMILY = Net(), isotropic.build(), categorical.build(), mean_field.build(init_std=0.1)
DATA = Batch(RNG.standard_normal((N, 4, 4, 2)).astype(np.float32), RNG.integers(3, size=N).astype(np.int32))
SHAPES = jax.eval_shape(NET.init, jax.random.key(0), DATA.x)["params"]
PARAMS = random_like(SHAPES)


def build(method: str, estimator="sampling", strategy=None, num_warmup=0) -> Algorithm:
    """Any method by name, on the small net."""
    estimate = estimators.build(estimator, NET, FAMILY, 4, strategy)
    offered = dict(
        num_data=N,
        log_joint=objectives.log_joint(ops.apply_fn(NET), PRIOR, LIKELIHOOD, N),
        elbo=objectives.elbo(estimate, FAMILY, PRIOR, LIKELIHOOD, N),
        posterior=FAMILY,
        optimizer=optax.adam(0.01),
        scale=PRIOR.scale,
        num_warmup=num_warmup,
        trajectory_length=0.3,
        step_size=0.1,
        max_tree_depth=3,
        apply=ops.apply_fn(NET),
        module=NET,
        prior=PRIOR,
        likelihood=LIKELIHOOD,
        num_steps=3,
    )
    return parts.call(parts.find("method", method), offered)


# Found by name: a new method is tested here as soon as its file exists.
METHODS = {name: build(name).chain for name in parts.names("method")}
CASES = [(name, "sampling") for name, chain in METHODS.items() if not chain]
CASES += [("vi", name) for name in ESTIMATORS[1:]]


def fit(method, estimator, mesh=None, strategy="vmap"):
    algorithm = build(method, estimator, strategy)
    return loop.fit(jax.random.key(1), algorithm, PARAMS, DATA, num_steps=3, batch_size=8, mesh=mesh)


@functools.cache
def fit_on_one_device(method, estimator):
    return fit(method, estimator)


def close(got, want, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


@pytest.mark.parametrize(("method", "estimator"), CASES)
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
def test_fit_on_eight_devices_equals_one(method, estimator, shape):
    """State and history: batches split over the data axis; on 2 x 4 devices, weight samples too."""
    mesh = sharding.make_mesh(*shape)
    strategy = sharding.over_samples(mesh) if shape[0] > 1 else "vmap"
    state, history = fit(method, estimator, mesh, strategy)
    close((state, history), fit_on_one_device(method, estimator), 1e-5)
    assert len(jax.tree.leaves(state)[0].devices()) == 8


def test_samples_spread_over_devices():
    """The strategy really splits the sample axis, and keeps it split."""
    mesh = sharding.make_mesh(2, 4)
    xs = sharding.place(jnp.arange(8.0).reshape(4, 2), mesh)
    found = jax.jit(
        lambda xs: estimators.over_samples(lambda x: (x, x.sum()), xs, sharding.over_samples(mesh))
    )(xs)
    assert [a.sharding.shard_shape(a.shape)[0] for a in found] == [2, 2]
    close(found, (xs, xs.sum(1)), 1e-6)


def test_batches_must_split():
    with pytest.raises(UserError, match="batch_size 8 does not split over 3 devices"):
        fit("map", "sampling", sharding.make_mesh(1, 3))


def collect(method, mesh):
    blocks = chains.collect(
        jax.random.key(3),
        build(method, num_warmup=2),
        random_like(SHAPES, 4, (CHAINS,)),
        DATA,
        num_warmup=2,
        num_draws=4,
        block_size=2,
        mesh=mesh,
    )
    return list(blocks)


@pytest.mark.parametrize("method", [name for name, chain in METHODS.items() if chain])
def test_chains_on_eight_devices_equal_those_on_one(method, monkeypatch):
    """And the programs that `collect` compiles for them hold no collective; one that does is recognised."""
    programs, over_chains = [], sharding.over_chains

    def recorded(f, mesh):
        mapped = over_chains(f, mesh)

        def call(*args):
            programs.append((mapped, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)))
            return mapped(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(sharding, "over_chains", recorded)
        spread = collect(method, None)
    together = collect(method, sharding.make_mesh(1, 1))
    for a, b in zip(spread, together, strict=True):
        close((a.draws, a.trace, a.state), (b.draws, b.trace, b.state), 1e-4)
    leaf = jax.tree.leaves(spread[0].draws)[0]
    assert len(leaf.devices()) == 8
    assert leaf.sharding.shard_shape(leaf.shape)[0] == 1
    assert len(jax.tree.leaves(together[0].draws)[0].devices()) == 1

    compiled = lambda f, *args: jax.jit(f).lower(*args).compile().as_text()
    init, block = (compiled(mapped, *shapes) for mapped, shapes in programs)
    assert "while" in block
    assert not [name for name in COLLECTIVES if name in init + block]
    starts = sharding.place(random_like(SHAPES, 4, (CHAINS,)), sharding.chain_mesh(CHAINS), "sample")
    assert "all-reduce" in compiled(lambda a: jax.tree.map(lambda b: b.sum(0), a), starts)


def test_meshes():
    assert dict(sharding.make_mesh().shape) == {"sample": 1, "data": 8}
    assert dict(sharding.make_mesh(2).shape) == {"sample": 2, "data": 4}
    assert dict(sharding.make_mesh(3).shape) == {"sample": 3, "data": 2}
    assert dict(sharding.make_mesh(1, 1).shape) == {"sample": 1, "data": 1}
    sizes = {1: 1, 2: 2, 3: 3, 6: 6, 8: 8, 9: 3, 11: 1, 16: 8}
    assert {n: sharding.chain_mesh(n).shape["sample"] for n in sizes} == sizes


@pytest.mark.parametrize("shape", [(0, 1), (1, 0), (-1, None), (9, None), (3, 3), (1, 9)])
def test_meshes_that_do_not_fit(shape):
    with pytest.raises(UserError, match="devices does not fit the 8 there are"):
        sharding.make_mesh(*shape)


def test_place():
    mesh = sharding.make_mesh(2, 4)
    tree = {"a": np.arange(8.0), "b": np.zeros((4, 3))}
    copies = jax.tree.leaves(sharding.place({**tree, "scalar": np.ones(())}, mesh))
    assert all(a.sharding.is_fully_replicated and len(a.devices()) == 8 for a in copies)
    split = sharding.place(tree, mesh, "data")
    assert split["a"].sharding.shard_shape((8,)) == (2,)
    assert split["b"].sharding.shard_shape((4, 3)) == (1, 3)
