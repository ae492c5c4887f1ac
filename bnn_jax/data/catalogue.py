"""Data sets of the TensorFlow Datasets catalogue (TFDS), and any others, once `scripts/prepare_data.py` has
prepared them; read without TensorFlow.

They lie in TFDS's own folder, that of the environment variable TFDS_DATA_DIR or ~/tensorflow_datasets, unless
a path says otherwise; what is read of them, and how, `bnn_jax.prepared` tells.

Source: https://www.tensorflow.org/datasets
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bnn_jax import prepared
from bnn_jax.data import assemble, partition
from bnn_jax.splits import content_hash, group_ids
from bnn_jax.types import Dataset, UserError

CHUNK = 256  # examples that a thread reads at once


def load(
    path: Path | None = None,
    seed: int = 0,
    name: str = "mnist",
    ratios: tuple[float, float, float] | None = None,
    split: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    group_by: str | None = None,
) -> Dataset:
    """The prepared data set `name` (NAME, NAME/CONFIG or NAME:VERSION) in memory, in the stored order.

    Its own parts are kept; `split` or `ratios` draw a validation part from train, or all anew, and what is
    missing is drawn. Exact copies are never torn apart by a drawn split.

    Args:
        path: the folder of all prepared data sets; default as above.
        image_size, channels: as of `pixels.read`.

    Raises:
        UserError: not prepared (the message has the command), or with another format or other contents;
            images of several sizes without `image_size`; a split that cannot be drawn.
    """
    found = prepared.open_folder(prepared.find(name, prepared.root(path)), image_size, channels)
    x, y, ids = _read_all(found)
    given = np.repeat(list(found.lengths), list(found.lengths.values())) if len(found.lengths) > 1 else None
    if given is not None and "test" not in found.lengths:
        split = split or "given"
    drawn = given is None or split is not None or ratios is not None or group_by is not None
    read, how = partition(
        x,
        y,
        ids,
        given=given,
        split=split,
        ratios=ratios,
        groups=None if group_by is None else group_ids([Path(i).name for i in ids], group_by),
        duplicates=content_hash(x) if drawn else None,
        stratify=bool(found.class_names),
        seed=seed,
    )
    size, unused = x.shape[1:], f"; unused splits {', '.join(found.unused)}" if found.unused else ""
    del x  # the parts hold copies
    form = (
        f"{size[0]} features"
        if len(size) == 1
        else f"{size[0]} x {size[1]} {'RGB' if size[2] > 1 else 'grey'}"
    )
    return assemble(
        name,
        **read,
        num_classes=len(found.class_names),
        class_names=found.class_names,
        description=f"{found.full_name} prepared by TensorFlow Datasets, {form}, standardised: {how}{unused}",
    )


def _read_all(found) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All parts, one after another: x (N, ...), y (N,), ids."""
    total = sum(found.lengths.values())
    first = found.read(next(iter(found.lengths)), [0])[0]
    x = np.empty((total, *first.x.shape), first.x.dtype)
    y = np.empty(total, np.int64 if found.class_names else np.float64)
    ids = [""] * total

    def fill(chunk):
        begin, part, rows = chunk
        for i, example in enumerate(found.read(part, rows), begin):
            if example.x.shape != first.x.shape:
                raise UserError(
                    f"the images of {found.full_name} differ in size: {first.id} is {_size(first)}, "
                    f"{example.id} {_size(example)}; pass --image-size to resize all of them"
                )
            x[i], y[i], ids[i] = example

    with ThreadPoolExecutor() as pool:
        pending = [pool.submit(fill, chunk) for chunk in _chunks(found.lengths)]
        try:
            for future in pending:
                future.result()
        finally:
            for future in pending:
                future.cancel()
    return x, y, ids


def _size(example):
    return " x ".join(map(str, example.x.shape))


def _chunks(lengths) -> Iterator[tuple[int, str, range]]:
    begin = 0
    for part, length in lengths.items():
        for row in range(0, length, CHUNK):
            yield begin + row, part, range(row, min(row + CHUNK, length))
        begin += length
