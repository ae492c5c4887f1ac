"""On eight devices every program computes what it computes on one."""

import contextlib
import functools
import itertools
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnn_jax import chains, estimators, loop, objectives, ops, parts, sharding, stream
from bnn_jax.likelihoods import categorical
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import isotropic
from bnn_jax.types import Algorithm, Batch, Scaling, UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

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
        layers=ops.layers(NET, DATA.x.shape[1:]),
        log_joint=objectives.log_joint(ops.apply_fn(NET), PRIOR, LIKELIHOOD, N),
        elbo=objectives.elbo(estimate, FAMILY, PRIOR, LIKELIHOOD, N),
        posterior=FAMILY,
        optimizer=optax.adam(0.01),
        constant_optimizer=optax.adam(0.01),
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
        start=0.0,  # SWAG: every iterate
        number=3,
        rank=2,
    )
    if method == "laplace":  # chains take all data, unless they are told a batch size
        offered["batch_size"] = N // 2
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
    state_on_one, history_on_one = fit_on_one_device(method, estimator)
    close((comparable(state), history), (comparable(state_on_one), history_on_one), 1e-5)
    assert len(jax.tree.leaves(state)[0].devices()) == 8


def comparable(state):
    """Without eigenvectors, which rounding turns where eigenvalues are equal."""
    return state._replace(spectrum=state.spectrum.values) if hasattr(state, "spectrum") else state


class Few(nn.Module):
    """Of few channels: on one CPU device its convolution is a product with the batch last."""

    @nn.compact
    def __call__(self, x):
        x = ops.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_step_reduces_gradients_once_and_gathers_nothing(estimator):
    """The loss rides along. Without devices to share the batch the step holds the product."""
    net, batch = Few(), Batch(np.repeat(DATA.x, 4, 0)[:64], np.repeat(DATA.y, 4)[:64])
    params = random_like(jax.eval_shape(net.init, jax.random.key(0), batch.x)["params"])
    estimate = estimators.build(estimator, net, FAMILY, 2 if estimator == "antithetic" else 1)
    elbo = objectives.elbo(estimate, FAMILY, PRIOR, LIKELIHOOD, len(batch.x))
    method = parts.find("method", "vi")(elbo, FAMILY, len(batch.x), optax.adam(0.01))
    state = method.init(jax.random.key(1), params)

    def step(state, t, batch):
        with ops.outside_loops():
            return method.step(jax.random.fold_in(jax.random.key(2), t), state, batch)

    assert "window_rows" in str(jax.make_jaxpr(step)(state, 0, batch))
    mesh = sharding.make_mesh(1, 8)
    given = sharding.place(state, mesh), 0, sharding.place(batch, mesh, "data")
    split = jax.jit(sharding.over_examples(step, mesh))
    lines = split.lower(*given).compile().as_text().splitlines()
    found = [name for line in lines for name in COLLECTIVES if f" {name}(" in line]
    assert found == ["all-reduce"]
    close(split(*given), jax.jit(step)(state, 0, batch), 1e-5)


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


def collect(method, mesh, number=CHAINS, data=DATA):
    blocks = chains.collect(
        jax.random.key(3),
        # The step size of mclmc follows the energy's error in a step, here not far above rounding.
        build(method, num_warmup=0 if method.startswith("mclmc") else 2),
        random_like(SHAPES, 4, (number,)),
        data,
        num_warmup=2,
        num_draws=4,
        block_size=2,
        mesh=mesh,
    )
    return list(blocks)


