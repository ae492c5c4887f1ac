"""Folders of image files: what is found, in which order, in which part; and every folder that is wrong."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bnn_jax import data, splits
from bnn_jax.data import folder
from bnn_jax.types import UserError

needs_data = pytest.mark.skipif(
    data.DATA_DIR not in os.environ, reason=f"raw data: set {data.DATA_DIR} to their folder"
)


def picture(path, value: int, size=(4, 4)) -> None:
    """One whose pixels tell its number: `value` and, so that no two are even, value + 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(size, value, np.uint8)
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(path)


def flat(root, number: int = 20) -> Path:
    """Two classes of `number` images, written backwards, so that the file system's order is another."""
    for i in reversed(range(number)):
        picture(root / "dog" / f"{i:02d}.png", 100 + i)
        picture(root / "cat" / f"{i:02d}.PNG", i)
    return root


def parted(root, names=("train", "val", "test")) -> Path:
    for part, name in enumerate(names):
        for i in range(10):
            picture(root / name / "cat" / f"{i}.png", 50 * part + i)
            picture(root / name / "dog" / f"{i}.png", 50 * part + 20 + i)
    return root


def values(found, part: str) -> list[int]:
    """The numbers that the pictures tell."""
    x = getattr(found, f"x_{part}") * found.scaling.scale + found.scaling.shift
    return np.rint(255 * x[:, -1, -1, 0]).astype(int).tolist()


def test_every_image_with_its_class_and_name(tmp_path):
    found = folder.load(flat(tmp_path / "pets"), ratios=(1, 1, 1))
    assert (found.name, found.class_names, found.num_classes) == ("pets", ("cat", "dog"), 2)
    seen = []
    for part in splits.PARTS:
        ids, labels = found.ids[part], getattr(found, f"y_{part}")
        assert list(ids) == sorted(ids)
        for name, label, value in zip(ids, labels, values(found, part), strict=True):
            assert name == f"{('cat', 'dog')[label]}/{value % 100:02d}.{('PNG', 'png')[label]}"
            assert label == value // 100
            seen.append(value)
    assert sorted(seen) == [*range(20), *range(100, 120)]
    assert found.x_train.dtype == np.float32
    assert found.left_out == ()


def test_either_of_two_classes_may_be_class_1(tmp_path):
    """What recall and precision are of; the parts stay what they are."""
    root = flat(tmp_path / "pets")
    plain, same, other = (folder.load(root, positive=name) for name in (None, "dog", "cat"))
    assert data.fingerprint(plain) == data.fingerprint(same)
    assert other.class_names == ("dog", "cat")
    assert other.ids == plain.ids
    for part in splits.PARTS:
        np.testing.assert_array_equal(getattr(other, f"y_{part}"), 1 - getattr(plain, f"y_{part}"))


def test_the_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    root, iterdir = flat(tmp_path / "pets"), Path.iterdir
    first = folder.load(root)
    for key in (lambda path: path.name, lambda path: path.name[::-1]):
        monkeypatch.setattr(Path, "iterdir", lambda self, key=key: reversed(sorted(iterdir(self), key=key)))
        again = folder.load(root)
        assert (data.fingerprint(again), again.ids) == (data.fingerprint(first), first.ids)


def test_parts_are_drawn_by_the_seed_in_equal_class_shares(tmp_path):
    root = flat(tmp_path / "pets")
    first, again, other = folder.load(root), folder.load(root), folder.load(root, seed=1)
    assert [len(y) for y in (first.y_train, first.y_val, first.y_test)] == [32, 4, 4]
    assert [np.bincount(y).tolist() for y in (first.y_val, first.y_test)] == [[2, 2], [2, 2]]
    assert first.ids == again.ids
    assert first.ids != other.ids
    told = "images of folder pets, 4 x 4 grey, 2 classes, standardised: 32 train, 4 val, 4 test; "
    assert other.description == told + "split random, drawn parts 8:1:1, seed 1"


def test_a_validation_part_of_ratio_zero_is_none(tmp_path):
    found = folder.load(flat(tmp_path), ratios=(3, 0, 1))
    assert (found.x_val, found.y_val, len(found.y_train), len(found.y_test)) == (None, None, 30, 10)
    assert set(found.ids) == {"train", "test"}


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "VALID", "Testing"), ("TRAIN", "validation", "test")]
)
def test_part_folders_are_kept(tmp_path, names):
    found = folder.load(parted(tmp_path, names))
    for i, (part, name) in enumerate(zip(splits.PARTS, names, strict=True)):
        assert values(found, part) == [50 * i + n for n in (*range(10), *range(20, 30))]
        assert found.ids[part][0] == f"{name}/cat/0.png"
        assert getattr(found, f"y_{part}").tolist() == [0] * 10 + [1] * 10
    assert found.description.endswith("20 train, 20 val, 20 test; split given")


