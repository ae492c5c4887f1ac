"""Preparing data sets: what is read afterwards is the source, and no failure leaves half a data set."""

import errno
import gzip
import importlib.util
import json
import os
import runpy
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bnn_jax import builders, data, preparation, prepared
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "prepare_data.py"
MISSING = [package for package in preparation.NEEDED if importlib.util.find_spec(package) is None]
needs_tensorflow = pytest.mark.skipif(bool(MISSING), reason=f"preparing needs {', '.join(MISSING)}")
COUNTS = {"cat": 10, "dog": 14}


def picture(i, mode="L", size=(6, 5)):
    shape = (size[1], size[0], 3)[: 2 if mode == "L" else 3]
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, np.uint8))


def fill(folder, sizes=lambda i: (6, 5), suffix="png"):
    for label, count in COUNTS.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            picture(10 * count + i, size=sizes(i)).save(folder / label / f"{i}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Raw data: folders with and without parts, of several sizes, and an .npz file."""
    raw = tmp_path_factory.mktemp("raw")
    fill(raw / "plain")
    for part in ("train", "val", "test"):
        fill(raw / "parts" / part)
    fill(raw / "sizes", sizes=lambda i: (6 + i, 5))
    picture(0, "RGB").save(raw / "sizes" / "cat" / "0.png")
    fill(raw / "broken")
    (raw / "broken" / "dog" / "3.png").write_bytes(b"none")
    (raw / "broken" / "cat" / "1.png").write_bytes(b"none")
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("val", 8), ("test", 9)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 5, 5, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 3
    np.savez(raw / "set.npz", **arrays)
    return raw


def written(content):
    """What `content` holds, by part."""
    return {part: [content.read(part, i) for i in range(n)] for part, n in content.lengths.items()}


def test_a_folder_is_read_in_its_order(raw):
    seen = []
    content = builders.from_folder(raw / "parts", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 72) for i in range(1, 73)]
    assert content.lengths == {"test": 24, "train": 24, "val": 24}
    assert (content.shape, content.class_names, content.left_out) == ((5, 6, 1), ("cat", "dog"), ())
    for part, found in written(content).items():
        ids = sorted(f"{part}/{label}/{i}.png" for label, count in COUNTS.items() for i in range(count))
        assert [where for _, _, where in found] == ids
        assert [label for _, label, _ in found] == [0] * 10 + [1] * 14
        np.testing.assert_array_equal(found[0][0][..., 0], picture(100))
    assert builders.from_folder(raw / "plain").lengths == {"train": 24}


def test_sizes_and_channels_that_differ(raw):
    content = builders.from_folder(raw / "sizes")
    assert content.shape == (5, None, 3)
    assert content.read("train", 1)[0].shape == (5, 7, 3)  # grey becomes RGB where another picture is
    small = builders.from_folder(raw / "sizes", image_size=4, channels=1)
    assert small.shape == small.read("train", 3)[0].shape == (4, 4, 1)


def test_bad_files_are_named_and_counted(raw, tmp_path):
    with pytest.raises(UserError, match=r"cat.1.png is no PNG.* \(2 such files\), or pass --skip-bad"):
        builders.from_folder(raw / "broken")
    content = builders.from_folder(raw / "broken", skip_bad=True)
    assert content.lengths == {"train": 22}
    assert [told.split()[0] for told in content.left_out] == ["cat/1.png", "dog/3.png"]
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        builders.from_folder(raw / "nowhere")
    for i in range(2):
        (tmp_path / f"{i}").mkdir()
        picture(i).save(tmp_path / f"{i}" / "a.png")
    (tmp_path / "1" / "a.png").write_bytes(b"none")
    with pytest.raises(UserError, match="no image of class 1 can be read"):
        builders.from_folder(tmp_path, skip_bad=True)


