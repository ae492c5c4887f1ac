"""MNIST's own file format, read and refused."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from bnn_jax.data import DATA_DIR, idx
from bnn_jax.types import UserError


def write(file: Path, array: np.ndarray, kind: int = 0x08) -> None:
    content = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def folder(tmp_path: Path, parts=("train", "t10k"), suffix=".gz", num=40):
    """Images whose first pixel is their number, labels 0..3 in turn."""
    made = {}
    for part in parts:
        images = np.random.default_rng(len(part)).integers(0, 256, (num, 6, 5), np.uint8)
        images[:, 0, 0] = np.arange(num)
        labels = (np.arange(num) % 4).astype(np.uint8)
        write(tmp_path / f"{part}-images-idx3-ubyte{suffix}", images)
        write(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", labels)
        made[part] = images, labels
    return made


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_both_parts_in_order(tmp_path, suffix):
    made = folder(tmp_path, suffix=suffix)
    found = idx.load(tmp_path)
    assert found.x_train.shape == (40, 6, 5, 1)
    for part, name in (("train", "train"), ("test", "t10k")):
        raw = getattr(found, f"x_{part}") * found.scaling.scale + found.scaling.shift
        np.testing.assert_array_equal(np.rint(raw[..., 0] * 255), made[name][0])
        np.testing.assert_array_equal(getattr(found, f"y_{part}"), made[name][1])
    assert (found.num_classes, found.x_val) == (4, None)
    assert found.ids["test"][3] == "test/3"


def test_one_part_alone_is_divided(tmp_path):
    folder(tmp_path, parts=("t10k",))
    found = idx.load(tmp_path, seed=1)
    assert [len(found.y_train), len(found.y_val), len(found.y_test)] == [32, 4, 4]
    assert len({*found.ids["train"], *found.ids["val"], *found.ids["test"]}) == 40


def test_validation_is_drawn_from_the_training_part(tmp_path):
    made = folder(tmp_path)
    found = idx.load(tmp_path, ratios=(9, 1, 0))
    assert [len(found.y_train), len(found.y_val), len(found.y_test)] == [36, 4, 40]
    np.testing.assert_array_equal(found.y_test, made["t10k"][1])


def test_no_path_and_no_files(tmp_path):
    with pytest.raises(UserError, match="needs --path"):
        idx.load()
    with pytest.raises(UserError, match="has no train-images"):
        idx.load(tmp_path)


BAD = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-30]),
    "no gzip": lambda file: file.write_bytes(b"hello"),
    "floats": lambda file: write(file, np.zeros((40, 6, 5), np.uint8), kind=0x0D),
    "rank": lambda file: write(file, np.zeros((40, 30), np.uint8)),
    "short": lambda file: file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1])),
    "empty": lambda file: file.write_bytes(gzip.compress(b"")),
    "fewer": lambda file: write(file, np.zeros((39, 6, 5), np.uint8)),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_named(tmp_path, name):
    folder(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    BAD[name](file)
    with pytest.raises(UserError, match="train-images-idx3-ubyte") as error:
        idx.load(tmp_path)
    assert "\n" not in str(error.value)


def test_mnist():
    """The counts of each digit that the README of the original files gives."""
    root = os.environ.get(DATA_DIR)
    if not root or not (Path(root) / "mnist").is_dir():
        pytest.skip(f"{DATA_DIR} does not name a folder with mnist/")
    found = idx.load(Path(root) / "mnist")
    assert np.bincount(found.y_train).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(found.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert found.y_train[:5].tolist() == [5, 0, 4, 1, 9]