@contextlib.contextmanager
def recorded(monkeypatch):
    """The programs over chains that are called in the context, with the shapes of their arguments."""
    programs, over_chains = [], sharding.over_chains

    def recording(f, mesh):
        mapped = over_chains(f, mesh)

        def call(*args):
            programs.append((mapped, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)))
            return mapped(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(sharding, "over_chains", recording)
        yield programs


@pytest.mark.parametrize("method", [name for name, chain in METHODS.items() if chain])
def test_chains_on_eight_devices_equal_those_on_one(method, monkeypatch):
    """And the programs that `collect` compiles for them hold no collective; one that does is recognised."""
    with recorded(monkeypatch) as programs:
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


@pytest.mark.parametrize(("number", "axes"), [(1, 0), (2, 0), (4, 1)])
def test_the_only_chain_of_a_device_runs_without_an_axis_of_its_own(number, axes):
    """Under `vmap` an axis of one would make its products batched ones, which are slower."""
    mapped = sharding.over_chains(jnp.dot, sharding.make_mesh(min(number, 2), 1))
    program = jax.make_jaxpr(mapped)(jnp.ones((3, 5)), jnp.ones((number, 5, 2)))
    (own,) = (e for e in program.jaxpr.eqns if e.primitive.name == "shard_map")
    (product,) = (e for e in own.params["jaxpr"].eqns if e.primitive.name == "dot_general")
    assert sum(v.aval.ndim for v in product.invars) == 4 + axes


@pytest.mark.parametrize(("method", "size"), [("hmc", N), ("hmc", N - 1), ("nuts", N)])
def test_chains_on_data_split_over_devices_equal_those_on_one(method, size, monkeypatch):
    """An even share of the examples for each of four devices or not. Gradients are reduced once a leapfrog
    and once before, among the devices of a chain, and nothing else is."""
    data = Batch(DATA.x[:size], DATA.y[:size])
    with recorded(monkeypatch) as programs:
        split = collect(method, sharding.make_mesh(2, 4), 2, data)
    together = collect(method, sharding.make_mesh(1, 1), 2, data)
    for a, b in zip(split, together, strict=True):
        close((a.draws, a.trace, a.state), (b.draws, b.trace, b.state), 1e-4)
    if (method, size) != ("hmc", N):
        return
    _, (block, shapes) = programs  # the first is that of the chains' starts
    lines = jax.jit(block).lower(*shapes).compile().as_text().splitlines()
    found = [line for line in lines if any(f" {name}(" in line for name in COLLECTIVES)]
    assert [line.count("while/body") > 0 and " all-reduce(" in line for line in found] == [True, True]
    assert all("replica_groups=[2,4]<=[8]" in line or "{{0,1,2,3},{4,5,6,7}}" in line for line in found)


def test_meshes():
    assert dict(sharding.make_mesh().shape) == {"sample": 1, "data": 8}
    assert dict(sharding.make_mesh(2).shape) == {"sample": 2, "data": 4}
    assert dict(sharding.make_mesh(3).shape) == {"sample": 3, "data": 2}
    assert dict(sharding.make_mesh(1, 1).shape) == {"sample": 1, "data": 1}
    sizes = {1: 1, 2: 2, 3: 3, 6: 6, 8: 8, 9: 3, 11: 1, 16: 8}
    assert {n: sharding.chain_mesh(n).shape["sample"] for n in sizes} == sizes


def test_meshes_of_accelerators(monkeypatch):
    """All devices for a batch or for chains and their data, as far as they divide; on a CPU none for data."""
    assert sharding.batch_mesh(8) is None
    monkeypatch.setattr(sharding, "_apart", lambda: True)
    assert {n: sharding.batch_mesh(n).shape["data"] for n in (2, 6, 8, 12, 128)} == {
        2: 2,
        6: 6,
        8: 8,
        12: 6,
        128: 8,
    }
    assert sharding.batch_mesh(11) is None
    shapes = {1: (1, 8), 2: (2, 4), 3: (3, 2), 8: (8, 1), 11: (1, 8), 16: (8, 1)}
    assert {n: tuple(sharding.chain_mesh(n).shape.values()) for n in shapes} == shapes


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


@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
def test_a_batch_assembled_by_one_process_is_the_batch_placed(shape):
    mesh = sharding.make_mesh(*shape)
    batch = Batch(DATA.x[:8], DATA.y[:8])
    found, wanted = sharding.assemble(batch, mesh), sharding.place(batch, mesh, "data")
    for a, b in zip(found, wanted, strict=True):
        assert a.sharding == b.sharding
        assert a.dtype == b.dtype
        for mine, theirs in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert (mine.device, mine.index) == (theirs.device, theirs.index)
            np.testing.assert_array_equal(mine.data, theirs.data)


def streamed(mesh, x=DATA.x):
    """Parameters and infos after five steps of MAP on the data read from a source, in chunks of 2."""
    source = stream.Source(N, lambda i: x[i], x.shape[1:], Scaling(np.float32(0), np.float32(1)), 2)
    algorithm, key = build("map"), jax.random.key(1)
    advance = loop.stepper(key, algorithm, Batch(source, DATA.y), batch_size=8, chunk_size=2, mesh=mesh)
    state, infos = loop.start(key, algorithm, PARAMS), []
    for first, last in itertools.pairwise((0, 2, 4, 5)):
        state, info = advance(state, first, last)
        infos.append(info["log_joint"])
    return state.params, np.array(infos)


def test_streaming_on_eight_devices_equals_one():
    wanted = streamed(None)
    for shape in ((1, 8), (2, 4)):
        found = streamed(sharding.make_mesh(*shape))
        close(found, wanted, 1e-5)
        assert len(jax.tree.leaves(found[0])[0].devices()) == 8


TWO_PROCESSES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
import numpy as np
import test_sharding
from bnn_jax import sharding
from bnn_jax.types import UserError

mine = np.arange(8)[4 * jax.process_index() :][:4]
whole = sharding.assemble(mine, sharding.make_mesh(1, 8))
assert whole.shape == (8,)
assert [int(shard.data[0]) for shard in whole.addressable_shards] == mine.tolist()
try:
    sharding.assemble(mine, sharding.make_mesh(2, 4))
except UserError as error:
    assert "split the mesh's data axis over them" in str(error)
else:
    raise SystemExit("halves were taken for copies of a batch")
found = test_sharding.streamed(sharding.make_mesh(1, 8)), test_sharding.last(None)
np.savez(sys.argv[4], *map(np.asarray, jax.tree.leaves(found)))
"""


def last(mesh):
    """Draws and state of two chains at their end."""
    block = collect("hmc", mesh, 2)[-1]
    return block.draws, block.state


def test_two_processes_read_their_shares_and_take_the_same_steps(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = [sys.executable, "-c", TWO_PROCESSES, address]
    processes = [
        subprocess.Popen(
            [*common, str(rank), str(Path(__file__).parent), str(tmp_path / f"{rank}.npz")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    wanted = jax.tree.leaves((streamed(None), last(sharding.make_mesh(1, 1))))
    for rank in (0, 1):
        with np.load(tmp_path / f"{rank}.npz") as found:
            close([found[f"arr_{i}"] for i in range(len(wanted))], wanted, 1e-5)
