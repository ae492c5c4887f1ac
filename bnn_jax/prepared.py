"""Data sets that TensorFlow Datasets (TFDS) has prepared, read without TensorFlow.

A prepared data set is a folder ROOT/NAME[/CONFIG]/VERSION with array_record files, whose examples are in
TFDS's order and can be read at random. ROOT is TFDS's own folder, that of the environment variable
TFDS_DATA_DIR or ~/tensorflow_datasets, unless a path says otherwise. Splits called train, validation and test
are parts, others are not used. Inputs are images, which `bnn_jax.pixels` decodes, vectors of numbers, or
several named numbers, sorted by name; targets are a class or a number.

Source: https://www.tensorflow.org/datasets
"""

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnn_jax import parts, pixels
from bnn_jax.types import UserError

DATA_DIR = "TFDS_DATA_DIR"  # environment variable of TFDS itself
FORMAT = "array_record"
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # of TFDS -> part
ID = "id"  # the feature in which our own preparation keeps an example's name


class Example(NamedTuple):
    """One example as it was stored."""

    x: np.ndarray  # (H, W, C) uint8, or (F,) float64
    y: Any  # class number, or float target
    id: str  # file name, or split and row


class Prepared(NamedTuple):
    """A prepared data set, opened; nothing is read yet."""

    full_name: str  # name, config and version
    lengths: dict[str, int]  # part -> number of examples
    class_names: tuple[str, ...]  # () for regression
    unused: tuple[str, ...]  # splits that are no part
    read: Callable[[str, Sequence[int]], list[Example]]  # (part, rows) -> examples; threads may share it


def root(path: Path | None = None) -> Path:
    """The folder of all prepared data sets: `path`, else TFDS's own."""
    return Path(path or os.environ.get(DATA_DIR) or "~/tensorflow_datasets").expanduser()


def command(name: str, folder: Path) -> str:
    """The command that prepares `name` in `folder`."""
    out = "" if folder == root() else f" --out {folder}"
    return f"python scripts/prepare_data.py --dataset {name}{out}"


def names(folder: Path) -> list[str]:
    """The names of all data sets prepared in `folder`, as NAME or NAME/CONFIG, sorted."""
    places = (*folder.glob("*"), *folder.glob("*/*"))
    return sorted(place.relative_to(folder).as_posix() for place in places if _versions(place))


def find(name: str, folder: Path) -> Path:
    """The folder of the data set `name` in `folder`, of the version asked for or the highest.

    Raises:
        UserError: it is not prepared there, or several configurations are and none is named.
    """
    base, _, version = name.partition(":")
    here = folder / base
    if base and ".." not in Path(base).parts and here.is_dir():
        if not _versions(here) and not version:
            here = _config(here, base)
        versions = _versions(here)
        if version in versions or (versions and not version):
            return here / (version or max(versions, key=_number))
    raise UserError(_not_prepared(name, folder))


def _versions(folder):
    found = [p.parent.name for p in folder.glob("*/dataset_info.json")]
    return [name for name in found if _number(name) is not None]


def _number(version):
    numbers = version.split(".")
    return tuple(map(int, numbers)) if len(numbers) == 3 and all(n.isdecimal() for n in numbers) else None


def _config(folder, name):
    """The folder of the only configuration, or of TFDS's default one."""
    configs = sorted(entry for entry in folder.iterdir() if entry.is_dir() and _versions(entry))
    mark = folder / ".config" / "metadata.json"
    default = json.loads(mark.read_text()).get("default_config_name") if mark.is_file() else None
    if len(configs) > 1 and folder / str(default) not in configs:
        raise UserError(f"{name} is prepared as {', '.join(f'{name}/{c.name}' for c in configs)}: name one")
    chosen = configs if len(configs) == 1 else [folder / str(default)]
    return chosen[0]


def _not_prepared(name, folder):
    import tensorflow_datasets as tfds

    message = f"the data set {name} is not prepared in {folder}: run {command(name, folder)}"
    known = name.partition(":")[0].partition("/")[0] in tfds.list_builders(with_community_datasets=False)
    if known:
        return message
    own = ", ".join(own for own in parts.names("data set") if own != "catalogue")
    there = ", ".join(names(folder)) or "none"
    return (
        f"{message}; or is the name wrong? TensorFlow Datasets does not know it, bnn_jax's own are {own}; "
        f"prepared there: {there}"
    )


