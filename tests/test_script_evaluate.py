"""scripts/evaluate.py as its users meet it: tiny real runs, scores by hand, what it refuses."""

import contextlib
import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image
from test_data_catalogue import IMAGE, png, tensor, write
from test_script_train import medmnist, table

from bnn_jax import (
    corruptions,
    data,
    diagnostics,
    experiment,
    predict,
    regression_scores,
    runs,
    scores,
    trained,
)
from bnn_jax.commands import evaluate
from bnn_jax.commands import train as train_command
from bnn_jax.report import dataset, evaluation
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
DRAWS, SIZE = 6, 24  # as many validation as test examples: one compiled program serves both
WRITE = evaluation.write
FAST = ("--num-draws", str(DRAWS), "--num-bootstrap", "40")


@pytest.fixture(scope="module", autouse=True)
def compiled_once(quick_compile):
    """A run is loaded and compiled once for all tests; no pictures but where they are the subject."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "load", functools.cache(trained.load))
        patch.setattr(predict, "build", functools.cache(predict.build))
        patch.setattr(dataset, "write", lambda *args: None)
        patch.setattr(evaluation, "write", lambda *args: None)
        yield


def train(*arguments):
    arguments = (
        "--net",
        "shallow",
        "--steps",
        "6",
        "--batch-size",
        "20",
        "--learning-rate",
        "0.02",
        *arguments,
    )
    train_command.main(tyro.cli(experiment.Config, args=[*map(str, arguments)]))


def call(*arguments):
    """Evaluate; the file, in which NaN is no number."""
    config = tyro.cli(evaluate.Config, args=[*map(str, arguments)])
    evaluate.main(config)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads((config.run / evaluate.RESULT).read_text(), parse_constant=refuse)


def predictions(run, part="test", num_draws=DRAWS):
    """(Predictive of a part, its targets, the data), computed by hand."""
    loaded = trained.load(run)
    found = data.load(loaded.config, loaded.config.seed)
    ask = predict.build(loaded.model.apply, loaded.model.likelihood, loaded.draw, over=loaded.over)
    return ask(loaded.source, getattr(found, f"x_{part}"), num_draws), getattr(found, f"y_{part}"), found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def run(place):
    """VI on two classes."""
    medmnist(place / "a.npz", (60, SIZE, SIZE))
    out = place / "run"
    source = ("--dataset", "medmnist", "--path", place / "a.npz")
    train(*source, "--method", "vi", "--estimator", "sampling", "--out", out)
    return out


def copied(run, place, **changed):
    """A copy of the run in `place`, its data with other arrays (None: without), as if trained on those."""
    config = json.loads((run / runs.MARK).read_text())
    arrays = dict(np.load(config["config"]["path"]))
    np.savez(place / "b.npz", **{k: v for k, v in (arrays | changed).items() if v is not None})
    shutil.copytree(run, place / "copy")
    config["config"]["path"] = str(place / "b.npz")
    (place / "copy" / runs.MARK).write_text(json.dumps(config))
    info = json.loads((run / experiment.DATA).read_text())
    found = data.load(data.Options(dataset="medmnist", path=place / "b.npz"))
    info["fingerprint"] = data.fingerprint(found)
    (place / "copy" / experiment.DATA).write_text(json.dumps(info))
    return place / "copy"


# scores of classes


def test_scores_and_intervals_are_those_of_the_predictions(run):
    results = call(run, *FAST)
    test, labels, _ = predictions(run)
    threshold, count = results["threshold"], len(labels)
    wanted = scores.classification(test.mean, labels, threshold)
    wanted["aurc"] = scores.risk_coverage(test.mean, labels, test.total, threshold)[2]
    assert {name.removesuffix("_interval") for name in results if name.endswith("_interval")} == set(wanted)
    assert {name: results[name] for name in wanted} == pytest.approx(wanted)
    rng, replicates = np.random.default_rng(0), []
    for _ in range(40):
        rows = rng.integers(count, size=count)
        drawn = test.mean[rows], labels[rows]
        replicates.append(scores.classification(*drawn, threshold))
        replicates[-1]["aurc"] = scores.risk_coverage(*drawn, test.total[rows], threshold)[2]
    for name in ("accuracy", "nll", "ece", "auroc", "aurc"):
        ends = np.quantile([found[name] for found in replicates], [0.025, 0.975])
        assert results[f"{name}_interval"] == pytest.approx(ends.tolist())
    assert results["interval"] == "95 % bootstrap interval over test examples"
    decided = (test.mean[:, 1] >= threshold).astype(int)
    assert results["confusion"] == [
        [int(np.sum((labels == i) & (decided == j))) for j in (0, 1)] for i in (0, 1)
    ]
    assert results["referral"] == scores.referral(test.mean, labels, test.total, threshold=threshold)
    assert results["num_draws"] == DRAWS
    assert results["data"]["num_test"] == SIZE
    assert results["config"]["method"] == "vi"
    assert results["evaluation"]["num_draws"] == DRAWS
    assert "data_dir" not in results["evaluation"]


def test_rules_come_from_validation_data(run, tmp_path):
    results = call(run, *FAST, "--refer", "0.25")
    val, labels, _ = predictions(run, "val")
    test, _, _ = predictions(run)
    assert results["threshold"] == scores.choose_threshold(val.mean, labels, "youden")
    assert results["temperature"] == pytest.approx(scores.temperature(val.mean, labels))
    assert results["referral_uncertainty"] == pytest.approx(np.quantile(val.total, 0.75))
    assert results["referral_share"] == 0.25
    after = scores.classification(scores.scale(test.mean, results["temperature"]), predictions(run)[1])
    for name in ("nll", "brier", "ece", "ece_classwise"):
        assert results[f"{name}_scaled"] == pytest.approx(after[name])
    rules = ("threshold", "temperature", "referral_uncertainty")
    arrays = np.load(json.loads((run / runs.MARK).read_text())["config"]["path"])
    (tmp_path / "test").mkdir()
    swapped = call(
        copied(run, tmp_path / "test", test_labels=1 - arrays["test_labels"]), *FAST, "--refer", 0.25
    )
    assert [swapped[name] for name in rules] == [results[name] for name in rules]
    assert swapped["accuracy"] == pytest.approx(1 - results["accuracy"])
    (tmp_path / "val").mkdir()
    swapped = call(copied(run, tmp_path / "val", val_labels=1 - arrays["val_labels"]), *FAST, "--refer", 0.25)
    assert swapped["threshold"] != results["threshold"]
    assert swapped["temperature"] != results["temperature"]
    assert swapped["referral_uncertainty"] == results["referral_uncertainty"]


def test_the_same_command_gives_the_same_file(run):
    call(run, *FAST)
    before = (run / evaluate.RESULT).read_bytes()
    (run / evaluate.RESULT).unlink()
    call(run, *FAST)
    assert (run / evaluate.RESULT).read_bytes() == before


def test_everything_at_once(run, place, monkeypatch, capsys):
    """A recall, other data, corruptions: numbers by hand, and the page with its pictures."""
    monkeypatch.setattr(evaluation, "write", WRITE)
    dark = np.random.default_rng(5).integers(0, 60, (60, 8, 8), np.uint8)
    medmnist(place / "dark.npz", (60, SIZE, SIZE), test_images=dark[:SIZE])
    other = ("--ood-dataset", "medmnist", "--ood-path", "dark.npz", "--data-dir", place)
    results = call(run, *FAST, *other, "--corruptions", "--recall", "0.8")
    (test, labels, found), (val, val_labels, _) = predictions(run), predictions(run, "val")
    assert results["threshold"] == scores.choose_threshold(val.mean, val_labels, ("recall", 0.8))
    assert results["threshold_rule"] == "recall of at least 0.8 on validation data"

    loaded = trained.load(run)
    ask = predict.build(loaded.model.apply, loaded.model.likelihood, loaded.draw, over=loaded.over)
    seen = (dark[:SIZE, ..., None] / np.float32(255) - found.scaling.shift) / found.scaling.scale
    outside = ask(loaded.source, seen, DRAWS)
    assert results["ood"] == {
        "dark": {
            "auroc": pytest.approx(scores.ood_auroc(test.epistemic, outside.epistemic), abs=0.01),
            "auroc_total": pytest.approx(scores.ood_auroc(test.total, outside.total), abs=0.01),
            "num_examples": SIZE,
        }
    }
    records = results["corruptions"]
    assert list(records) == list(corruptions.CORRUPTIONS)
    assert all([row["severity"] for row in rows] == [1, 2, 3, 4, 5] for rows in records.values())
    with np.load(place / "a.npz") as arrays:
        raw = arrays["test_images"][..., None] / np.float32(255)
    worse = corruptions.apply("contrast", raw, 4)
    given = ask(loaded.source, (worse - found.scaling.shift) / found.scaling.scale, DRAWS)
    wanted = scores.classification(given.mean, labels, results["threshold"])
    row = {name: wanted[name] for name in ("accuracy", "nll", "ece", "auroc")}
    row |= {"severity": 4, "epistemic": given.epistemic.mean()}
    assert records["contrast"][3] == pytest.approx(row, abs=1e-5)

    page = (run / "evaluation.html").read_text(encoding="utf-8")
    pictures = {path.stem for path in (run / "evaluation").glob("*.png")}
    assert {"confusion", "operating", "reliability", "referral", "entropy", "ood", "corruptions"} <= pictures
    assert page.count('src="data:image/png;base64,') == len(pictures)
    printed = " ".join(capsys.readouterr().out.split())
    assert "recall of at least 0.8 on validation data" in printed
    assert f"report: {run / 'evaluation.html'}" in printed


def test_three_classes_have_no_threshold(place, tmp_path):
    three = {part: np.arange(n) % 3 for part, n in (("train", 60), ("val", SIZE), ("test", SIZE))}
    medmnist(tmp_path / "c.npz", (60, SIZE, SIZE), **{f"{part}_labels": y for part, y in three.items()})
    out = tmp_path / "run"
    train("--dataset", "medmnist", "--path", tmp_path / "c.npz", "--method", "map", "--out", out)
    results = call(out, *FAST)
    test, labels, _ = predictions(out, num_draws=1)
    assert not {"threshold", "threshold_rule"} & set(results)
    assert results["accuracy"] == np.mean(test.mean.argmax(1) == labels)
    assert np.shape(results["confusion"]) == (3, 3)
    assert results["num_draws"] == 1  # all that a point estimate has
    assert results["temperature"] > 0
    with pytest.raises(UserError, match="--recall is for two classes; c has 3"):
        call(out, *FAST, "--recall", "0.9")


def test_without_validation_data_nothing_is_chosen(run, tmp_path):
    """Nor from those of one class a threshold."""
    none, one = tmp_path / "none", tmp_path / "one"
    none.mkdir()
    without = copied(run, none, val_images=None, val_labels=None)
    results = call(without, *FAST)
    assert not {"threshold", "temperature", "referral_uncertainty", "nll_scaled"} & set(results)
    assert {"accuracy", "aurc", "confusion", "referral"} <= set(results)
    with pytest.raises(UserError, match=r"^--recall needs validation data .*; b has none$"):
        call(without, *FAST, "--recall", "0.9")
    one.mkdir()
    single = copied(run, one, val_labels=np.zeros((SIZE, 1), int))
    results = call(single, *FAST)
    assert not {"threshold", "threshold_rule"} & set(results)
    assert {"temperature", "referral_uncertainty"} <= set(results)
    with pytest.raises(UserError, match="--recall needs both classes in the validation data of b"):
        call(single, *FAST, "--recall", "0.9")


def test_intervals_are_over_the_groups_of_the_split(tmp_path):
    """The pattern is looked for in a file's name, not in the folders, whose names would match it, too."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("ward7", "ward8")):
        (tmp_path / "xrays" / name).mkdir(parents=True)
        for i in range(60):
            picture = rng.integers(0, 150 + 60 * k, (8, 8), np.uint8)
            Image.fromarray(picture).save(tmp_path / "xrays" / name / f"case{i // 3}_{i % 3}.png")
    source = ("--dataset", "folder", "--path", tmp_path / "xrays", "--group-by", r"[a-z]+(\d+)")
    train(*source, "--method", "map", "--ratios", "3", "1", "1", "--out", tmp_path / "run")
    results = call(tmp_path / "run", *FAST)
    test, labels, found = predictions(tmp_path / "run", num_draws=1)
    cases = [re.search(r"case(\d+)_", name)[1] for name in found.ids["test"]]
    number = len(set(cases))
    assert 2 < number < len(labels) / 2
    assert results["interval"] == f"95 % bootstrap interval over {number} groups of test examples"
    score = scores.weighted_classification(test.mean, labels, results["threshold"])
    for groups, same in ((cases, True), (None, False)):
        wanted = scores.bootstrap(score, len(labels), seed=0, replicates=40, groups=groups)
        assert (results["nll_interval"] == pytest.approx(wanted["nll"])) is same
        assert (results["ece_interval"] == pytest.approx(wanted["ece"])) is same


