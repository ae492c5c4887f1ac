"""Files in MedMNIST's format: parts, rows and names as stored; pickles stay closed; mistakes are told."""

import os
from pathlib import Path

import numpy as np
import pytest

from bnn_jax import data
from bnn_jax.data import medmnist
from bnn_jax.types import UserError

needs_data = pytest.mark.skipif(
    data.DATA_DIR not in os.environ, reason=f"raw data: set {data.DATA_DIR} to their folder"
)
SIZES = {"train": 40, "val": 10, "test": 20}
OPENED = []  # grows when someone unpickles a `Bomb`


def note(what):
    OPENED.append(what)


class Bomb:
    def __reduce__(self):
        return note, ("bang",)


def arrays(**changed) -> dict:
    """Every pixel of image i of all is i, so that pictures can be told apart; classes alternate."""
    made, start = {}, 0
    for part, size in SIZES.items():
        numbers = np.arange(start, start + size, dtype=np.uint8)
        made[f"{part}_images"] = np.broadcast_to(numbers[:, None, None], (size, 6, 6))
        made[f"{part}_labels"] = (numbers % 2)[:, None]
        start += size
    return {name: array for name, array in (made | changed).items() if array is not None}


def saved(path, **changed) -> Path:
    np.savez(path / "toy.npz", **arrays(**changed))
    return path / "toy.npz"


def numbers(found, part) -> list[int]:
    x = getattr(found, f"x_{part}") * found.scaling.scale + found.scaling.shift
    return np.rint(255 * x[:, 0, 0, 0]).astype(int).tolist()


def test_the_parts_of_the_file(tmp_path):
    found = medmnist.load(saved(tmp_path))
    assert (found.name, found.num_classes, found.class_names) == ("toy", 2, ())
    assert numbers(found, "train") == [*range(40)]
    assert numbers(found, "val") == [*range(40, 50)]
    assert numbers(found, "test") == [*range(50, 70)]
    assert found.y_val.tolist() == [0, 1] * 5
    assert [found.ids[part][-1] for part in SIZES] == ["train/39", "val/9", "test/19"]
    assert found.x_train.shape == (40, 6, 6, 1)
    assert found.x_train.mean() == pytest.approx(0, abs=1e-6)
    assert found.x_train.std() == pytest.approx(1, abs=1e-6)
    assert found.description.endswith("40 train, 10 val, 20 test; the parts it came with")


def test_without_a_validation_part_there_is_none_unless_it_is_asked_for(tmp_path):
    path = saved(tmp_path, val_images=None, val_labels=None)
    found = medmnist.load(path)
    assert (found.x_val, set(found.ids), len(found.y_train)) == (None, {"train", "test"}, 40)
    found = medmnist.load(path, split="given", ratios=(3, 1, 0))
    assert sorted(numbers(found, "train") + numbers(found, "val")) == [*range(40)]
    assert [len(found.y_val), len(found.y_test)] == [10, 20]


def test_other_splits(tmp_path):
    path = saved(tmp_path)
    found = medmnist.load(path, split="given_test", ratios=(4, 1, 0))
    assert numbers(found, "test") == [*range(50, 70)]
    assert sorted(numbers(found, "train") + numbers(found, "val")) == [*range(50)]
    found, other = (medmnist.load(path, seed=seed, split="random", ratios=(5, 1, 1)) for seed in (0, 1))
    assert [len(y) for y in (found.y_train, found.y_val, found.y_test)] == [50, 10, 10]
    assert sorted(n for part in SIZES for n in numbers(found, part)) == [*range(70)]
    assert found.ids != other.ids
    for part in SIZES:
        assert [n % 2 for n in numbers(found, part)] == getattr(found, f"y_{part}").tolist()
        start = {"train": 0, "val": 40, "test": 50}
        rows = [start[name.split("/")[0]] + int(name.split("/")[1]) for name in found.ids[part]]
        assert rows == numbers(found, part)


def test_copies_stay_together_in_a_drawn_split(tmp_path):
    twice = arrays()["train_images"] // 2
    path = saved(tmp_path, train_images=twice, train_labels=(twice[:, 0, 0] % 2)[:, None])
    for seed in range(5):
        found = medmnist.load(path, seed=seed, split="given_test")
        assert set(numbers(found, "train")) & set(numbers(found, "val")) == set()


def test_class_names_and_kinds_of_pixels(tmp_path):
    names = np.array(["normal", "pneumonia", "other"])
    found = medmnist.load(saved(tmp_path, class_names=names))
    assert (found.class_names, found.num_classes) == (("normal", "pneumonia", "other"), 3)
    plain = medmnist.load(saved(tmp_path))
    for kind in (np.int64, np.uint16):
        other = {name: a.astype(kind) for name, a in arrays().items() if name.endswith("images")}
        np.testing.assert_array_equal(medmnist.load(saved(tmp_path, **other)).x_train, plain.x_train)
    mixed = {"train_images": arrays()["train_images"] / 255}
    np.testing.assert_allclose(medmnist.load(saved(tmp_path, **mixed)).x_test, plain.x_test, atol=1e-6)
    floats = {name: a / 255 for name, a in arrays().items() if name.endswith("images")}
    np.testing.assert_allclose(medmnist.load(saved(tmp_path, **floats)).x_train, plain.x_train, atol=1e-6)
    rgb = {n: np.repeat(a[..., None], 3, -1) for n, a in arrays().items() if n.endswith("images")}
    assert medmnist.load(saved(tmp_path, **rgb)).x_train.shape == (40, 6, 6, 3)


