"""Settings become parts: augmentation on raw pixels, balanced classes, crops, scores in the data's units."""

import contextlib
import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from PIL import Image

from bnn_jax import augment, checkpoint, data, experiment, loop, predict, runs, settings, training
from bnn_jax.nets import mlp
from bnn_jax.types import Algorithm, Batch, UserError

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of a few weights."""
    monkeypatch.setattr(mlp, "build", lambda outputs: mlp.MLP(outputs, (4,)))


pytestmark = pytest.mark.usefixtures("quick_compile")


def images(num=30, side=6, classes=2):
    """Images whose classes are 2 to 1, as every loader makes them."""

    def part(size, seed):
        rng = np.random.default_rng(seed)
        return data.Part(rng.integers(0, 255, (size, side, side, 1), np.uint8), np.arange(size) % 3 // 2)

    parts = [part(size, seed) for seed, size in enumerate((num, 9, 12))]
    return data.assemble("images", *parts, num_classes=classes, description="noise")


def numbers(shift=50.0, scale=20.0):
    """A regression with targets far from 0 and 1."""

    def part(size, seed):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((size, 3))
        return data.Part(x, shift + scale * (x.sum(1) + rng.standard_normal(size)))

    parts = [part(size, seed) for seed, size in enumerate((40, 10, 15))]
    return data.assemble("numbers", *parts, num_classes=0, description="a plane")


def config(**changes):
    return experiment.Config(**dict(net="mlp", method="map", batch_size=5, steps=6) | changes)


def quiet(name, total):
    return contextlib.nullcontext(lambda done, info: None)


def train(folder, found, **changes):
    parts = experiment.build(config(**changes), found)
    return experiment.train(folder, parts, found, progress=quiet), parts


def seen_by(parts, found, steps):
    """The batches that a run with these parts trains on: x (steps, B, ...) and y (steps, B)."""
    size = parts.schedule.batch_size
    one = jnp.zeros((size, *found.x_train.shape[1:]))
    shape = jax.eval_shape(parts.transform, KEY, one, jnp.arange(size)).shape
    recorder = Algorithm(
        init=lambda key, params: (jnp.zeros((steps, *shape)), jnp.zeros((steps, size), jnp.int32), 0),
        step=lambda key, state, batch: (
            (state[0].at[state[2]].set(batch.x), state[1].at[state[2]].set(batch.y), state[2] + 1),
            {},
        ),
        sample=None,
    )
    advance = loop.stepper(
        KEY,
        recorder,
        Batch(found.x_train, found.y_train),
        batch_size=size,
        visit=parts.plan.indices,
        transform=parts.transform,
    )
    state, _ = advance(loop.start(KEY, recorder, None), 0, steps)
    return np.asarray(state[0]), np.asarray(state[1])


def order(parts, steps):
    """Places in `visit` of these batches."""
    _, key, _ = jax.random.split(KEY, 3)
    return loop.order(key, len(parts.plan.indices), parts.schedule.batch_size, 0, steps)


# --- augmentation ----------------------------------------------------------------------------------------


def test_nothing_to_vary_is_no_augmentation():
    assert experiment.build(config(), images()).transform is None


def test_augmentation_meets_raw_pixels():
    """Brightness 1.5 of a raw pixel, clipped at 1, standardised again: computed by hand in float64."""
    found = images()
    parts = experiment.build(config(brightness=(1.5, 1.5)), found)
    x, y = seen_by(parts, found, 2)
    rows = order(parts, 2)
    raw = found.x_train[rows].astype(np.float64) * found.scaling.scale + found.scaling.shift
    assert (1.5 * raw > 1).any()
    want = (np.minimum(1.5 * raw, 1) - found.scaling.shift) / found.scaling.scale
    np.testing.assert_allclose(x, want, atol=1e-5)
    np.testing.assert_array_equal(y, found.y_train[rows])


def test_augmentation_is_of_the_place_in_the_epoch():
    """With over-sampled classes each copy is turned in its own way, by the number of its place, and the same
    example another way in another step."""
    found = images()
    parts = experiment.build(config(rotation=40.0, balance="over_sample", batch_size=40), found)
    assert len(parts.plan.indices) == 40
    x, y = seen_by(parts, found, 2)
    places = order(parts, 2)
    np.testing.assert_array_equal(y, found.y_train[parts.plan.indices[places]])
    one = augment.build(augment.Augmentation(rotation=40.0))
    key = jax.random.fold_in(jax.random.split(KEY, 3)[1], 0)
    for step in (0, 1):
        for i in (0, 7):
            row = parts.plan.indices[places[step, i]]
            raw = found.x_train[row] * found.scaling.scale + found.scaling.shift
            turned = one(jax.random.fold_in(jax.random.fold_in(key, step), places[step, i]), jnp.asarray(raw))
            want = (turned - found.scaling.shift) / found.scaling.scale
            np.testing.assert_allclose(x[step, i], want, atol=1e-4)
    copies = np.flatnonzero(np.bincount(parts.plan.indices) == 2)
    both = x[0][np.isin(parts.plan.indices[places[0]], copies[:1])]
    assert len(both) == 2
    assert np.abs(both[0] - both[1]).max() > 0.1


@pytest.mark.parametrize(
    ("remedy", "visited", "num_data"), [("over_sample", 40, 30), ("under_sample", 20, 20)]
)
def test_balanced_epochs(remedy, visited, num_data):
    """An epoch visits each place of the plan once; the classes are even; N is what the remedy says."""
    found = images()
    parts = experiment.build(config(balance=remedy, steps=None, epochs=3), found)
    assert parts.schedule.num_steps == 3 * visited // 5
    assert parts.schedule.period == visited // 5
    assert parts.plan.num_data == num_data
    epochs = parts.plan.indices[order(parts, parts.schedule.num_steps)].reshape(3, -1)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), parts.plan.indices)
        np.testing.assert_array_equal(np.bincount(found.y_train[epoch]), visited // 2)


@pytest.mark.parametrize(("remedy", "num_data"), [("over_sample", 30), ("under_sample", 20)])
def test_n_of_the_objective(remedy, num_data):
    """log p(w) + N mean log p: with N of the plan, whatever an epoch visits."""
    found = images()
    parts = experiment.build(config(balance=remedy), found)
    params = jax.tree.map(lambda a: a[0], experiment._start(parts, found, 1))
    batch = Batch(found.x_train[:5], found.y_train[:5])
    _, info = jax.jit(parts.algorithm.step)(KEY, parts.algorithm.init(KEY, params), batch)
    log_p = lambda p: parts.model.likelihood.log_prob(parts.model.apply(p, batch.x), batch.y).mean()
    want = parts.model.prior.log_prob(params) + num_data * jax.jit(log_p)(params)
    np.testing.assert_allclose(info["log_joint"], want, rtol=1e-5)


# --- crops -----------------------------------------------------------------------------------------------


def test_crops(tmp_path):
    """Trained on random 4x4 crops; predicted on the one in the middle, or averaged over sliding ones."""
    found = images()
    outcome, parts = train(tmp_path / "a", found, crop=4, epochs=1, steps=None)
    x, _ = seen_by(parts, found, 1)
    assert x.shape == (1, 5, 4, 4, 1)
    first = found.x_train[order(parts, 1)[0, 0]]
    crops = [first[i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    assert min(np.abs(x[0, 0] - crop).max() for crop in crops) < 1e-5
    params, apply, likelihood = outcome.state.params, parts.model.apply, parts.model.likelihood
    probs = jax.jit(lambda x: likelihood.mean(apply(params, x)))
    draw = lambda source, i: source
    predictive = predict.build(apply, likelihood, draw, over=parts.over)
    np.testing.assert_allclose(
        predictive(params, found.x_val, 1).mean, probs(found.x_val[:, 1:5, 1:5]), rtol=1e-5
    )
    sliding = settings.over_images(config(crop=4, crop_stride=2))
    predictive = predict.build(apply, likelihood, draw, over=sliding)
    want = np.mean([probs(found.x_val[:, i : i + 4, j : j + 4]) for i in (0, 2) for j in (0, 2)], 0)
    np.testing.assert_allclose(predictive(params, found.x_val, 1).mean, want, rtol=1e-5)
    chosen = probs(found.x_val[:, 1:5, 1:5])[np.arange(12), found.y_val]
    assert outcome.history[-1]["val_nll"] == pytest.approx(-np.log(chosen).mean(), rel=1e-5)


# --- scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "members"), [("learned", 1), ("input", 3)])
def test_regression_is_scored_in_the_units_of_the_data(noise, members, tmp_path):
    """An equal mixture of the members' normal densities of raw targets, whatever the number of draws."""
    found = numbers()
    outcome, parts = train(tmp_path, found, noise=noise, members=members, eval_draws=4)
    stacked = outcome.state.params
    if members == 1:
        stacked = jax.tree.map(lambda a: a[None], stacked)
    outputs = jax.jit(jax.vmap(parts.model.apply, (0, None)))(stacked, found.x_val)  # (M, T, 2)
    scaling = found.scaling
    raw = found.y_val * scaling.target_scale + scaling.target_shift
    mean = outputs[..., 0] * scaling.target_scale + scaling.target_shift
    density = norm.pdf(raw, mean, jnp.exp(outputs[..., 1]) * scaling.target_scale).mean(0)
    row = outcome.history[-1]
    assert row["val_nll"] == pytest.approx(-float(jnp.log(density).mean()), rel=1e-4)
    assert row["val_rmse"] == pytest.approx(float(jnp.sqrt(((mean.mean(0) - raw) ** 2).mean())), rel=1e-4)


