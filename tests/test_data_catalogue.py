"""Prepared data sets, written here by hand and without TensorFlow: what is read is what was stored."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from bnn_jax import data, prepared
from bnn_jax.data import catalogue
from bnn_jax.types import UserError

IMAGE = {
    "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
    "image": {"shape": {"dimensions": ["-1", "-1", "1"]}, "dtype": "uint8", "encodingFormat": "png"},
}
LABEL = {
    "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
    "classLabel": {"numClasses": "3"},
}
TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}


def tensor(*shape, dtype="float32"):
    return {
        "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
        "tensor": {"shape": {"dimensions": list(map(str, shape))}, "dtype": dtype, "encoding": "none"},
    }


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write(folder, splits, features, keys=("image", "label"), file_format="array_record", shards=1):
    """A prepared data set in `folder` (NAME/VERSION): split -> examples, each feature -> value."""
    folder.mkdir(parents=True)
    name, version = folder.parent.name, folder.name
    parts = []
    for split, examples in splits.items():
        pieces = np.array_split(np.arange(len(examples)), shards)
        for shard, rows in enumerate(pieces):
            file = folder / f"{name}-{split}.{file_format}-{shard:05}-of-{shards:05}"
            writer = ArrayRecordWriter(str(file), "group_size:1")
            for row in rows:
                writer.write(_record(examples[row]))
            writer.close()
        parts.append(
            {
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(rows)) for rows in pieces],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    supervised = (
        {"supervisedKeys": {"tuple": {"items": [{"featureKey": key} for key in keys]}}} if keys else {}
    )
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": parts} | supervised
    (folder / "dataset_info.json").write_text(json.dumps(info))
    root = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    nested = {"pythonClassName": root, "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(nested))
    return folder


def _record(example):
    record = tf_example_pb2.Example()
    for key, value in example.items():
        feature = record.features.feature[key]
        if isinstance(value, bytes | str):
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
        elif np.asarray(value).dtype.kind == "f":
            feature.float_list.value.extend(np.atleast_1d(value))
        else:
            feature.int64_list.value.extend(np.atleast_1d(value))
    return record.SerializeToString()


def pictures(count, side=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side), np.uint8), np.arange(count) % 3


def stored(x, y):
    return [{"image": png(image), "label": int(label)} for image, label in zip(x, y, strict=True)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data set `shapes`: 600 + 9 + 12 images of 3 classes in two shards."""
    root = tmp_path_factory.mktemp("tfds")
    splits = {"train": 600, "validation": 9, "test": 12, "extra": 3}
    examples = {split: stored(*pictures(count, seed=count)) for split, count in splits.items()}
    write(root / "shapes" / "1.2.0", examples, {"image": IMAGE, "label": LABEL}, shards=2)
    return root


def raw(data, part):
    return np.rint(255 * (getattr(data, f"x_{part}") * data.scaling.scale + data.scaling.shift))[..., 0]


def test_every_example_is_what_was_stored_and_where(root):
    found = catalogue.load(root, name="shapes")
    for part, count in {"train": 600, "val": 9, "test": 12}.items():
        x, y = pictures(count, seed=count)
        np.testing.assert_array_equal(raw(found, part), x)
        np.testing.assert_array_equal(getattr(found, f"y_{part}"), y)
    assert found.x_train.dtype == np.float32
    assert found.num_classes == 3
    assert found.ids["val"][:2] == ("validation/0", "validation/1")
    assert found.description == (
        "shapes 1.2.0 prepared by TensorFlow Datasets, 4 x 4 grey, standardised: 600 train, 9 val, 12 test; "
        "the parts it came with; unused splits extra"
    )


def test_through_the_options(root, monkeypatch):
    monkeypatch.setenv(prepared.DATA_DIR, str(root))
    found = data.load(data.Options(dataset="shapes"))
    assert found.name == "shapes"
    again = data.load(data.Options(dataset="shapes:1.2.0", path=root))
    assert data.fingerprint(found) == data.fingerprint(again)
    assert data.load(data.Options(dataset="shapes", image_size=2, channels=3)).x_test.shape == (12, 2, 2, 3)


def test_a_split_that_is_drawn_keeps_what_it_says(root):
    given = catalogue.load(root, name="shapes")
    drawn = catalogue.load(root, name="shapes", split="given_test", ratios=(2, 1, 0), seed=1)
    np.testing.assert_array_equal(raw(drawn, "test"), raw(given, "test"))
    assert [len(drawn.x_train), len(drawn.x_val)] == [406, 203]
    names = sorted(drawn.ids["train"] + drawn.ids["val"])
    assert names == sorted(given.ids["train"] + given.ids["val"])


