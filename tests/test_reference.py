"""Reference posteriors: what is kept of a run, and scores that know the floor from a bad prediction."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from bnn_jax import compare, data, draws, experiment, predict, reference, weight_space
from bnn_jax.commands import train
from bnn_jax.settings import Config
from bnn_jax.types import UserError

CONFIG = Config(
    dataset="digits",
    net="mlp(hidden=(6,))",
    method="hmc",
    limit=150,
    steps=150,
    batch_size=50,
    learning_rate=1e-2,
    num_warmup=20,
    num_draws=20,
    block_size=20,
    trajectory_length=0.1,
)

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a reference made from a short run, the run's draws and what they predict."""
    run, folder = tmp_path_factory.mktemp("run") / "hmc", tmp_path_factory.mktemp("references")
    config = dataclasses.replace(CONFIG, out=run)
    found = experiment.load_data(config)
    train.main(config, found)
    info = experiment.reopen(run)
    weights, _ = draws.load(run, info.params, 1)
    given = predict.build_each(info.model.apply, info.model.likelihood)(draws.pool(weights), found.x_test)
    mean, noise = (a.reshape(2, 20, *a.shape[1:]) for a in given)
    reference.save(folder, "short", run, config, found, (mean, noise), thin=2)
    return folder, weights, mean


def test_what_is_kept_comes_back(kept):
    folder, weights, mean = kept
    found = reference.load("short", folder)
    assert reference.names(folder) == ["short"]
    np.testing.assert_allclose(found.mean, mean[:, ::2], atol=2e-3)
    np.testing.assert_allclose(found.mean.sum(-1), 1, rtol=1e-5)
    assert found.variance is None
    assert reference.config(found) == CONFIG
    model, parts = reference.problem(found)
    assert data.fingerprint(parts) == data.fingerprint(data.load(CONFIG, 0))
    np.testing.assert_array_equal(found.targets, parts.y_test)
    like = jax.tree.map(lambda a: a[0, 0], weights)
    assert jax.tree.structure(found.weight_mean) == jax.tree.structure(like)
    jax.eval_shape(model.apply, found.weight_mean, parts.x_test)
    status = json.loads((folder / "short.json").read_text())["diagnostics"]["status"]
    assert status == ["ok", "ok"]


def test_a_score_tells_the_posterior_from_others(kept):
    found = reference.load("short", kept[0])
    own = reference.score(found, found.mean, replicates=20)
    assert own["agreement"] == 1
    assert own["total_variation"] == own["w2"] == own["in_floors"] == 0
    rng = np.random.default_rng(0)
    chain = reference.score(found, found.mean[0], replicates=20)  # half of the reference is its own
    assert 0.2 < chain["in_floors"] <= 1
    shuffled = reference.score(found, found.mean[:, :, rng.permutation(150)], replicates=20)
    assert shuffled["in_floors"] > 1.5  # of short chains, whose floor is high
    assert shuffled["accuracy"] < 0.3 < own["accuracy"]
    point = reference.score(found, found.mean.mean((0, 1))[None], replicates=20)
    assert point["total_variation"] < 1e-6
    assert point["w2"] > own["w2"]  # no spread: W2 sees what means do not
    floor = compare.floor(found.mean, found.targets)
    assert {name: own["floor"][name] for name in floor} == pytest.approx(floor)


@pytest.mark.parametrize("name", reference.names())
def test_the_committed_references_can_be_trusted(name):
    """Their chains agree, HMC stands within its floor, and what knows nothing far outside."""
    found = reference.load(name)
    told = found.info["diagnostics"]
    assert set(told["status"]) == {"ok"}
    assert told["rhat_function_median"] < 1.01
    assert told["rhat_function_q95"] < 1.05
    assert told["ess_function_median"] > 200
    parts = [(found.mean[:2], found.variance), (found.mean, found.variance)]
    half, own = (
        reference.score(found, mean, None if variance is None else variance[: len(mean)], replicates=5)
        for mean, variance in parts
    )
    assert own["in_floors"] == 0 < half["in_floors"] < 1.5
    order = np.random.default_rng(0).permutation(len(found.targets))
    variance = None if found.variance is None else found.variance[..., order]
    shuffled = reference.score(found, found.mean[:, :, order], variance, replicates=5)
    assert shuffled["in_floors"] > 5
    assert shuffled["nll"] > own["nll"] + 0.3


def test_scores_of_regressions():
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(2, 30, 25)), np.full((2, 30, 25), 0.5)
    info = {"diagnostics": {"ess_function_median": 60.0}}
    found = reference.Reference("line", info, mean, variance, rng.normal(size=25), {}, {})
    own = reference.score(found, mean, variance, replicates=20)
    assert own["total_variation"] == own["in_floors"] == 0
    other = reference.score(found, mean[0] + 3, variance[0], replicates=20)
    assert other["in_floors"] > 2
    assert other["w2"] == pytest.approx(3, abs=0.5)
    assert other["rmse"] > own["rmse"]
    with pytest.raises(UserError, match="line is a regression: its score needs the variance"):
        reference.score(found, mean)
    with pytest.raises(UserError, match=r"predictions for line need shape \(D, 25\), not \(30, 24\)"):
        reference.score(found, mean[0, :, 1:], variance[0])


def test_weights_are_aligned_before_they_are_compared(kept):
    folder, weights, _ = kept
    found = reference.load("short", folder)
    own = reference.score_weights(found, weights)
    order = np.random.default_rng(0).permutation(6)
    first, last = "Dense_0", "Dense_1"
    moved = {
        first: {"kernel": weights[first]["kernel"][..., order], "bias": weights[first]["bias"][..., order]},
        last: {"kernel": weights[last]["kernel"][:, :, order], "bias": weights[last]["bias"]},
    }
    again = reference.score_weights(found, moved)
    for name, row in own.items():
        assert again[name] == pytest.approx(row)
        assert row["std_ratio"] == pytest.approx(1, abs=1e-3)
        assert row["mean_difference"] < 1e-3
    raw = weight_space.by_moments(moved, found.weight_mean, found.weight_std)
    assert raw["Dense_0/kernel"]["mean_difference"] > 0.1
    chain = reference.score_weights(found, jax.tree.map(lambda a: a[0], weights))
    assert 0 < chain["Dense_0/kernel"]["mean_difference"] < 2


def test_mistakes(kept, tmp_path):
    folder = kept[0]
    found = reference.load("short", folder)
    with pytest.raises(UserError, match="no reference posterior 'long': choose from short"):
        reference.load("long", folder)
    with pytest.raises(
        UserError, match=r"predictions for short need shape \(D, 150, 10\), not \(10, 149, 10\)"
    ):
        reference.score(found, found.mean[:, :, 1:])
    with pytest.raises(UserError, match="weights of another network"):
        reference.score_weights(found, {"kernel": np.zeros((2, 3))})
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "short.npz"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"short\.npz is damaged"):
        reference.load("short", tmp_path / "copy")
    other = found._replace(info=found.info | {"data": found.info["data"] | {"fingerprint": "0"}})
    with pytest.raises(UserError, match="the data of short are not those that its reference was made from"):
        reference.problem(other)
