"""Runs that stream: what they end with is what a run with its data in memory ends with."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from test_data_catalogue import IMAGE, LABEL, pictures, stored, write

from bnn_jax import checkpoint, data, experiment, predict, streamed, trained
from bnn_jax.commands import evaluate
from bnn_jax.commands import train as train_command
from bnn_jax.report import dataset, evaluation
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
TWO = {**LABEL, "classLabel": {"numClasses": "2"}}
SIZES = {"train": 60, "validation": 24, "test": 24}
VI = (
    "--net",
    "shallow",
    "--method",
    "vi",
    "--estimator",
    "sampling",
    "--batch-size",
    "16",
    "--eval-draws",
    "2",
)
LONG = ("--steps", "10", "--eval-every", "3", "--keep", "3", "--learning-rate", "0.01", "--seed", "1")
CHANGED = ("--brightness", "0.8", "1.2", "--balance", "over_sample")


@pytest.fixture(scope="module", autouse=True)
def compiled_once(quick_compile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "build", functools.cache(predict.build))
        patch.setattr(dataset, "write", lambda *args: None)
        patch.setattr(evaluation, "write", lambda *args: None)
        yield


def examples(count, seed):
    """Two classes, 2 to 1, the smaller brighter on the left."""
    x, y = pictures(count, 6, seed)
    y = y // 2
    x[y == 1, :, :3] //= 2
    x[y == 1, :, :3] += 128
    return stored(x, y)


def prepare(root, name="shapes", changed=lambda part, found: found, sizes=SIZES):
    found = {part: changed(part, examples(count, i)) for i, (part, count) in enumerate(sizes.items())}
    write(root / name / "1.0.0", found, {"image": IMAGE, "label": TWO}, shards=2)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"))


def train(*arguments):
    train_command.main(tyro.cli(experiment.Config, args=[*map(str, arguments)]))


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """The same run, streamed and in memory."""
    folder = tmp_path_factory.mktemp("runs")
    for name, how in (("disk", ["--stream"]), ("memory", [])):
        train("--dataset", "shapes", "--path", root, *VI, *LONG, *CHANGED, *how, "--out", folder / name)
    return folder


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)


def state(run):
    return trained.load(run).source[1]


def rows(run):
    return json.loads((run / "history.json").read_text())


# the data


def options(root, **changed):
    return data.Options(**{"dataset": "shapes", "path": root, "stream": True} | changed)


def test_the_parts_are_those_in_memory(root, monkeypatch):
    found, memory = streamed.load(options(root)), data.load(options(root, stream=False))
    for name in ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"):
        one, two = (getattr(set_, name) for set_ in (found, memory))
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        np.testing.assert_array_equal(one[:], two)
    same = ("name", "num_classes", "class_names", "scaling")
    assert all(getattr(found, name) == getattr(memory, name) for name in same)
    assert not isinstance(found.x_val, np.ndarray)
    small = streamed.load(options(root, image_size=3, channels=3))
    wanted = data.load(options(root, image_size=3, channels=3, stream=False))
    np.testing.assert_allclose(small.x_test[:], wanted.x_test, atol=1e-6)
    monkeypatch.setenv(data.DATA_DIR, str(root.parent))
    assert len(streamed.load(options(Path(root.name))).y_test) == 24  # found in the folder of raw data


def test_without_validation_part(tmp_path):
    prepare(tmp_path, sizes={"train": 9, "test": 6})
    found = streamed.load(options(tmp_path))
    assert found.x_val is None
    assert found.y_val is None


def flip(row, part="train"):
    """Another label; the moments of the pixels stay."""

    def changed(name, found):
        if name == part:
            found[row]["label"] = 1 - found[row]["label"]
        return found

    return changed


def swap(a, b, part="test"):
    """Two pictures of one class in each other's place: neither labels nor moments change."""

    def changed(name, found):
        if name == part:
            assert found[a]["label"] == found[b]["label"]
            found[a], found[b] = found[b], found[a]
        return found

    return changed


def test_the_fingerprint_knows_labels_and_the_examples_that_it_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "NUM_HASHED", 12)
    hashed = np.linspace(0, 23, 12).astype(int)
    assert {4, 6} <= set(hashed)
    assert not {1, 3} & set(hashed)
    changes = {
        "as it was": lambda part, found: found,
        "hashed": swap(4, 6),
        "passed over": swap(1, 3),
        "label": flip(1),
        "validation label": flip(1, "validation"),
        "test label": flip(1, "test"),
        "fewer": lambda part, found: found[:-1] if part == "test" else found,
    }
    found = {}
    for name, changed in changes.items():
        prepare(tmp_path / name, changed=changed)
        found[name] = data.fingerprint(streamed.load(options(tmp_path / name)))
    again = data.fingerprint(streamed.load(options(tmp_path / "as it was")))
    assert again == found["as it was"] == found.pop("passed over")
    assert len(set(found.values())) == len(found)