def test_pickled_objects_are_never_opened(tmp_path):
    """As pixels, labels, names, or as the whole file; one that nobody needs is not touched either."""
    objects = np.array([Bomb()] * 40, dtype=object)
    for name in ("train_images", "train_labels", "class_names"):
        with pytest.raises(UserError, match="holds pickled Python objects, which are never loaded") as error:
            medmnist.load(saved(tmp_path, **{name: objects}))
        assert "\n" not in str(error.value)
    np.save(tmp_path / "whole.npy", objects)
    with pytest.raises(UserError, match=r"damaged or not an \.npz file"):
        medmnist.load(tmp_path / "whole.npy")
    medmnist.load(saved(tmp_path, extra=objects))
    assert OPENED == []
    with np.load(tmp_path / "toy.npz", allow_pickle=True) as file:
        file["extra"]
    assert OPENED  # it would have told


IMAGES = arrays()["train_images"]
LABELS = arrays()["train_labels"]
MISTAKES = {
    "no labels": (dict(train_labels=None), "not in MedMNIST format: no array train_labels"),
    "half a val": (dict(val_labels=None), "of val_images and val_labels only one is there"),
    "lengths": (dict(train_labels=LABELS[:-1]), "39 entries in train_labels for 40 images"),
    "flat images": (dict(train_images=IMAGES[:, 0]), r"train_images must be \(N, H, W\)"),
    "two channels": (dict(train_images=np.stack([IMAGES, IMAGES], -1)), r"not \(40, 6, 6, 2\)"),
    "empty part": (dict(test_images=IMAGES[:0], test_labels=LABELS[:0]), "test_images is empty"),
    "empty val": (dict(val_images=IMAGES[:0], val_labels=LABELS[:0]), "val_images is empty"),
    "text pixels": (dict(train_images=IMAGES.astype(str)), "must hold uint8 or float pixels, not <U"),
    "floats to 255": (dict(train_images=IMAGES.astype(np.float32)), r"span 0\.\.39: pixels must"),
    "large integers": (dict(train_images=IMAGES.astype(int) * 99), r"span 0\.\.3861: pixels must"),
    "nan": (dict(train_images=np.full((40, 6, 6), np.nan)), r"NaN or infinite values \(40 examples"),
    "other size": (
        dict(test_images=IMAGES[:20, :5]),
        r"train and test differ in shape: \(6, 6, 1\) and \(5, 6, 1\)",
    ),
    "float labels": (dict(train_labels=LABELS / 2), "train_labels must be integers, not float64"),
    "several labels": (dict(train_labels=np.repeat(LABELS, 2, 1)), r"\(40, 2\): one class an image"),
    "negative": (dict(test_labels=np.full(20, -1)), r"test_labels span -1\.\.-1"),
    "huge": (dict(train_labels=np.arange(40) * 10**12), "train_labels span"),
    "not numbered": (dict(train_labels=LABELS.astype(int) * 70), "label 70 among 70 images"),
    "unknown class": (dict(test_labels=np.full(20, 2)), r"labels must lie in 0\.\.1, found 2\.\.2"),
    "too few names": (dict(class_names=np.array(["a"])), r"labels must lie in 0\.\.0"),
    "numbered names": (dict(class_names=np.arange(2)), "class_names must be"),
    "one class": (dict(train_labels=LABELS * 0), "one class only|must lie in 0..0"),
    "one value": (dict(train_images=IMAGES * 0), "all training pixels have the same value"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(tmp_path, name):
    changes, message = MISTAKES[name]
    with pytest.raises(UserError, match=message) as error:
        medmnist.load(saved(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_no_file_that_could_be_read(tmp_path):
    whole = saved(tmp_path).read_bytes()
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[whole.index(b"NUMPY") + 200] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name, message in {
        "nowhere.npz": "no file",
        "text.npz": r"is damaged or not an \.npz file",
        "half.npz": r"is damaged or not an \.npz file",
        "flipped.npz": r"is damaged or not an \.npz file: .*CRC",
        ".": "is damaged or not an .npz file: .*Is a directory",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            medmnist.load(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"needs --path FILE\.npz"):
        medmnist.load()
    with pytest.raises(UserError, match="--ratios has no use"):
        medmnist.load(saved(tmp_path), ratios=(8, 1, 1))


@needs_data
def test_pneumonia_counts():
    """The published sizes and class counts."""
    found = medmnist.load(Path(os.environ[data.DATA_DIR]) / "pneumoniamnist.npz")
    counts = [np.bincount(y).tolist() for y in (found.y_train, found.y_val, found.y_test)]
    assert counts == [[1214, 3494], [135, 389], [234, 390]]
    assert found.x_train.shape[1:] == (28, 28, 1)