def test_a_missing_part_is_drawn_from_train_and_on_request_anew(tmp_path):
    two = parted(tmp_path / "two", ("train", "test"))
    found = folder.load(two, ratios=(3, 1, 1))
    assert sorted(values(found, "train") + values(found, "val")) == [*range(10), *range(20, 30)]
    assert [len(y) for y in (found.y_train, found.y_val, found.y_test)] == [15, 5, 20]
    assert folder.load(two, ratios=(1, 0, 0)).y_val is None
    three = parted(tmp_path / "three")
    found = folder.load(three, split="given_test", ratios=(1, 1, 0))
    assert values(found, "test") == [100 + n for n in (*range(10), *range(20, 30))]
    assert {name.split("/")[0] for name in found.ids["val"]} == {"train", "val"}
    found = folder.load(three, split="random")
    assert {name.split("/")[0] for name in found.ids["train"]} == {"train", "val", "test"}
    assert [len(y) for y in (found.y_train, found.y_val, found.y_test)] == [48, 6, 6]


def test_copies_and_groups_stay_together(tmp_path):
    """Ten pairs of copies under unlike names, and ten patients of two unlike images each."""
    for i in range(10):
        for label in ("cat", "dog"):
            for twin in ("a", "b"):
                picture(tmp_path / "copies" / label / f"{twin}{i}.png", i + 100 * (label == "dog"))
                picture(tmp_path / "patients" / label / f"{twin}_p{label}{i}.png", 2 * i + 7 * (twin == "b"))
    for seed in range(5):
        found = folder.load(tmp_path / "copies", seed=seed)
        where = Counter((v, part) for part in splits.PARTS for v in values(found, part))
        assert set(where.values()) == {2}
        found = folder.load(tmp_path / "patients", seed=seed, group_by=r"_(p\w+)\.")
        patients = [{n.split("_")[1] for n in found.ids[part]} for part in splits.PARTS]
        assert sum(map(len, patients)) == 20


def test_a_group_is_found_in_the_file_name_alone(tmp_path):
    with pytest.raises(UserError, match=r"finds no id in the name '00\.PNG'"):
        folder.load(flat(tmp_path), group_by="cat|dog")


def test_what_lies_beside_the_classes_is_passed_over(tmp_path):
    root = parted(tmp_path)
    for name in ("SHA256SUMS", "metadata.csv", ".DS_Store", "train/notes.txt", "train/cat/.hidden.png"):
        (root / name).write_text("no picture")
    (root / "__MACOSX").mkdir()
    (root / ".git").mkdir()
    assert len(folder.load(root).y_train) == 20


def test_size_and_channels_reach_the_files(tmp_path):
    root = flat(tmp_path)
    picture(root / "cat" / "wide.png", 3, size=(4, 9))
    with pytest.raises(UserError, match=r"00\.PNG is 4 x 4 pixels, .*wide\.png 9 x 4; pass --image-size"):
        folder.load(root)
    assert folder.load(root, image_size=6, channels=3).x_train.shape[1:] == (6, 6, 3)


def test_bad_files_are_named_or_left_out(tmp_path):
    root = flat(tmp_path)
    (root / "cat" / "list.txt").write_text("no picture")
    (root / "dog" / "fake.png").write_text("no picture")
    picture(root / "stray.png", 3)
    with pytest.raises(UserError, match=r"stray\.png lies in no class folder: .*--skip-bad"):
        folder.load(root)
    (root / "stray.png").unlink()
    with pytest.raises(UserError, match=r"cat/list\.txt has no suffix of an image file .*--skip-bad"):
        folder.load(root)
    picture(root / "stray.png", 3)
    found = folder.load(root, skip_bad=True)
    assert sum(len(ids) for ids in found.ids.values()) == 40
    names = [told.split(" ")[0] for told in found.left_out]
    assert names == ["stray.png", "cat/list.txt", "dog/fake.png"]
    assert str(tmp_path) not in " ".join(found.left_out)