def test_an_ensemble_is_scored_by_the_mean_of_its_members(tmp_path):
    """Each as often as the others, where 4 draws do not split over 3 members."""
    found = images()
    outcome, parts = train(tmp_path, found, members=3, eval_draws=4)
    outputs = jax.jit(jax.vmap(parts.model.apply, (0, None)))(outcome.state.params, found.x_val)
    probs = np.asarray(jax.vmap(parts.model.likelihood.mean)(outputs)).mean(0)
    want = -np.log(probs[np.arange(12), found.y_val]).mean()
    assert outcome.history[-1]["val_nll"] == pytest.approx(want, rel=1e-5)
    assert outcome.history[-1]["val_accuracy"] == np.mean(probs.argmax(1) == found.y_val)


def test_the_history_tells_the_standard_deviation_of_every_layer(tmp_path):
    outcome, _ = train(tmp_path, images(), method="vi", record_std=True)
    names = {f"std_Dense_{i}_{leaf}" for i in range(2) for leaf in ("kernel", "bias")}
    assert names <= set(outcome.history[-1])
    assert 0 < outcome.history[0]["std_Dense_0_kernel"] < 0.1


@pytest.mark.parametrize("method", ["laplace", "swag"])
def test_methods_that_need_the_whole_run(method):
    with pytest.raises(UserError, match="leave --patience out"):
        experiment.build(config(method=method, patience=2, steps=80), images())


