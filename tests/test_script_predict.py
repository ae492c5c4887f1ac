"""scripts/predict.py as its users meet it: tiny real runs, their images, wrong input, earlier predictions."""

import csv
import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tyro
from matplotlib.figure import Figure
from PIL import Image
from problems import load_script

from bnn_jax import data, experiment, pixels, predict, settings, trained
from bnn_jax.commands import train as train_command
from bnn_jax.report import prediction
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
DRAWS = 12
DRAW = prediction.figure
QUICK = ("--num-draws", str(DRAWS))


@pytest.fixture(scope="module", autouse=True)
def compiled_once(quick_compile):
    """A run is loaded and compiled once for all tests, mistakes are not kept; pictures are blank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "load", functools.cache(trained.load))
        patch.setattr(predict, "build_mixture", functools.cache(predict.build_mixture))
        patch.setattr(prediction, "figure", lambda image, draws, record: Figure(figsize=(1, 1)))
        yield


SCRIPT = load_script("predict")


def train(*arguments):
    arguments = ("--net", "mlp", "--steps", "4", "--batch-size", "8", "--learning-rate", "0.01", *arguments)
    train_command.main(tyro.cli(experiment.Config, args=[str(a) for a in arguments]))


def call(*arguments):
    """Predict; the records in the folder."""
    arguments = [str(a) for a in arguments]
    config = tyro.cli(SCRIPT.Config, args=arguments)
    SCRIPT.main(config)
    return json.loads(((config.out or config.run / "predictions") / "predictions.json").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of 24 pictures of 10 x 10 pixels: noise, brighter above or below."""
    folder, rng = tmp_path_factory.mktemp("data") / "shapes", np.random.default_rng(0)
    for name, half in (("above", slice(0, 5)), ("below", slice(5, 10))):
        (folder / name).mkdir(parents=True)
        for i in range(24):
            picture = rng.integers(0, 160, (10, 10), np.uint8)
            picture[half] += 90
            Image.fromarray(picture).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def vi(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("vi") / "run"
    train("--dataset", "folder", "--path", images, "--method", "vi", "--estimator", "sampling", "--out", out)
    return out


@pytest.fixture(scope="module")
def point(images, tmp_path_factory):
    """MAP, on the spectra of the same images resized and in colours."""
    out = tmp_path_factory.mktemp("map") / "run"
    sizes = ("--image-size", "6", "--channels", "3", "--view", "fourier")
    train("--dataset", "folder", "--path", images, *sizes, "--method", "map", "--out", out)
    return out


@pytest.fixture
def run(vi):
    """To write an evaluation and predictions into, which are taken away afterwards."""
    yield vi
    (vi / "evaluation.json").unlink(missing_ok=True)
    shutil.rmtree(vi / "predictions", ignore_errors=True)


def some(images):
    return [images / "above" / "0.png", images / "below" / "0.png", images / "above" / "1.png"]


# numbers


@pytest.mark.parametrize("name", ["vi", "point"])
def test_probabilities_are_those_of_predict_on_the_training_arrays(name, images, tmp_path, request):
    """Reading and standardising here and in training give the same numbers, file by file."""
    folder = request.getfixturevalue(name)
    loaded = trained.load(folder)
    found = data.load(loaded.config, loaded.config.seed)
    with (folder / "split.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "test"]
    num_draws = loaded.num_draws or DRAWS
    ask = predict.build(loaded.model.apply, loaded.model.likelihood, loaded.draw, over=loaded.over)
    expected = ask(loaded.source, found.x_test, num_draws)
    records = call(folder, *(images / row["id"] for row in rows), "--out", tmp_path / "out", *QUICK)
    assert [record["num_draws"] for record in records] == [num_draws] * len(rows)
    for key, values in (("probs", expected.mean), ("probs_std", expected.std)):
        np.testing.assert_allclose([r[key] for r in records], values, rtol=1e-4, atol=1e-6)
    for key in ("total", "aleatoric", "epistemic"):
        np.testing.assert_allclose([r[key] for r in records], getattr(expected, key), rtol=1e-4, atol=1e-6)
    assert [r["predicted"] for r in records] == expected.mean.argmax(1).tolist()


def test_records_are_consistent_and_as_documented(run, images):
    records = call(run, *some(images), *QUICK)
    documented = SCRIPT.__doc__.split("an image:\n")[1]
    keys = {
        key for line in re.findall(r"^    ([a-z_, ]+?)  +\S", documented, re.M) for key in line.split(", ")
    }
    keys |= set(re.findall(r"; ([a-z_]+): ", documented))
    assert set(records[0]) == keys
    for record, path in zip(records, some(images), strict=True):
        assert record["image"] == str(path)
        assert sum(record["probs"]) == pytest.approx(1, abs=1e-6)
        assert record["total"] == pytest.approx(record["aleatoric"] + record["epistemic"], abs=1e-12)
        assert 0 <= record["epistemic"] <= record["total"] <= np.log(2) + 1e-6
        p = np.array(record["probs"])
        assert record["total"] == pytest.approx(-(p * np.log(p)).sum())
        assert record["probs_std"][0] == pytest.approx(record["probs_std"][1], abs=1e-6)
        assert record["predicted_name"] == record["class_names"][p.argmax()]
        assert record["class_names"] == ["above", "below"]
        assert record["refer"] is None
        assert record["label"] is None


def test_the_same_call_gives_the_same_numbers_and_the_order_does_not_matter(vi, images, tmp_path):
    paths = some(images)
    one, two, reverse = (tmp_path / name for name in ("one", "two", "reverse"))
    first = call(vi, *paths, "--out", one, *QUICK)
    assert call(vi, *paths, "--out", two, *QUICK) == first
    other = call(vi, *paths[::-1], "--out", reverse, *QUICK)[::-1]
    assert [r["image"] for r in other] == [r["image"] for r in first]
    for a, b in zip(first, other, strict=True):
        np.testing.assert_allclose(a["probs"], b["probs"], atol=1e-6)
        assert a["total"] == pytest.approx(b["total"], abs=1e-6)


def test_a_point_estimate_has_one_draw_and_says_what_that_means(point, images, tmp_path, capsys):
    record, *_ = call(point, *some(images), "--out", tmp_path / "out")
    assert record["num_draws"] == 1
    assert record["probs_std"] == [0, 0]
    assert record["epistemic"] == pytest.approx(0, abs=1e-6)
    printed = capsys.readouterr().out
    assert "±)" in printed.split("single set of weights")[1].split("\n")[0]
    assert "±" not in printed.split("single set of weights")[0]


def test_an_image_of_another_size_is_resized_as_training_would(vi, point, images, tmp_path, capsys):
    large = np.random.default_rng(1).integers(0, 255, (31, 23, 3), np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    Image.fromarray(pixels.read(tmp_path / "large.png", 10, 1)[..., 0]).save(tmp_path / "small.png")
    both = tmp_path / "large.png", tmp_path / "small.png"
    a, b = call(vi, *both, "--out", tmp_path / "vi", *QUICK)
    np.testing.assert_allclose(a["probs"], b["probs"], atol=1e-6)
    assert "1 of 2 images resized to the 10 x 10 pixels of training" in capsys.readouterr().out
    call(point, *both, "--out", tmp_path / "map")
    assert "resized" not in capsys.readouterr().out  # training resized, too


def test_what_is_shown_is_what_the_network_sees(vi):
    loaded = trained.load(vi)
    images = np.random.default_rng(0).integers(0, 255, (3, 10, 10, 1), np.uint8)
    np.testing.assert_array_equal(SCRIPT.shown(loaded, images), images[..., 0] / np.float32(255))
    config = dataclasses.replace(loaded.config, crop=4)
    cropped = loaded._replace(config=config, over=settings.over_images(config))
    np.testing.assert_array_equal(SCRIPT.shown(cropped, images), images[:, 3:7, 3:7, 0] / np.float32(255))
    config = dataclasses.replace(config, crop_stride=2)
    many = loaded._replace(config=config, over=settings.over_images(config))
    assert SCRIPT.shown(many, images).shape == (3, 10, 10)


# labels


def test_labels_come_from_the_folder_a_name_or_a_number(vi, images, tmp_path):
    folders = call(vi, *some(images), "--label-from-folder", "--out", tmp_path / "a", *QUICK)
    assert [(r["label"], r["label_name"]) for r in folders] == [(0, "above"), (1, "below"), (0, "above")]
    assert all(r["correct"] == (r["predicted"] == r["label"]) for r in folders)
    for label in ("below", "1"):
        named = call(vi, *some(images), "--label", label, "--out", tmp_path / label, *QUICK)
        assert {(r["label"], r["label_name"]) for r in named} == {(1, "below")}


# referral


def evaluation(run, **given):
    (run / "evaluation.json").write_text(json.dumps(given))


def test_the_rule_of_the_evaluation_decides_and_refers(run, images, capsys):
    paths = some(images)
    plain = call(run, *paths, *QUICK)
    assert "run scripts/evaluate.py" in capsys.readouterr().out
    totals = sorted(r["total"] for r in plain)
    cut = (totals[0] + totals[1]) / 2
    below = sorted(r["probs"][1] for r in plain)
    threshold = (below[1] + below[2]) / 2
    evaluation(run, threshold=threshold, referral_uncertainty=cut, referral_share=0.25, nll=0.5)
    ruled = call(run, *paths, *QUICK)
    assert [r["predicted"] for r in ruled] == [int(r["probs"][1] >= threshold) for r in plain]
    assert sorted(r["predicted"] for r in ruled) == [0, 0, 1]
    assert [r["refer"] for r in ruled] == [r["total"] > cut for r in plain]
    assert {(r["threshold"], r["referral_uncertainty"]) for r in ruled} == {(threshold, cut)}
    printed = capsys.readouterr().out
    assert f"below is predicted from a probability of {threshold:.3f} on" in printed
    assert "the most uncertain 25 % of the validation data" in printed
    assert "refer" in printed.splitlines()[2]
    for path, limit in ((paths[0], 0), (paths[0], 1)):
        (record, *_) = call(run, path, "--refer-above", limit, *QUICK)
        assert record["refer"] == (limit == 0)
        assert record["threshold"] == threshold


def test_a_threshold_that_is_just_reached_decides_for_class_1_and_the_limit_itself_is_not_above(run, images):
    (record,) = call(run, images / "above" / "0.png", *QUICK)
    evaluation(run, threshold=record["probs"][1], referral_uncertainty=record["total"])
    (ruled,) = call(run, images / "above" / "0.png", *QUICK)
    assert ruled["predicted"] == 1
    assert ruled["refer"] is False


def test_an_evaluation_without_validation_data_refers_nothing(run, images, capsys):
    evaluation(run, accuracy=0.5)
    (record,) = call(run, images / "above" / "0.png", *QUICK)
    assert record["refer"] is None
    assert record["threshold"] is None
    assert "no validation data" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given",
    [
        {"threshold": 1.5},
        {"threshold": {"value": 0.5}},
        {"referral_uncertainty": -1},
        {"threshold": float("nan")},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(run, images, given):
    evaluation(run, **given)
    with pytest.raises(UserError, match=r"no usable threshold or limit; run scripts/evaluate\.py again"):
        call(run, images / "above" / "0.png")


def test_a_threshold_is_for_two_classes(run):
    loaded = trained.load(run)
    three = loaded._replace(data=loaded.data | {"num_classes": 3})
    evaluation(run, threshold=0.5)
    with pytest.raises(UserError, match="no usable threshold"):
        SCRIPT.decision(SCRIPT.Config(run, ()), three)


# the folder of predictions


def test_predictions_are_collected_and_only_those_of_the_same_image_replaced(
    run, images, capsys, monkeypatch
):
    monkeypatch.setattr(prediction, "figure", DRAW)
    paths = some(images)
    call(run, paths[0], paths[1], *QUICK)
    out = run / "predictions"
    figures = {path.name for path in out.glob("*.png")}
    assert figures == {"0.png", "0-2.png"}  # one stem, two pictures
    assert all(pixels.read(out / name).shape[1] == 1425 for name in figures)  # 9.5 inches, 150 dots each
    kept = (out / "0.png").read_bytes()
    records = call(run, paths[1], paths[2], "--label", "below", *QUICK)
    assert [(r["image"], r["figure"], r["label"]) for r in records] == [
        (str(paths[0]), "0.png", None),
        (str(paths[1]), "0-2.png", 1),
        (str(paths[2]), "1.png", 1),
    ]
    assert (out / "0.png").read_bytes() == kept
    printed = capsys.readouterr().out
    assert "earlier predictions of 1 of these images are replaced" in printed
    assert "1 earlier predictions of other images are kept" in printed
    assert len(call(run, paths[2], paths[2].parent / ".." / "above" / "1.png", *QUICK)) == 3  # one image


def test_a_file_in_the_folder_is_never_overwritten(run, images):
    call(run, images / "above" / "0.png", *QUICK)
    mine = run / "predictions" / "7.PNG"
    shutil.copy(images / "above" / "7.png", mine)
    before = mine.read_bytes()
    records = call(run, images / "above" / "7.png", mine, *QUICK)
    assert [r["figure"] for r in records] == ["0.png", "7-2.png", "7-3.png"]
    assert mine.read_bytes() == before


# wrong input

MISTAKES = {
    "no run": (["nowhere", "good.png"], "no run folder at nowhere"),
    "another folder": (["foreign", "good.png"], "is not a run of train"),
    "unfinished": (["begun", "good.png"], "is not finished"),
    "unfinished later": (["stopped", "good.png"], "is not finished"),
    "no images": (["run"], "name at least one file"),
    "missing": (["run", "gone.png"], "gone.png cannot be read (No such file or directory)"),
    "folder": (["run", "foreign"], "foreign cannot be read (Is a directory)"),
    "text": (["run", "text.png"], "text.png is no PNG"),
    "truncated": (["run", "good.png", "cut.png"], "1 of 2 images cannot be predicted"),
    "all bad": (["run", "text.png", "--skip-bad"], "1 of 1 images cannot be predicted: text.png"),
    "draws": (["run", "good.png", "--num-draws", "0"], "--num-draws must be at least 1"),
    "label": (["run", "good.png", "--label", "2"], "--label: no class '2'; the run has 'above', 'below'"),
    "label folder": (["run", "good.png", "--label-from-folder"], "--label-from-folder: no class 'work'"),
    "both labels": (["run", "good.png", "--label", "0", "--label-from-folder"], "exclude each other"),
    "limit": (["run", "good.png", "--refer-above", "-1"], "--refer-above is an entropy in nats"),
    "limit nan": (["run", "good.png", "--refer-above", "nan"], "--refer-above is an entropy in nats"),
    "foreign out": (["run", "good.png", "--out", "foreign"], "not a run of predict; nothing was changed"),
    "run as out": (["run", "good.png", "--out", "run"], "not a run of predict; nothing was changed"),
    "file as out": (["run", "good.png", "--out", "good.png"], "is a file"),
    "table": (["table", "good.png"], "was trained on table, a table; this needs classes of images"),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rows = np.random.default_rng(0).normal(size=(60, 3))
    np.savetxt(folder / "table.csv", rows, delimiter=",", header="a,b,c", comments="")
    train("--dataset", "table", "--path", folder / "table.csv", "--method", "map", "--out", folder / "run")
    return folder / "run"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name, vi, table, images, tmp_path, monkeypatch):
    arguments, message = MISTAKES[name]
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("run").symlink_to(vi)
    Path("table").symlink_to(table)
    for folder, lost in (("begun", "data.json"), ("stopped", "outcome.json")):
        shutil.copytree(vi, folder)
        Path(folder, lost).unlink()
    Path("foreign").mkdir()
    Path("foreign/thesis.txt").write_text("mine")
    Path("text.png").write_text("no image")
    whole = (images / "above" / "0.png").read_bytes()
    Path("good.png").write_bytes(whole)
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    before = sorted(Path().rglob("*")), sorted(vi.rglob("*"))
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (sorted(Path().rglob("*")), sorted(vi.rglob("*"))) == before


def test_all_bad_images_are_named_at_once_or_left_out(run, images, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    good, bad = images / "above" / "0.png", [tmp_path / "text.png", tmp_path / "gone.png"]
    with pytest.raises(UserError) as caught:
        call(run, bad[0], good, bad[1])
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 3 images cannot be predicted; --skip-bad leaves them out:"
    assert [str(path) in line for path, line in zip(bad, lines[1:], strict=True)] == [True, True]
    assert not (run / "predictions").exists()
    (record,) = call(run, bad[0], good, bad[1], "--skip-bad", *QUICK)
    assert record["image"] == str(good)
    printed = capsys.readouterr().out
    assert all(f"left out: {path}" in printed for path in bad)


def test_predictions_of_another_run_are_not_mixed_in(vi, point, images, tmp_path):
    call(vi, images / "above" / "0.png", "--out", tmp_path / "out", *QUICK)
    with pytest.raises(UserError, match=r"holds a run with other settings .*method 'vi' there, 'map' here"):
        call(point, images / "above" / "0.png", "--out", tmp_path / "out")


def test_images_that_are_not_square_are_not_guessed(vi, images):
    loaded = trained.load(vi)
    wide = loaded._replace(data=loaded.data | {"x_shape": [10, 14, 1]})
    config = SCRIPT.Config(vi, (images / "above" / "0.png",))
    with pytest.raises(UserError, match="is 10 x 10 pixels, the run was trained on 14 x 10: resize it"):
        SCRIPT.read(config, wide)