# the run


def test_a_streamed_run_ends_as_one_in_memory(runs):
    """Weights and history, under augmentation and over-sampling."""
    close(state(runs / "disk"), state(runs / "memory"))
    one, two = rows(runs / "disk"), rows(runs / "memory")
    assert [row["step"] for row in one] == [3, 6, 9, 10]
    assert [row.keys() for row in one] == [row.keys() for row in two]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert (runs / "disk" / "outcome.json").exists()
    parts = [
        [line.split(",")[::2] for line in (runs / name / "split.csv").read_text().split()]
        for name in ("disk", "memory")
    ]
    assert parts[0] == parts[1]


def test_it_judges_as_one_in_memory(runs):
    results = []
    for name in ("disk", "memory"):
        settings = ("--num-draws", "5", "--num-bootstrap", "30", "--corruptions")
        evaluate.main(tyro.cli(evaluate.Config, args=[str(runs / name), *settings]))
        results.append(json.loads((runs / name / evaluate.RESULT).read_text()))
        del results[-1]["config"], results[-1]["environment"], results[-1]["data"]["description"]
    assert {"nll", "threshold", "temperature", "referral_uncertainty"} <= set(results[0])
    (ones, form), (others, other_form) = map(jax.tree.flatten, results)
    assert form == other_form
    for one, other in zip(ones, others, strict=True):
        assert one == (other if isinstance(other, str) else pytest.approx(other, rel=1e-3, abs=1e-5))


def test_killed_it_goes_on_exactly(runs, root, tmp_path):
    """With what a kill after step 6 leaves: checkpoints until then, a row of the history too many."""
    out = tmp_path / "cut"
    shutil.copytree(runs / "disk", out)
    gone = [checkpoint.step_path(out / "checkpoints", step) for step in (9, 10)]
    for path in (out / "state", *gone):
        shutil.rmtree(path)
    for name in ("outcome.json", "history.csv"):
        (out / name).unlink()
    assert checkpoint.steps(out / "checkpoints") == [6]
    (out / "history.json").write_text(json.dumps(rows(runs / "disk")[:3]))
    train("--dataset", "shapes", "--path", root, *VI, *LONG, *CHANGED, "--stream", "--out", out)
    for name in ("history.json", "history.csv"):
        assert (out / name).read_bytes() == (runs / "disk" / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, state(out), state(runs / "disk"))


def test_changed_data_are_refused(runs, tmp_path):
    prepare(tmp_path, changed=flip(3))
    settings = (*VI, *LONG, *CHANGED, "--stream", "--out", runs / "disk")
    with pytest.raises(UserError, match=r"the data have changed since .* was begun"):
        train("--dataset", "shapes", "--path", tmp_path, *settings)


# what a user may do wrong

WRONG = {
    "in memory": (["--dataset", "digits"], "--stream is for prepared data sets; digits is read into memory"),
    "a file": (["--dataset", "medmnist"], "--stream is for prepared data sets; medmnist is read into memory"),
    "not prepared": (["--dataset", "mnist"], "the data set mnist is not prepared in"),
    "split": (["--split", "random"], "the data set shapes takes no --split"),
    "ratios": (["--ratios", "8", "1", "1"], "the data set shapes takes no --ratios"),
    "groups": (["--group-by", "p"], "the data set shapes takes no --group-by"),
    "target": (["--target", "price"], "the data set shapes takes no --target"),
    "fold": (["--fold", "0"], "the data set shapes takes no --fold"),
    "limit": (["--limit", "9"], "--stream reads whole parts: leave --limit out"),
    "view": (["--view", "hsv"], "--stream reads pixels as they are: leave --view hsv out"),
    "skip": (["--skip-bad"], "the data set shapes takes no --skip-bad"),
    "no test": (
        ["--dataset", "half"],
        "half 1.0.0 has no test part, and a stream keeps the parts that it has: leave",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_in_one_line(name, root, monkeypatch, tmp_path):
    arguments, message = WRONG[name]
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path / "prepared")
    prepare(tmp_path / "prepared", "half", sizes={"train": 9})
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        train("--dataset", "shapes", "--path", "prepared", *VI, "--stream", *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(Path().rglob("*")) == before