def test_without_parts_all_are_drawn_and_copies_stay_together(tmp_path):
    x, y = pictures(90)
    x = np.repeat(x[:30], 3, 0)  # three copies of each
    y = np.repeat(y[:30], 3)
    write(tmp_path / "one" / "1.0.0", {"train": stored(x, y)}, {"image": IMAGE, "label": LABEL})
    found = catalogue.load(tmp_path, name="one")
    seen = {part: {image.tobytes() for image in raw(found, part)} for part in ("train", "val", "test")}
    assert sum(map(len, seen.values())) == 30
    assert all(seen.values())


def test_names_of_examples_group_them(tmp_path):
    x, y = pictures(60)
    examples = [e | {"id": f"cats/p{i // 6}_{i}.png"} for i, e in enumerate(stored(x, y))]
    write(tmp_path / "named" / "1.0.0", {"train": examples}, {"image": IMAGE, "label": LABEL, "id": TEXT})
    found = catalogue.load(tmp_path, name="named", group_by=r"p(\d+)_")
    patients = [{name.split("_")[0] for name in found.ids[part]} for part in ("train", "val", "test")]
    assert sum(map(len, patients)) == 10


def test_numbers(tmp_path):
    """A vector and a class; several named numbers, sorted, and a number."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)).astype(np.float32), np.arange(30) % 3
    examples = [{"features": a, "label": int(b)} for a, b in zip(x, y, strict=True)]
    parts = {"train": examples[:20], "test": examples[20:]}
    write(
        tmp_path / "vectors" / "1.0.0", parts, {"features": tensor(2), "label": LABEL}, ("features", "label")
    )
    found = catalogue.load(tmp_path, name="vectors")
    np.testing.assert_allclose(found.x_train, (x[:20] - x[:20].mean(0)) / x[:20].std(0), atol=1e-6)
    assert found.num_classes == 3
    with pytest.raises(UserError, match=r"vectors 1\.0\.0 holds no images: leave --image-size"):
        catalogue.load(tmp_path, name="vectors", image_size=3)

    columns = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
    columns["featuresDict"] = {"features": {"b": tensor(), "a": tensor(dtype="int64")}}
    examples = [{"in/a": i, "in/b": float(v), "out": 2.0 * i} for i, v in enumerate(x[:, 0])]
    parts = {"train": examples[:20], "test": examples[20:]}
    write(tmp_path / "columns" / "1.0.0", parts, {"in": columns, "out": tensor()}, ("in", "out"))
    found = catalogue.load(tmp_path, name="columns")
    np.testing.assert_allclose(
        found.x_test * found.scaling.scale + found.scaling.shift,
        np.stack([np.arange(20, 30), x[20:, 0]], 1),
        rtol=1e-5,
    )
    assert found.num_classes == 0
    assert (found.scaling.target_shift, found.scaling.target_scale) == (
        19,
        pytest.approx(np.arange(0, 40, 2).std()),
    )


def test_the_version_and_the_configuration(tmp_path):
    for where in (
        "many/9.0.0",
        "many/10.0.0",
        "many/incomplete.ABCDEF_11.0.0",
        "kinds/b/1.0.0",
        "kinds/a/1.0.0",
    ):
        (tmp_path / where).mkdir(parents=True)
        (tmp_path / where / "dataset_info.json").touch()
    assert prepared.find("many", tmp_path) == tmp_path / "many" / "10.0.0"
    assert prepared.find("many:9.0.0", tmp_path) == tmp_path / "many" / "9.0.0"
    assert prepared.find("kinds/b", tmp_path) == tmp_path / "kinds" / "b" / "1.0.0"
    with pytest.raises(UserError, match="kinds is prepared as kinds/a, kinds/b: name one"):
        prepared.find("kinds", tmp_path)
    (tmp_path / "kinds" / ".config").mkdir()
    (tmp_path / "kinds" / ".config" / "metadata.json").write_text('{"default_config_name": "a"}')
    assert prepared.find("kinds", tmp_path) == tmp_path / "kinds" / "a" / "1.0.0"
    assert prepared.names(tmp_path) == ["kinds/a", "kinds/b", "many"]


def test_not_prepared(root, monkeypatch):
    there = f"--dataset mnist --out {root}$"
    with pytest.raises(
        UserError, match=f"mnist is not prepared in .*: run python scripts/prepare_data.py {there}"
    ):
        catalogue.load(root, name="mnist")
    monkeypatch.setenv(prepared.DATA_DIR, str(root))
    with pytest.raises(UserError, match=r"prepare_data.py --dataset mnist:3.0.0$"):
        catalogue.load(name="mnist:3.0.0")
    with pytest.raises(
        UserError, match=r"--dataset mnits; or is the name wrong\? .* digits, folder.*: shapes$"
    ):
        catalogue.load(name="mnits")
    with pytest.raises(UserError, match="not prepared"):
        catalogue.load(root / "shapes", name="../shapes")
    with pytest.raises(UserError, match="prepared there: none"):
        catalogue.load(root / "nowhere", name="shapes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(keys=("image", "other")),
            "holds no images or numbers with one class .* but image, label, other",
        ),
        (dict(file_format="tfrecord"), "stored as tfrecord, which only TensorFlow reads: move it away"),
        (
            dict(splits={"all": stored(*pictures(3))}),
            "has no examples in a split train, validation, test; in others: all",
        ),
        (dict(splits={"train": [], "all": []}), "has no examples in a split .* in others: none"),
        (dict(side=5), r"differ in size: train/0 is 4 x 4 x 1, test/0 5 x 5 x 1; pass --image-size"),
        (dict(png=b"none"), r"bad 1.0.0, test/0 is no PNG"),
    ],
)
def test_what_cannot_be_used(tmp_path, change, message):
    train, test = stored(*pictures(6)), stored(*pictures(3, change.get("side", 4)))
    if "png" in change:
        test[0]["image"] = change["png"]
    splits = change.get("splits", {"train": train, "test": test})
    features = {"image": IMAGE, "label": LABEL, "other": tensor(2, 2)}
    form = {key: value for key, value in change.items() if key in ("keys", "file_format")}
    for example in train + test + splits.get("all", []):
        example["other"] = np.zeros(4, np.float32)
    write(tmp_path / "bad" / "1.0.0", splits, features, **form)
    with pytest.raises(UserError, match=message):
        catalogue.load(tmp_path, name="bad")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_damaged_folder(tmp_path, name):
    folder = write(
        tmp_path / "bad" / "1.0.0", {"train": stored(*pictures(6))}, {"image": IMAGE, "label": LABEL}
    )
    (folder / name).write_text("{")
    with pytest.raises(UserError, match=r"bad/1.0.0 is damaged .*: delete it and prepare it again"):
        catalogue.load(tmp_path, name="bad")


@pytest.mark.parametrize("content", [None, b"", "half", "flip"])
def test_a_damaged_file(tmp_path, content):
    """Stored checksums find a single changed bit."""
    features = {"image": IMAGE, "label": LABEL}
    folder = write(tmp_path / "bad" / "1.0.0", {"train": stored(*pictures(500))}, features)
    file = folder / "bad-train.array_record-00000-of-00001"
    good = file.read_bytes()
    middle = len(good) // 3
    changed = {
        "half": good[: len(good) // 2],
        "flip": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
    }
    file.unlink()
    if content is not None:
        file.write_bytes(changed.get(content, content))
    with pytest.raises(UserError, match=r"bad/1.0.0 is damaged .*: delete it and prepare it again"):
        catalogue.load(tmp_path, name="bad")


WITHOUT_TENSORFLOW = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
blocked = ("tensorflow", "importlib_resources")
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *args: None if name.split(".")[0] in blocked else find(name, *args)
)
try:
    import tensorflow
    raise SystemExit("not blocked")
except ModuleNotFoundError:
    pass
from pathlib import Path
from bnn_jax import data, stream
root = Path(sys.argv[1])
print(data.fingerprint(data.load(data.Options(dataset="shapes", path=root))))
print(stream.from_catalogue("shapes", "train", root).x[:].shape)
import bnn_jax.builders, bnn_jax.preparation
assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
"""


def test_reading_needs_no_tensorflow(root):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(root)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    fingerprint, shape = done.stdout.splitlines()
    assert fingerprint == data.fingerprint(catalogue.load(root, name="shapes"))
    assert shape == "(600, 4, 4, 1)"


def test_real_mnist():
    """MNIST as `scripts/prepare_data.py --dataset mnist` left it: all images, in TFDS's own order."""
    folder = Path(os.environ[prepared.DATA_DIR]) if prepared.DATA_DIR in os.environ else None
    if folder is None or "mnist" not in prepared.names(folder):
        pytest.skip(f"needs mnist, prepared in the folder that {prepared.DATA_DIR} names")
    found = catalogue.load(name="mnist")
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(found.y_train), counts)
    assert len(found.x_test) == 10_000
    np.testing.assert_array_equal(found.y_train[:5], [4, 1, 0, 7, 8])