# scores of numbers


@pytest.fixture(scope="module")
def numbers(place):
    """Three MAP solutions on a table of y = 1000 + 50 (a + b + c)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 3))
    rows = np.column_stack([x, 1000 + 50 * x.sum(1)])
    np.savetxt(place / "houses.csv", rows, delimiter=",", header="a,b,c,price", comments="")
    source = ("--dataset", "table", "--path", place / "houses.csv")
    train(*source, "--method", "map", "--members", "3", "--out", place / "numbers")
    return place / "numbers"


def test_a_regression_is_judged_in_the_unit_of_its_target(numbers, monkeypatch):
    monkeypatch.setattr(evaluation, "write", WRITE)
    results = call(numbers, *FAST)
    loaded = trained.load(numbers)
    found = data.load(loaded.config, loaded.config.seed)
    prices = np.loadtxt(numbers.parent / "houses.csv", delimiter=",", skiprows=1)[:, 3]
    y = prices[np.array(found.ids["test"], int) - 2]  # an id is a line of the file, the first its header
    one = lambda i: loaded.model.apply(loaded.draw(loaded.source, i), found.x_test)
    outputs = [one(i) for i in range(3)]
    assert results["num_draws"] == 3  # all that there are
    scale, shift = found.scaling.target_scale, found.scaling.target_shift
    mean = np.mean([loaded.model.likelihood.mean(o) for o in outputs], axis=0) * scale + shift
    assert results["rmse"] == pytest.approx(np.sqrt(np.mean((mean - y) ** 2)), rel=1e-4)
    assert results["rmse"] > 5
    means = np.stack([loaded.model.likelihood.mean(o) for o in outputs]) * scale + shift
    variances = np.stack([loaded.model.likelihood.noise(o) for o in outputs]) * scale**2
    wanted = regression_scores.regression(means, variances, y)
    assert {name: results[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    assert all(len(results[f"{name}_interval"]) == 2 for name in wanted)
    assert not {"threshold", "temperature", "aurc"} & set(results)
    assert {path.stem for path in (numbers / "evaluation").glob("*.png")} == {"predicted", "coverage"}
    assert "RMSE" in (numbers / "evaluation.html").read_text(encoding="utf-8")


def test_chains_tell_whether_they_have_met(numbers, tmp_path, monkeypatch):
    """R-hat and effective draws of what they predict; of very short ones nothing."""
    monkeypatch.setattr(evaluation, "write", WRITE)
    source = ("--dataset", "table", "--path", numbers.parent / "houses.csv", "--method", "hmc")
    sizes = ("--num-warmup", "24", "--num-draws", "8", "--block-size", "4", "--trajectory-length", "0.02")
    train(*source, *sizes, "--steps", "100", "--out", tmp_path / "run")
    results = call(tmp_path / "run", *FAST)
    loaded = trained.load(tmp_path / "run")
    values = trained.by_chain(loaded, data.load(loaded.config, loaded.config.seed).x_test)
    assert values.shape[:2] == (2, 8)
    assert results["rhat_function_median"] == pytest.approx(np.median(diagnostics.rhat(values)), rel=1e-3)
    assert results["num_chains"] == 2
    short = loaded._replace(chains=loaded.chains[:, :3])
    assert evaluate.convergence(short, values) == {"num_chains": 2}


def test_numbers_of_images_are_predicted_over_crops(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 8, 8), np.uint8)
    examples = [{"image": png(image), "age": float(image[2:6, 2:6].mean())} for image in images]
    parts = {"train": examples[:60], "test": examples[60:]}
    write(tmp_path / "ages" / "1.0.0", parts, {"image": IMAGE, "age": tensor()}, ("image", "age"))
    crops = ("--crop", "6", "--crop-stride", "2", "--method", "map", "--out", tmp_path / "run")
    train("--dataset", "ages", "--path", tmp_path, *crops)
    results = call(tmp_path / "run", *FAST)
    loaded = trained.load(tmp_path / "run")
    found = data.load(loaded.config, 0)
    params = loaded.draw(loaded.source, 0)
    views = [found.x_test[:, i : i + 6, j : j + 6] for i in (0, 2) for j in (0, 2)]
    mean = np.mean([loaded.model.likelihood.mean(loaded.model.apply(params, v)) for v in views], axis=0)
    error = found.scaling.target_scale * (mean - found.y_test)
    assert results["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)


# what a user may do wrong

MISTAKES = {
    "no run": (["nowhere"], "no run folder at nowhere"),
    "another folder": (["foreign"], "is not a run of train"),
    "unfinished": (["begun"], "begun is not finished; run its command again first"),
    "unfinished later": (["stopped"], "stopped is not finished"),
    "changed data": (["changed"], "the data are not those that changed was trained on; bring them back"),
    "no data": (["gone"], "no file gone.npz"),
    "draws": (["run", "--num-draws", "0"], "--num-draws must be at least 1, and --num-bootstrap at least 2"),
    "replicates": (["run", "--num-bootstrap", "1"], "--num-draws must be at least 1, and --num-bootstrap at"),
    "refer": (["run", "--refer", "1"], "--refer must lie between 0 and 1, not 1.0"),
    "recall": (["run", "--recall", "0"], "--recall must lie in (0, 1], not 0.0"),
    "recall nan": (["run", "--recall", "nan"], "--recall must lie in (0, 1], not nan"),
    "path alone": (["run", "--ood-path", "big.npz"], "--ood-path needs --ood-dataset"),
    "no foreign data": (["run", "--ood-dataset", "medmnist"], "the data set medmnist needs --path"),
    "foreign table": (
        ["run", "--ood-dataset", "table", "--ood-path", "a.csv"],
        "a has examples of shape (3,), the run was trained on (8, 8, 1)",
    ),
    "recall of numbers": (["numbers", "--recall", "0.9"], "are for images with classes"),
    "corrupted numbers": (["numbers", "--corruptions"], "are for images with classes"),
    "foreign numbers": (["numbers", "--ood-dataset", "digits"], "are for images with classes"),
}


@pytest.fixture(scope="module")
def wrong(run, numbers, tmp_path_factory):
    """A folder with what lies in a user's way."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "run").symlink_to(run)
    (folder / "numbers").symlink_to(numbers)
    for name, lost in (("begun", "data.json"), ("stopped", "outcome.json")):
        shutil.copytree(run, folder / name)
        (folder / name / lost).unlink()
    pixels = np.load(run.parent / "a.npz")["test_images"].copy()
    pixels[0, 0, 0] ^= 1
    with contextlib.chdir(folder):
        copied(run, folder, test_images=pixels).rename("changed")
        shutil.copy(run / experiment.DATA, "changed")
        shutil.copytree("changed", "gone")
        mark = (folder / "gone" / runs.MARK).read_text()
        (folder / "gone" / runs.MARK).write_text(mark.replace(str(folder / "b.npz"), "gone.npz"))
        table(folder / "a.csv")
        big = {
            f"{part}_images": np.zeros((n, 9, 9), np.uint8)
            for part, n in zip(("train", "val", "test"), (40, 16, 8), strict=True)
        }
        big["train_images"][::2] = 9
        medmnist(folder / "big.npz", **big)
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.txt").write_text("mine")
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line_before_anything_is_predicted(name, wrong, monkeypatch):
    arguments, message = MISTAKES[name]
    monkeypatch.chdir(wrong)
    monkeypatch.setattr(predict, "build", lambda *args, **settings: pytest.fail("too late"))
    monkeypatch.setattr(predict, "build_mixture", lambda *args, **settings: pytest.fail("too late"))
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(Path().rglob("*")) == before


