"""Our own data sets as builders of TensorFlow Datasets (TFDS), which write them to disk as array_record.

Pixels are stored as PNG, without loss and as `bnn_jax.pixels` reads them, in the order of the source, with
the class and the file name (or row) of every example; parts become splits. TFDS sorts examples by key, in
1,000 buckets of equal key ranges, one of which has to fit into memory; so example i of N has the key
floor(2^128 / N) i, which keeps the order and fills all buckets alike.
"""

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bnn_jax import pixels
from bnn_jax.data import folder
from bnn_jax.prepared import FORMAT, ID, SPLITS
from bnn_jax.types import Dataset, UserError

OWN_VERSION = "1.0.0"
KEYS = 2**128  # TFDS's number of keys
AHEAD = 64  # pictures that are decoded ahead of the writer


class Content(NamedTuple):
    """What to store: labelled pictures by part, read when they are written."""

    lengths: Mapping[str, int]  # part -> number of examples
    read: Callable[[str, int], tuple[np.ndarray, int, str]]  # (part, row) -> (H, W, C) uint8, class, id
    shape: tuple[int | None, int | None, int]  # of every picture; None where they differ
    class_names: tuple[str, ...]
    description: str
    left_out: tuple[str, ...] = ()  # what could not be read and was skipped on request: file and reason


def from_folder(
    path: Path,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Content:
    """The image files of class folders, with or without part folders above, as `data.folder` finds them.

    Every file is decoded once to be checked and, when it is written, once more; none is kept in memory.
    Without part folders all is train, and parts are drawn when it is loaded.

    Args:
        image_size, channels, skip_bad: as of `data.folder.load`; pictures of several sizes may stay so.
        progress: called with the number of files checked and of all.

    Raises:
        UserError: as `data.folder.load`, but for what concerns drawn parts; all bad files are counted.
    """
    if not path.is_dir():
        raise UserError(f"{path} is a file, not a folder" if path.exists() else f"no folder {path}")
    files, left_out = folder.listing(path, skip_bad)
    shapes, kept, bad = [], [], []
    check = partial(_shape, path, image_size, channels)
    with ThreadPoolExecutor() as pool, closing(pool.map(check, [name for name, _, _ in files])) as found:
        for i, shape in enumerate(found):
            if isinstance(shape, str):
                bad.append(shape.replace(f"{path}{os.sep}", "", 1))
            else:
                shapes.append(shape)
                kept.append(files[i])
            progress(i + 1, len(files))
    if bad and not skip_bad:
        number = f" ({len(bad)} such files)" if len(bad) > 1 else ""
        raise UserError(f"{path}: {bad[0]}{number}, or pass --skip-bad to leave it out")
    if not kept:
        raise UserError(f"none of {len(files)} images of {path} can be read; the first: {bad[0]}")
    depth = max(shape[2] for shape in shapes)  # a grey picture among RGB ones becomes RGB
    sides = tuple(n.pop() if len(n := {shape[axis] for shape in shapes}) == 1 else None for axis in (0, 1))
    class_names = sorted({label for _, _, label in files})
    empty = set(class_names) - {label for _, _, label in kept}
    if empty or len(class_names) < 2:
        reason = (
            f"no image of class {min(empty)} can be read" if empty else f"one class only, {class_names[0]}"
        )
        raise UserError(f"{path}: {reason}; two classes are needed, and images of each")
    rows: dict[str, list] = {}
    for name, part, label in kept:
        rows.setdefault(part or "train", []).append((name, label))

    def read(part, row):
        name, label = rows[part][row]
        return pixels.read(path / name, image_size, depth), class_names.index(label), name

    return Content(
        lengths={part: len(named) for part, named in rows.items()},
        read=read,
        shape=(*sides, depth),
        class_names=tuple(class_names),
        description=f"images of folder {path.resolve().name}",
        left_out=(*left_out, *bad),
    )


def _shape(root, size, channels, name):
    """The shape of a picture, or what is wrong with the file."""
    try:
        return pixels.read(root / name, size, channels).shape
    except UserError as error:
        return str(error)


def from_dataset(data: Dataset) -> Content:
    """A data set of 8-bit images that was loaded, in its parts.

    Raises:
        UserError: no images with classes, or pixels that are not k / 255 for whole k.
    """
    if not data.num_classes or data.x_train.ndim != 4:
        raise UserError(f"the data set {data.name} holds no images with classes, which alone can be prepared")
    arrays = {part: (getattr(data, f"x_{part}"), getattr(data, f"y_{part}")) for part in SPLITS.values()}
    arrays = {part: both for part, both in arrays.items() if both[0] is not None}

    def read(part, row):
        x, y = arrays[part]
        levels = 255 * (x[row] * data.scaling.scale + data.scaling.shift)
        whole = np.rint(levels)
        if np.abs(levels - whole).max() > 0.01:
            raise UserError(f"{data.name} has pixels that are not of 8 bits: it cannot be prepared as PNG")
        ids = data.ids.get(part)
        return whole.astype(np.uint8), int(y[row]), ids[row] if ids else f"{part}/{row}"

    return Content(
        lengths={part: len(y) for part, (_, y) in arrays.items()},
        read=read,
        shape=data.x_train.shape[1:],
        class_names=data.class_names or tuple(map(str, range(data.num_classes))),
        description=data.description.partition(",")[0],
        left_out=data.left_out,
    )


def build(name: str, content: Content, out: Path) -> Any:
    """The TFDS builder that writes `content` as the data set `name` below the folder `out`."""
    import tensorflow_datasets as tfds

    splits = {part: split for split, part in SPLITS.items()}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Images and classes."""

        VERSION = tfds.core.Version(OWN_VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=content.description,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=content.shape, encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=content.class_names),
                        ID: tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {splits[part]: self._generate_examples(part) for part in content.lengths}

        def _generate_examples(self, part):
            between = step(content.lengths[part])
            for i, (png, label, where) in enumerate(_encoded(content, part)):
                yield i * between, {"image": io.BytesIO(png), "label": label, ID: where}

    Builder.name = name
    return Builder(data_dir=out, file_format=FORMAT)


def step(count: int) -> int:
    """The distance between the keys of two of `count` examples."""
    return KEYS // count


def _encoded(content: Content, part: str) -> Iterator[tuple[bytes, int, str]]:
    """The examples of a part in order, decoded and encoded side by side, a bounded number ahead."""

    def encode(row):
        picture, label, where = content.read(part, row)
        file = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "PNG")
        return file.getvalue(), label, where

    pending: deque = deque()
    with ThreadPoolExecutor() as pool:
        try:
            for row in range(content.lengths[part]):
                pending.append(pool.submit(encode, row))
                if len(pending) == AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