# --- pretrained ------------------------------------------------------------------------------------------


def finish(folder, found, **changes):
    """A run folder as the script leaves it."""
    settings = config(**changes)
    runs.claim(folder, experiment.SCRIPT, runs.as_config(settings, leave_out=("out",)))
    parts = experiment.build(settings, found)
    experiment.record_data(folder, found, parts.plan)
    return experiment.train(folder, parts, found, progress=quiet)


def test_pretrained(tmp_path):
    """Bit for bit: MAP's weights, VI's means, or a checkpoint of weights; for all members alike."""
    found = images()
    equal = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    weights = finish(tmp_path / "map", found).state.params
    means = finish(tmp_path / "vi", found, method="vi", estimator="sampling").state.phi.mean
    checkpoint.save(tmp_path / "plain", weights)
    ivon = finish(tmp_path / "ivon", found, method="ivon").state.mean
    for source, want in (("map", weights), ("vi", means), ("ivon", ivon), ("plain", weights)):
        parts = experiment.build(config(method="vi", pretrained=tmp_path / source), found)
        start = experiment._start(parts, found, 1)
        state = parts.algorithm.init(KEY, jax.tree.map(lambda a: a[0], start))
        equal(state.phi.mean, want)
        two = experiment._start(parts, found, 2)
        equal(jax.tree.map(lambda a: a[1], two), want)
    fresh = experiment._start(experiment.build(config(), found), found, 2)
    with pytest.raises(AssertionError):
        equal(jax.tree.map(lambda a: a[0], fresh), jax.tree.map(lambda a: a[1], fresh))