def test_other_data_are_taken_as_the_run_saw_its_own(run, place, monkeypatch):
    """In the run's own scaling, from its own data folder; images that it cannot load so are resized."""
    loaded = trained.load(run)
    asked = []

    def load(given, options, seed):
        asked.append(options)
        return data.assemble(
            "other",
            data.Part(np.full((2, *given), 0.5) * np.arange(2).reshape(2, *[1] * len(given)), np.arange(2)),
            data.Part(np.full((3, *given), 0.25), np.zeros(3, int)),
            num_classes=2,
            description="",
        )

    config = evaluate.Config(run, ood_dataset="folder")
    here = loaded._replace(config=loaded.config.__class__(data_dir=place))
    square, wide, line = (8, 8, 1), (8, 6, 3), (4,)
    cases = ((square, square, 8), (square, (5, 7, 3), 8), (wide, wide, None), (line, line, None))
    for shape, given, size in cases:
        monkeypatch.setattr(data, "load", functools.partial(load, given))
        other = evaluate.foreign(config, here._replace(data={"x_shape": list(shape)}))
        wanted = (0.25 - loaded.scaling.shift.item()) / loaded.scaling.scale.item()
        np.testing.assert_allclose(other, np.full((3, *shape), wanted), rtol=1e-5)
        channels = shape[2] if len(shape) == 3 else None
        assert (asked[-1].image_size, asked[-1].channels, asked[-1].data_dir) == (size, channels, place)


def test_views_of_pixels_are_not_corrupted(run):
    """They are no pixels: blur of a spectrum is none of the image."""
    loaded = trained.load(run)
    seen = loaded._replace(config=dataclasses.replace(loaded.config, view="fourier"))
    config = evaluate.Config(run, corruptions=True)
    evaluate.check(config, loaded, data.load(loaded.config))
    with pytest.raises(
        UserError, match="--corruptions is for pixels as they are; the run sees the view fourier"
    ):
        evaluate.check(config, seen, data.load(loaded.config))


def test_members_are_asked_equally_often(numbers, monkeypatch):
    monkeypatch.setattr(evaluation, "write", WRITE)
    assert call(numbers, *FAST, "--num-draws", "2")["num_draws"] == 3
