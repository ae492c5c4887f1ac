"""Sheets of tiles: image i is tile i, of every sheet; and every set of sheets that is not whole."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bnn_jax import data
from bnn_jax.data import cifar10_tiles as tiles
from bnn_jax.types import UserError

needs_data = pytest.mark.skipif(
    data.DATA_DIR not in os.environ, reason=f"raw data: set {data.DATA_DIR} to their folder"
)
ROWS = 10  # tiles a side of the sheets made here; 100 in earnest
SIZE = ROWS * ROWS


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", ROWS)
    monkeypatch.setattr(tiles, "IMAGES", SIZE)


def image(number: int) -> np.ndarray:
    """The picture of that number: its first row is the number in base 256, the rest a gradient."""
    made = np.tile(np.arange(32, dtype=np.uint8)[:, None, None], (1, 32, 3))
    made[0, :, 0], made[0, :, 1] = number // 256, number % 256
    return made


def sheets(path, **changed) -> Path:
    """Six sheets of numbered images with the labels number % 10; `changed` labels."""
    path.mkdir(exist_ok=True)
    labels = {"class_names": np.array([f"kind {k}" for k in range(10)])}
    for i, batch in enumerate(tiles.BATCHES):
        numbers = np.arange(i * SIZE, (i + 1) * SIZE)
        labels[f"{batch}_labels"] = (numbers % 10).astype(np.uint8)
        sheet = np.block([[[image(numbers[ROWS * r + c])] for c in range(ROWS)] for r in range(ROWS)])
        Image.fromarray(sheet).save(path / f"{batch}_tiles.webp", lossless=True, method=0)
    np.savez(path / "labels.npz", **{n: a for n, a in (labels | changed).items() if a is not None})
    return path


def numbers(found, part) -> list[int]:
    raw = 255 * (getattr(found, f"x_{part}")[:, 0, 0] * found.scaling.scale + found.scaling.shift)
    return (np.rint(raw) @ [256, 1, 0]).astype(int).tolist()


def test_every_tile_is_the_image_of_its_number(small, tmp_path):
    found = tiles.load(sheets(tmp_path / "sheets"))
    assert numbers(found, "train") == [*range(5 * SIZE)]
    assert numbers(found, "test") == [*range(5 * SIZE, 6 * SIZE)]
    assert found.y_train.tolist() == [n % 10 for n in range(5 * SIZE)]
    assert found.class_names == tuple(f"kind {k}" for k in range(10))
    assert (found.num_classes, found.x_val, found.x_test.shape) == (10, None, (SIZE, 32, 32, 3))
    assert (found.ids["train"][-1], found.ids["test"][-1]) == (f"train/{5 * SIZE - 1}", f"test/{SIZE - 1}")
    raw = 255 * (found.x_train[7] * found.scaling.scale + found.scaling.shift)
    np.testing.assert_array_equal(np.rint(raw), image(7))


def test_validation_is_drawn_on_request(small, tmp_path):
    path = sheets(tmp_path / "sheets")
    for options in ({"ratios": (4, 1, 0)}, {"ratios": (4, 1, 0), "split": "given_test"}):
        found = tiles.load(path, **options)
        assert np.bincount(found.y_val).tolist() == [10] * 10
        assert sorted(numbers(found, "train") + numbers(found, "val")) == [*range(5 * SIZE)]
        assert numbers(found, "test") == [*range(5 * SIZE, 6 * SIZE)]
    assert len(tiles.load(path, split="random", ratios=(1, 1, 1)).y_test) == 2 * SIZE


def test_the_folder_by_default(small, tmp_path):
    sheets(tmp_path / "cifar10")
    found = data.load(data.Options(dataset="cifar10_tiles", data_dir=tmp_path))
    assert len(found.y_train) == 5 * SIZE
    with pytest.raises(UserError, match="needs --path FOLDER, or --data-dir"):
        tiles.load()
    with pytest.raises(UserError, match=r"no folder .*cifar10: give that"):
        tiles.load(data_dir=tmp_path / "nowhere")


def test_sheets_that_are_not_whole(small, tmp_path):
    path = sheets(tmp_path)
    good = (path / "test_tiles.webp").read_bytes()

    def told(message):
        with pytest.raises(UserError, match=message) as error:
            tiles.load(path)
        assert "\n" not in str(error.value)
        assert "--skip-bad" not in str(error.value)

    (path / "test_tiles.webp").write_bytes(good[:-1000])
    told(r"test_tiles\.webp is truncated or damaged .*fetch it again")
    Image.new("RGB", (320, 352)).save(path / "test_tiles.webp", lossless=True)
    told(r"test_tiles\.webp is 320 x 352 pixels, but a sheet of 10 x 10 tiles is 320 x 320")
    (path / "test_tiles.webp").unlink()
    (path / "train_batch3_tiles.webp").unlink()
    told(r"lacks train_batch3_tiles\.webp, test_tiles\.webp")


def test_labels_that_do_not_fit(small, tmp_path):
    for changes, message in [
        (
            dict(test_labels=np.zeros(SIZE - 1, np.uint8)),
            r"test_labels must be \(100,\) integers, not uint8 of sh",
        ),
        (dict(test_labels=np.zeros(SIZE)), "test_labels must be .* not float64"),
        (dict(test_labels=None), "not in the tiles' format: no array test_labels"),
        (dict(test_labels=np.full(SIZE, 10)), r"labels must lie in 0\.\.9"),
    ]:
        with pytest.raises(UserError, match=message):
            tiles.load(sheets(tmp_path, **changes))


@needs_data
def test_the_first_images_of_cifar10():
    """The labels that every tutorial prints, and no warning about the size of a sheet."""
    path = Path(os.environ[data.DATA_DIR]) / "cifar10"
    x = np.empty((tiles.IMAGES, 32, 32, 3), np.uint8)
    tiles._cut(path / "train_batch1_tiles.webp", x)
    with np.load(path / "labels.npz") as file:
        assert file["train_batch1_labels"][:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert x[0, 0, 0].tolist() == [59, 62, 63]
    assert x[0, 31, 31].tolist() == [123, 92, 72]
