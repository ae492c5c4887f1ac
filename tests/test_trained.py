"""A finished run predicts what the state in memory predicts."""

import contextlib
import json

import jax
import numpy as np
import pytest

from bnn_jax import data, diagnostics, experiment, predict, runs, settings, trained, training
from bnn_jax.nets import mlp
from bnn_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(autouse=True, scope="module")
def small():
    """Networks of a few weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp, "build", lambda outputs: mlp.MLP(outputs, (4,)))
        yield


def images():
    def part(size, seed):
        rng = np.random.default_rng(seed)
        return data.Part(rng.integers(0, 255, (size, 6, 6, 1), np.uint8), np.arange(size) % 3)

    parts = [part(size, seed) for seed, size in enumerate((30, 9, 12))]
    return data.assemble("images", *parts, num_classes=3, description="noise", class_names="abc")


def numbers():
    def part(size, seed):
        x = np.random.default_rng(seed).standard_normal((size, 3))
        return data.Part(x, 50 + 20 * x.sum(1))

    parts = [part(size, seed) for seed, size in enumerate((40, 10))]
    return data.assemble("numbers", *parts, num_classes=0, description="a plane")


FOUND = images()
HMC = dict(method="hmc", num_warmup=4, num_draws=8, block_size=4, trajectory_length=0.1)


def finish(folder, found=FOUND, **changes):
    """A run folder as the script leaves it, and what the run returned."""
    config = experiment.Config(**dict(net="mlp", method="map", batch_size=10, steps=4) | changes)
    runs.claim(folder, experiment.SCRIPT, runs.as_config(config, leave_out=("out",)), settings.FREE)
    parts = experiment.build(config, found)
    experiment.record_data(folder, found, parts.plan)
    progress = lambda name, total: contextlib.nullcontext(lambda done, info: None)
    return experiment.train(folder, parts, found, progress=progress), parts


def ask(run, num_draws, x=FOUND.x_test):
    """What the loaded run predicts."""
    predictive = predict.build(run.model.apply, run.model.likelihood, run.draw, over=run.over)
    return predictive(run.source, x, num_draws)


def directly(params, parts, x=FOUND.x_test):
    """The mean prediction of stacked weights, leaves (D, ...)."""
    apply = jax.jit(jax.vmap(lambda p, x: parts.model.likelihood.mean(parts.model.apply(p, x)), (0, None)))
    return np.asarray(apply(params, x)).mean(0)


def test_map(tmp_path):
    outcome, parts = finish(tmp_path)
    run = trained.load(tmp_path)
    assert run.num_draws == 1
    want = directly(jax.tree.map(lambda a: a[None], outcome.state.params), parts)
    found = ask(run, 1)
    np.testing.assert_allclose(found.mean, want, rtol=1e-5)
    np.testing.assert_array_equal(found.std, 0)
    assert run.data["class_names"] == ["a", "b", "c"]
    np.testing.assert_array_equal(run.scaling.shift, FOUND.scaling.shift)
    np.testing.assert_array_equal(run.scaling.scale, FOUND.scaling.scale)


def test_ensemble_of_map(tmp_path):
    outcome, parts = finish(tmp_path, members=3)
    run = trained.load(tmp_path)
    assert run.num_draws == 3
    np.testing.assert_allclose(ask(run, 3).mean, directly(outcome.state.params, parts), rtol=1e-5)


@pytest.mark.parametrize("members", [1, 2])
def test_vi(members, tmp_path):
    """Draw i is one of member i mod M, with a key of its own: the same at every load."""
    outcome, parts = finish(tmp_path, method="vi", estimator="sampling", members=members)
    run = trained.load(tmp_path)
    assert run.num_draws is None
    key = runs.stream(0, "predict")
    member = lambda i: jax.tree.map(lambda a: a[i % members] if members > 1 else a, outcome.state)
    draws = [parts.algorithm.sample(jax.random.fold_in(key, i), member(i)) for i in range(4)]
    want = directly(jax.tree.map(lambda *a: np.stack(a), *draws), parts)
    found = ask(run, 4)
    np.testing.assert_allclose(found.mean, want, rtol=1e-5)
    assert found.std.max() > 0
    np.testing.assert_array_equal(ask(trained.load(tmp_path), 4).mean, found.mean)


def test_crops_and_bf16(tmp_path):
    """What the settings say of the network and its inputs is restored."""
    outcome, parts = finish(tmp_path, crop=4, crop_stride=2, compute="bfloat16")
    run = trained.load(tmp_path)
    draw = lambda source, i: source
    predictive = predict.build(parts.model.apply, parts.model.likelihood, draw, over=parts.over)
    want = predictive(outcome.state.params, FOUND.x_test, 1).mean
    np.testing.assert_allclose(ask(run, 1).mean, want, rtol=1e-5)
    assert run.config.crop == 4


def test_regression(tmp_path):
    found = numbers()
    outcome, parts = finish(tmp_path, found)
    run = trained.load(tmp_path)
    want = directly(jax.tree.map(lambda a: a[None], outcome.state.params), parts, found.x_test)
    np.testing.assert_allclose(ask(run, 1, found.x_test).mean, want, rtol=1e-5)
    assert (run.scaling.target_shift, run.scaling.target_scale) == found.scaling[2:]


def rows(stacked):
    """Stacked draws as sorted rows of all weights."""
    flat = np.concatenate([np.asarray(a).reshape(len(a), -1) for a in jax.tree.leaves(stacked)], 1)
    return flat[np.lexsort(flat.T)]


def test_chains(tmp_path):
    """All draws pooled in some order, so that the first of them come from every chain; a chain that stands
    still is left out; without any the run is refused."""
    drawn, parts = finish(tmp_path, **HMC)
    run = trained.load(tmp_path)
    assert run.num_draws == 16
    pooled = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), drawn.draws)
    np.testing.assert_array_equal(rows(run.source), rows(pooled))
    first = lambda tree: np.asarray(jax.tree.leaves(tree)[0])[:8, 0]
    assert 0 < np.isin(first(run.source), first(pooled)).sum() < 8
    np.testing.assert_allclose(ask(run, 16).mean, directly(pooled, parts), rtol=1e-4)
    values = trained.by_chain(run, FOUND.x_test)
    each = predict.build_each(parts.model.apply, parts.model.likelihood)
    of_chain = lambda c: each(jax.tree.map(lambda a: a[c], drawn.draws), FOUND.x_test)[0]
    probs = np.stack([of_chain(c) for c in (0, 1)])
    np.testing.assert_allclose(values, diagnostics.function_values(probs), rtol=1e-4, atol=1e-5)
    for frozen, left in (([0], 8), ([0, 1], 0)):
        for block in tmp_path.glob("block_*.npz"):
            arrays = dict(np.load(block))
            for name, value in arrays.items():
                if not name.startswith("trace/"):
                    value[frozen] = 0.5
            np.savez(block, **arrays)
        if left:
            run = trained.load(tmp_path)
            assert run.num_draws == left
            np.testing.assert_array_equal(rows(run.source), rows(jax.tree.map(lambda a: a[1], drawn.draws)))
        else:
            with pytest.raises(UserError, match="all 2 chains are unsound") as error:
                trained.load(tmp_path)
            assert "\n" not in str(error.value)
    (tmp_path / training.PROGRESS).write_text(json.dumps({"blocks": 1, "seconds": 1.0}))
    with pytest.raises(UserError, match="is not finished; run its command again first"):
        trained.load(tmp_path)
    (tmp_path / training.PROGRESS).unlink()
    with pytest.raises(UserError, match="is not finished"):
        trained.load(tmp_path)


def test_each_member_is_drawn_as_often_as_the_others(tmp_path):
    finish(tmp_path / "vi", method="vi", members=3)
    finish(tmp_path / "map", method="map", members=3)
    several, points = trained.load(tmp_path / "vi"), trained.load(tmp_path / "map")
    assert [trained.count(several, n) for n in (1, 3, 100)] == [3, 3, 102]
    assert [trained.count(points, n) for n in (1, 3, 100)] == [3, 3, 3]
    assert trained.each(several, FOUND.x_test, 4)[0].shape[0] == 6


def test_what_is_no_finished_run(tmp_path):
    finish(tmp_path / "run")
    (tmp_path / "run" / training.OUTCOME).rename(tmp_path / "kept")
    with pytest.raises(UserError, match="is not finished"):
        trained.load(tmp_path / "run")
    (tmp_path / "kept").rename(tmp_path / "run" / training.OUTCOME)
    mark = json.loads((tmp_path / "run" / runs.MARK).read_text())
    mark["config"]["colour"] = "blue"
    (tmp_path / "run" / runs.MARK).write_text(json.dumps(mark))
    with pytest.raises(UserError, match=r"a run of another version, whose settings differ \(colour\)"):
        trained.load(tmp_path / "run")
    with pytest.raises(UserError, match="no run folder"):
        trained.load(tmp_path / "nowhere")
    (tmp_path / "run" / experiment.DATA).unlink()
    del mark["config"]["colour"]
    (tmp_path / "run" / runs.MARK).write_text(json.dumps(mark))
    with pytest.raises(UserError, match="is not finished"):
        trained.load(tmp_path / "run")