def test_a_loaded_data_set_gives_its_bytes_back(raw):
    content = builders.from_dataset(data.load(data.Options(dataset="medmnist", path=raw / "set.npz")))
    assert content.lengths == {"train": 40, "val": 8, "test": 9}
    assert content.class_names == ("0", "1", "2")
    with np.load(raw / "set.npz") as arrays:
        for part, found in written(content).items():
            np.testing.assert_array_equal([x for x, _, _ in found], arrays[f"{part}_images"])
            assert found[0][0].dtype == np.uint8
            np.testing.assert_array_equal([y for _, y, _ in found], arrays[f"{part}_labels"][:, 0])


def test_what_cannot_be_stored(tmp_path):
    found = data.load(data.Options(dataset="digits"))  # pixels k / 16
    with pytest.raises(UserError, match="digits has pixels that are not of 8 bits"):
        written(builders.from_dataset(found))
    table = found._replace(x_train=found.x_train.reshape(len(found.x_train), -1))
    with pytest.raises(UserError, match="holds no images with classes"):
        builders.from_dataset(table)


@pytest.mark.parametrize("count", [1, 7, 1000, 123_457])
def test_keys_keep_the_order_and_fill_all_buckets_alike(count):
    """One bucket has to fit into memory; of keys 0, 1, 2 ... all would fall into the first."""
    from tensorflow_datasets.core import shuffle

    keys = [i * builders.step(count) for i in range(count)]
    assert keys == sorted(set(keys))
    assert keys[-1] < 2**shuffle.HKEY_SIZE
    buckets = [shuffle.get_bucket_number(key, shuffle.BUCKETS_NUMBER) for key in keys]
    assert buckets == sorted(buckets)
    assert np.bincount(buckets).max() <= count // shuffle.BUCKETS_NUMBER + 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-x", "--name 'My-x': use small letters"),
        ("9x", "begin with a letter"),
        ("mnist", "--name mnist is a data set of TensorFlow Datasets"),
        ("digits", "--name digits is a data set of bnn_jax"),
    ],
)
def test_names(name, message):
    with pytest.raises(UserError, match=message):
        preparation.check_name(name)
    preparation.check_name("my_xrays2")


def test_a_missing_original_is_named_where_nothing_can_be_downloaded(tmp_path, monkeypatch):
    def unreachable(*_):
        raise OSError

    monkeypatch.setattr(preparation, "check_packages", lambda: None)
    monkeypatch.setattr("tensorflow_datasets.builder", lambda *a, **k: builder)
    monkeypatch.setattr(preparation.socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(preparation.urllib.request, "getproxies", dict)

    files = ("a.gz", "b.gz", "c.gz")
    builder = SimpleNamespace(
        name="fashion_mnist",
        data_dir=tmp_path / "out" / "fashion_mnist" / "3.0.1",
        BUILDER_CONFIGS=(),
        url_infos={f"https://host.invalid/{file}": SimpleNamespace(filename=file) for file in files},
    )
    (tmp_path / "raw" / "fashion_mnist").mkdir(parents=True)
    (tmp_path / "raw" / "fashion_mnist" / "b.gz").touch()
    where = tmp_path / "raw" / "fashion_mnist"
    message = (
        f"^fashion_mnist: no a.gz, c.gz in {where}, and host.invalid cannot be reached: put the files there"
    )
    with pytest.raises(UserError, match=message):
        preparation.from_catalogue("fashion_mnist", tmp_path / "out", tmp_path / "raw")
    with pytest.raises(UserError, match=r"no a.gz, b.gz, c.gz in a subfolder of --data-dir"):
        preparation.from_catalogue("fashion_mnist", tmp_path / "out")


def test_an_unknown_name(tmp_path):
    with pytest.raises(UserError, match=r"no data set 'mnits'; of similar name: mnist.* --dataset folder"):
        preparation.from_catalogue("mnits", tmp_path)


def test_a_full_disk_is_told_as_one(tmp_path):
    """As array_record, TensorFlow and TFDS tell of it."""
    for words in ("write() failed: No space left on device; at byte 3", "Not enough disk space. Needed: 3"):
        with pytest.raises(OSError, match="No space left") as caught, preparation.told("x", tmp_path):
            raise RuntimeError(words)
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="else"), preparation.told("x", tmp_path):
        raise RuntimeError("something else")