def test_pretrained_of_something_else(tmp_path):
    found = images()
    finish(tmp_path / "other", images(side=7))
    finish(tmp_path / "two", found, members=2)
    finish(tmp_path / "svgd", found, method="svgd(num_particles=2)")
    finish(tmp_path / "part", found)
    (tmp_path / "part" / training.OUTCOME).unlink()
    checkpoint.save(tmp_path / "plain", {"w": np.zeros(3, np.float32)})
    for source, message in (
        ("other", "of another network or method"),
        ("two", "must be a finished run of one member without chains"),
        ("part", "must be a finished run"),
        ("svgd", "has no weights to start from"),
        ("plain", "of another network or method"),
        ("nowhere", "no checkpoint at"),
    ):
        with pytest.raises(UserError, match=message) as error:
            experiment.build(config(pretrained=tmp_path / source), found)
        assert "\n" not in str(error.value)


# --- the folder ------------------------------------------------------------------------------------------


def test_split_csv_names_everyone(tmp_path):
    found = images()._replace(ids={"train": tuple(f"cat {i}, left.png" for i in range(30))})
    parts = experiment.build(config(), found)
    experiment.record_data(tmp_path, found, parts.plan)
    with (tmp_path / "split.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["part", "id", "label"]
    assert rows[1] == ["train", "cat 0, left.png", "0"]
    assert [row[0] for row in rows[1:]] == ["train"] * 30 + ["val"] * 12 + ["test"] * 9
    assert rows[31] == ["val", "0", "0"]


def test_folder_names():
    assert str(settings.folder(config(seed=3))) == "runs/train-digits-mlp-map-seed3"
    wide = config(seed=3, net="mlp(hidden=(9, 9))")
    assert str(settings.folder(wide)) == "runs/train-digits-mlp-hidden-9-9-map-seed3"


def test_chains_do_not_stream():
    """Every step of a chain takes all data, which a stream exists to avoid."""
    with pytest.raises(UserError, match="leave --stream out"):
        settings.check_chain(config(method="hmc", stream=True), None)


@pytest.mark.parametrize("balance", ["none", "over_sample"])
def test_no_crop_of_a_validation_or_test_image_is_trained_on(tmp_path, balance):
    """From files on: every image has a grey of its own, which all its crops keep."""
    for i in range(40):
        folder = tmp_path / ("rare" if i % 4 == 0 else "common")
        folder.mkdir(exist_ok=True)
        Image.new("L", (6, 6), 6 * i).save(folder / f"{i}.png")
    how = config(dataset="folder", path=tmp_path, crop=4, flip_horizontal=True, balance=balance, steps=40)
    found = experiment.load_data(how)
    x, _ = seen_by(experiment.build(how, found), found, 40)
    greys = np.rint((x * found.scaling.scale + found.scaling.shift) * 255 / 6).astype(int)
    assert x.shape[2:] == (4, 4, 1)
    assert (greys == greys[..., :1, :1, :]).all()
    numbers_of = {part: {int(name.split("/")[1][:-4]) for name in ids} for part, ids in found.ids.items()}
    assert set(greys.ravel().tolist()) == numbers_of["train"]
    assert not numbers_of["train"] & (numbers_of["val"] | numbers_of["test"])
    assert set().union(*numbers_of.values()) == set(range(40))