def test_a_bad_file_does_not_shift_the_parts(tmp_path):
    root = parted(tmp_path)
    (root / "train" / "cat" / "0.png").write_text("no picture")
    found = folder.load(root, skip_bad=True)
    assert values(found, "train") == [*range(1, 10), *range(20, 30)]
    assert values(found, "test") == [100 + n for n in (*range(10), *range(20, 30))]


def without(root, name):
    for file in (root / name).iterdir():
        file.unlink()
    (root / name).rmdir()


def wrong(root, name) -> Path:
    """A folder with the mistake of that name."""
    if name == "no folder":
        return root / "nowhere"
    if name == "a file":
        (root / "file").write_text("")
        return root / "file"
    if name in ("parts and classes", "one too high"):
        flat(root)
        parted(root if name == "parts and classes" else root / "inner")
    elif name in ("one part twice", "no train"):
        parted(root, ("val", "valid", "train") if name == "one part twice" else ("val", "test"))
    elif name in ("class not in test", "class not in val"):
        without(parted(root), "test/dog" if name == "class not in test" else "val/cat")
    elif name == "empty part":
        (parted(root, ("train", "test")) / "val").mkdir()
    elif name in ("useless ratios", "useless groups"):
        parted(root)
    elif name != "nothing in it":
        flat(root)
    if name == "empty class":
        (root / "emu").mkdir()
    elif name == "one image":
        picture(root / "emu" / "1.png", 1)
    elif name == "one class":
        without(root, "dog")
    return root


MISTAKES = {
    "no folder": r"no folder .*nowhere",
    "a file": "is a file, not a folder",
    "nothing in it": "holds no class folders",
    "empty class": "emu holds no images",
    "one class": r"one class only \(cat\)",
    "one image": "class emu has one image",
    "class not in test": "class dog has no images in the test folder: .*--split random",
    "class not in val": "class cat has no images in the val folder",
    "empty part": "val holds no class folders",
    "one too high": "class folder inner holds a folder, inner/test",
    "parts and classes": r"part folders \(test\) and others \(cat",
    "one part twice": "val and valid, one part twice",
    "no train": "no train part",
    "given nothing": "needs data that come with parts",
    "useless ratios": "--ratios has no use",
    "useless groups": "--group-by has no use",
    "unknown class 1": "--positive emu must be one of two class folders; .* has cat, dog",
}
OPTIONS = {
    "given nothing": {"split": "given"},
    "useless ratios": {"ratios": (8, 1, 1)},
    "useless groups": {"group_by": r"(\d)"},
    "unknown class 1": {"positive": "emu"},
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(tmp_path, name):
    with pytest.raises(UserError, match=MISTAKES[name]) as error:
        folder.load(wrong(tmp_path, name), **OPTIONS.get(name, {}))
    assert "\n" not in str(error.value)


def test_a_path_is_needed():
    with pytest.raises(UserError, match="needs --path FOLDER"):
        folder.load()


def test_a_class_missing_in_a_part_does_not_matter_when_all_parts_are_drawn(tmp_path):
    without(parted(tmp_path), "test/dog")
    assert len(folder.load(tmp_path, split="random").y_train) == 40


def test_a_class_of_bad_files_only_is_missing(tmp_path):
    root = parted(tmp_path)
    for file in (root / "test" / "dog").iterdir():
        file.write_text("no picture")
    with pytest.raises(UserError, match="class dog has no images in the test folder"):
        folder.load(root, skip_bad=True)


# real data


@needs_data
def test_chest_x_rays_come_in_their_official_split():
    root = Path(os.environ[data.DATA_DIR]) / "chest_xray_224"
    found = folder.load(root, image_size=8)
    assert found.class_names == ("NORMAL", "PNEUMONIA")
    counts = [np.bincount(y).tolist() for y in (found.y_train, found.y_val, found.y_test)]
    assert counts == [[1341, 3875], [8, 8], [234, 390]]


@needs_data
def test_copied_brain_scans_stay_together():
    """25 of the 253 scans are copies, by the metadata that come with them: 22 groups, none torn apart."""
    root = Path(os.environ[data.DATA_DIR]) / "brain_mri_yesno"
    with open(root / "metadata.csv", newline="") as file:
        copies = [(row["file"], row["duplicate_of"]) for row in csv.DictReader(file) if row["duplicate_of"]]
    assert len(copies) == 25
    for seed in range(3):
        found = folder.load(root, seed=seed, image_size=32)
        place = {name: part for part, ids in found.ids.items() for name in ids}
        assert len(place) == 253
        assert [pair for pair in copies if place[pair[0]] != place[pair[1]]] == []