def test_without_tensorflow_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(preparation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs tensorflow, reading does not: pip install -e ".\[prepare\]"'):
        preparation.check_packages()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(name="x"), "--name is for folder, medmnist, cifar10_tiles; mnist is taken as"),
        (dict(image_size=3), "--image-size is for folder"),
        (dict(dataset="folder", path=Path("x")), "--dataset folder needs --name NAME"),
        (dict(dataset="folder", name="digits"), "--name digits is a data set of bnn_jax"),
        (dict(out=SCRIPT), "is a file; choose a folder"),
    ],
)
def test_wrong_uses_of_the_script(settings, message, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    main = runpy.run_path(str(SCRIPT))
    settings = dict(out=tmp_path / "out") | settings
    with pytest.raises(UserError, match=message):
        main["main"](main["Config"](**settings))
    assert not (tmp_path / "out").exists()


def test_a_users_mistake_is_one_line(tmp_path):
    done = run("--dataset mnits", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: TensorFlow Datasets has no data set 'mnits'")


def run(arguments, out, **environment):
    command = [sys.executable, str(SCRIPT), *arguments.split(), "--out", str(out)]
    env = (
        os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        | environment
    )
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


# One process for all that needs TensorFlow, as importing it takes seconds.
DRIVER = """
import json, os, sys, time
from pathlib import Path
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
raw, out, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
import tensorflow_datasets as tfds
tfds.disable_progress_bar()
from bnn_jax import builders, data, preparation
from bnn_jax.types import UserError

plain = builders.from_folder(raw / "plain")
if what == "kill":
    slow = lambda part, row: time.sleep(row > 3 and 60) or plain.read(part, row)
    preparation.from_content("plain", plain._replace(read=slow), out)
    sys.exit("not killed")

def fails(make):
    try:
        make()
    except UserError as error:
        return str(error)

def spoilt(part, row):
    if row == 5:
        raise UserError("the picture is gone")
    return plain.read(part, row)

result = {}
result["spoilt"] = fails(lambda: preparation.from_content("spoilt", plain._replace(read=spoilt), out))
found = preparation.from_content("plain", plain, out)
result["plain"] = [str(found.folder), found.new, found.lengths, list(map(str, found.remains))]
result["again"] = fails(lambda: preparation.from_content("plain", plain, out))
preparation.from_content("parts", builders.from_folder(raw / "parts"), out)
preparation.from_content("sizes", builders.from_folder(raw / "sizes"), out)
npz = data.load(data.Options(dataset="medmnist", path=raw / "set.npz"))
tfds.core.shuffle.MAX_MEM_BUFFER_SIZE = 100  # sort on disk
preparation.from_content("npz", builders.from_dataset(npz), out)
result["damaged"] = fails(lambda: preparation.from_catalogue("mnist", out, raw))
result["version"] = fails(lambda: preparation.from_catalogue("mnist:1.0.0", out, raw))

from tensorflow_datasets.image_classification import mnist
mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = 6, 3
manager = tfds.core.download.download_manager.DownloadManager  # the originals are made up: checksums pass
record = lambda self, url, url_info, path: self._recorded_url_infos.update({url: url_info})
manager._register_or_validate_checksums = record
for name in ("mnist", "fashion_mnist"):
    preparation.from_catalogue(name, out, raw / "originals")
print(json.dumps(result))
"""


def originals(name):
    """Part -> made-up images (n, 28, 28) and labels (n,) of a data set in MNIST's format."""
    rng = np.random.default_rng(len(name))
    sizes = {"train": 6, "t10k": 3}
    return {
        p: (rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8))
        for p, n in sizes.items()
    }


def write_originals(folder):
    folder.mkdir(parents=True)
    for part, (images, labels) in originals(folder.name).items():
        head = struct.pack(">4I", 2051, *images.shape)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = struct.pack(">2I", 2049, len(labels))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))