def open_folder(folder: Path, image_size: int | None = None, channels: int | None = None) -> Prepared:
    """The data set in `folder`, as `find` gave it.

    Raises:
        UserError: damaged, of another format than array_record, or without inputs and targets or splits that
            are known here; its `read` raises one for a damaged file or image.
    """
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        builder = tfds.builder_from_directory(folder)
        info = builder.info
    except (OSError, ValueError, KeyError, TypeError, ParseError) as error:
        raise _damaged(folder, error) from None
    if FORMAT not in {str(f.value) for f in info.available_file_formats()}:
        raise UserError(
            f"{folder} is stored as {info.file_format.value}, which only TensorFlow reads: move it away and "
            f"prepare it by scripts/prepare_data.py, which stores {FORMAT}"
        )
    full_name = info.full_name.replace("/", " ")
    key_x, key_y = _keys(tfds, info, full_name)
    feature_x, feature_y = info.features[key_x], info.features[key_y]
    skip, image = {}, isinstance(feature_x, tfds.features.Image)
    if image:
        if np.dtype(feature_x.np_dtype) == np.float32:
            raise UserError(f"{full_name} holds images of floats, which are not supported")
        skip = {key_x: tfds.decode.SkipDecoding()}
        channels = channels or {1: 1, 3: 3, 4: 3}.get(feature_x.shape[-1])
    elif image_size is not None or channels is not None:
        raise UserError(f"{full_name} holds no images: leave --image-size and --channels out")
    classes = isinstance(feature_y, tfds.features.ClassLabel)
    named = ID in info.features and isinstance(info.features[ID], tfds.features.Text)
    filled = {split for split in info.splits if info.splits[split].num_examples}
    splits = {part: split for split, part in SPLITS.items() if split in filled}
    if not splits:
        there = ", ".join(sorted(filled)) or "none"
        raise UserError(f"{full_name} has no examples in a split {', '.join(SPLITS)}; in others: {there}")
    sources = {part: builder.as_data_source(split, decoders=skip) for part, split in splits.items()}

    def read(part: str, rows: Sequence[int]) -> list[Example]:
        found = []
        try:
            records = sources[part].__getitems__([int(row) for row in rows])
        except RuntimeError as error:  # what array_record raises for any missing or damaged file
            raise _damaged(folder, error) from None
        for row, stored in zip(rows, records, strict=True):
            where = stored[ID].decode() if named else f"{splits[part]}/{row}"
            if image:
                x = _decode(stored[key_x], image_size, channels, f"{full_name}, {where}")
            else:
                x = _vector(stored[key_x])
            found.append(Example(x, int(stored[key_y]) if classes else float(stored[key_y]), where))
        return found

    return Prepared(
        full_name=full_name,
        lengths={part: len(sources[part]) for part in ("train", "val", "test") if part in sources},
        class_names=tuple(feature_y.names) if classes else (),
        unused=tuple(sorted(filled - set(SPLITS))),
        read=read,
    )


def _damaged(folder, error):
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{folder} is damaged ({reason}): delete it and prepare it again")


def _keys(tfds, info, full_name):
    """The names of the input and of the target feature."""
    features = info.features
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    keys = info.supervised_keys or ()
    if len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        keys = (images[0], labels[0]) if len(images) == len(labels) == 1 else ()
    if keys and _is_input(tfds, features[keys[0]]) and _is_target(tfds, features[keys[1]]):
        return keys
    raise UserError(
        f"{full_name} holds no images or numbers with one class or number to predict, but "
        f"{', '.join(sorted(features))}: it cannot be used here"
    )


def _is_input(tfds, feature):
    if isinstance(feature, tfds.features.FeaturesDict):
        return all(_is_number(tfds, part) for part in feature.values())
    return isinstance(feature, tfds.features.Image) or _is_number(tfds, feature, rank=1)


def _is_target(tfds, feature):
    return isinstance(feature, tfds.features.ClassLabel) or _is_number(tfds, feature)


def _is_number(tfds, feature, rank=0):
    numeric = isinstance(feature, tfds.features.Tensor) and np.dtype(feature.np_dtype).kind in "uif"
    return numeric and len(feature.shape) == rank and None not in feature.shape


def _decode(stored, size, channels, where):
    file = io.BytesIO(stored)
    try:
        return pixels.read(file, size, channels)
    except UserError as error:
        raise UserError(str(error).replace(str(file), where)) from None


def _vector(stored):
    values = [stored[key] for key in sorted(stored)] if isinstance(stored, dict) else stored
    return np.asarray(values, np.float64)
