"""Chains: the same draws however they are cut into blocks and processes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import linear

from bnn_jax import chains, checkpoint, draws
from bnn_jax.infer import hmc
from bnn_jax.priors import isotropic
from bnn_jax.types import Algorithm, UserError

PROBLEM = linear()
N = len(PROBLEM.batch.x)
START = PROBLEM.params([0.1, -0.2, 0.3])


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


COLLECT = dict(num_warmup=6, num_draws=12, block_size=3)


def sampler() -> Algorithm:
    log_joint = PROBLEM.log_joint()
    prior = isotropic.build(PROBLEM.std)
    return hmc.build(log_joint, prior.scale, num_warmup=6, trajectory_length=0.5, step_size=0.1)


def collect(**changes):
    starts = jax.tree.map(lambda a: jnp.stack([a, a + 0.3]), START)
    key = jax.random.key(changes.pop("seed", 0))
    algorithm = changes.pop("algorithm", None) or sampler()
    return list(chains.collect(key, algorithm, starts, PROBLEM.batch, **COLLECT | changes))


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
    for block in chains.collect(jax.random.key(0), sampler(), starts, PROBLEM.batch, **COLLECT):
        draws.write_block(folder / "draws", block.index, block.draws, block.trace)
        path = folder / f"state-{block.index}"
        checkpoint.save(path, block.state)
        checkpoint.keep_only([path])
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
    script = (
        "import conftest, test_chains, sys, pathlib; test_chains.continue_run(pathlib.Path(sys.argv[1]), 1)"
    )
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
    blocks = list(chains.collect(jax.random.key(0), sampler(), first, PROBLEM.batch, **COLLECT))
    np.testing.assert_allclose(joined(blocks)["kernel"], joined(unbroken)["kernel"][:1], rtol=1e-5, atol=1e-6)


def test_chains_from_one_start_go_their_own_ways():
    same = jax.tree.map(lambda a: jnp.stack([a, a]), START)
    (block,) = chains.collect(
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
        next(chains.collect(jax.random.key(0), sampler(), none, PROBLEM.batch, **COLLECT))