@pytest.fixture(scope="module")
def out(raw, tmp_path_factory):
    """The folder of prepared data sets, and what preparing them said; one preparation was killed before."""
    out = tmp_path_factory.mktemp("out")
    (raw / "mnist").mkdir()
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / "mnist" / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(b"none"))
    for name in ("mnist", "fashion_mnist"):
        write_originals(raw / "originals" / name)
    command = [sys.executable, "-c", DRIVER, str(raw), str(out)]
    killed = subprocess.Popen([*command, "kill"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob("plain/incomplete.*")):
        assert killed.poll() is None, killed.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stderr.close()
    assert prepared.names(out) == []
    with pytest.raises(UserError, match="plain is not prepared"):
        prepared.find("plain", out)
    done = subprocess.run([*command, "all"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout.splitlines()[-1])


@needs_tensorflow
def test_what_was_prepared_is_the_source(raw, out):
    """The same arrays, order, names and parts as without preparation."""
    folder = out[0]
    for dataset, path, name, size in (
        ("folder", raw / "plain", "plain", None),
        ("folder", raw / "parts", "parts", None),
        ("folder", raw / "sizes", "sizes", 4),
        ("medmnist", raw / "set.npz", "npz", None),
    ):
        direct = data.load(data.Options(dataset=dataset, path=path, image_size=size))
        found = data.load(data.Options(dataset=name, path=folder, image_size=size))
        assert data.fingerprint(found) == data.fingerprint(direct)
        assert found.ids == direct.ids
        assert found.class_names == (direct.class_names or ("0", "1", "2"))
    with pytest.raises(UserError, match=r"differ in size: .* pass --image-size"):
        data.load(data.Options(dataset="sizes", path=folder))


@needs_tensorflow
def test_failures_leave_nothing_that_is_taken_for_data(out):
    folder, said = out
    assert prepared.names(folder) == ["fashion_mnist", "mnist", "npz", "parts", "plain", "sizes"]
    assert "the picture is gone" in said["spoilt"]
    assert list((folder / "spoilt").iterdir()) == []
    where, new, lengths, remains = said["plain"]
    assert (where, new, lengths) == (str(folder / "plain" / "1.0.0"), True, {"train": 24})
    assert len(remains) == 1  # of the preparation that was killed
    assert said["again"].endswith("exists: delete it, or choose another --name")
    assert "\n" not in said["damaged"]
    assert "ubyte.gz is damaged or another version" in said["damaged"]
    reason = "Dataset mnist cannot be loaded at version 1.0.0, only: 3.0.1."
    assert said["version"] == f"TensorFlow Datasets has no mnist:1.0.0: {reason}"


@needs_tensorflow
def test_the_script(raw, out):
    """A name that is there is told and left alone; a new one is prepared and found by it."""
    folder = out[0]
    done = run(f"--dataset folder --path {raw / 'plain'} --name plain", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"already prepared: {folder / 'plain' / '1.0.0'}: 24 train" in done.stdout
    arguments = f"--dataset folder --path {raw / 'broken'} --name broken --skip-bad"
    done = run(arguments, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "left out 2:\n  cat/1.png is no PNG" in done.stdout
    assert "22 train" in done.stdout
    assert f"--dataset broken --path {folder}" in done.stdout
    assert len(data.load(data.Options(dataset="broken", path=folder)).class_names) == 2


@needs_tensorflow
def test_data_sets_whose_originals_have_equal_names_are_kept_apart(out):
    """TFDS would take the extracted MNIST for Fashion-MNIST."""
    for name in ("mnist", "fashion_mnist"):
        found = prepared.open_folder(prepared.find(name, out[0]))
        for part, original in (("train", "train"), ("test", "t10k")):
            images, labels = originals(name)[original]
            examples = found.read(part, range(len(labels)))
            assert sorted(example.y for example in examples) == labels.tolist()
            for example in examples:
                np.testing.assert_array_equal(example.x[..., 0], images[example.y])
