"""CIFAR-10 as sheets of tiles: 50,000 training and 10,000 test RGB images of 32 x 32 pixels, 10 classes.

A sheet is a lossless picture of 100 x 100 tiles; tile 100 row + column is the image of that number in the
original order. Files: `<batch>_tiles.webp` for the batches train_batch1 .. train_batch5 and test, and
`labels.npz` with `<batch>_labels` (10000,) for each and `class_names` (10,).
Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from pathlib import Path

import numpy as np

from bnn_jax import pixels
from bnn_jax.data import assemble, partition, read_npz
from bnn_jax.splits import content_hash
from bnn_jax.types import Dataset, UserError

BATCHES = (*(f"train_batch{number}" for number in range(1, 6)), "test")
ROWS, SIDE = 100, 32  # tiles a side of a sheet, pixels a side of a tile
IMAGES = ROWS * ROWS


def load(
    path: Path | None = None,
    seed: int = 0,
    split: str | None = None,
    ratios: tuple[float, float, float] | None = None,
    data_dir: Path | None = None,
) -> Dataset:
    """The official training and test part, in the original order; `split` or `ratios` draw a validation part
    from the training one, or all anew. An id is the part and the original number.

    Args:
        path: the folder of the sheets; default: `cifar10` in `data_dir`, the folder with raw data.

    Raises:
        UserError: no folder, a file is missing, damaged, or of another size; a split that cannot be drawn.
    """
    if path is None and data_dir is None:
        raise UserError("the data set cifar10_tiles needs --path FOLDER, or --data-dir with cifar10 in it")
    path = Path(data_dir) / "cifar10" if path is None else Path(path)
    if not path.is_dir():
        raise UserError(f"no folder {path}: give that of the tile sheets by --path")
    missing = [name for name in (*map(_sheet, BATCHES), "labels.npz") if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: fetch the data again, or mend --path")
    names = [f"{batch}_labels" for batch in BATCHES]
    arrays = read_npz(path / "labels.npz", [*names, "class_names"], form="the tiles'")
    for name in names:
        if arrays[name].shape != (IMAGES,) or arrays[name].dtype.kind not in "ui":
            raise UserError(
                f"{path / 'labels.npz'}: {name} must be ({IMAGES},) integers, not {arrays[name].dtype} "
                f"of shape {arrays[name].shape}"
            )
    x = np.empty((len(BATCHES) * IMAGES, SIDE, SIDE, 3), np.uint8)
    for i, batch in enumerate(BATCHES):
        _cut(path / _sheet(batch), x[i * IMAGES : (i + 1) * IMAGES])
    y = np.concatenate([arrays[name] for name in names])
    num_train = len(x) - IMAGES
    parts, how = partition(
        x,
        y,
        [f"train/{i}" for i in range(num_train)] + [f"test/{i}" for i in range(IMAGES)],
        given=np.repeat(["train", "test"], [num_train, IMAGES]),
        split=split,
        ratios=ratios,
        duplicates=None if split is None and ratios is None else content_hash(x),
        seed=seed,
    )
    del x  # the parts hold copies
    return assemble(
        "cifar10",
        **parts,
        num_classes=10,
        class_names=arrays["class_names"].tolist(),
        description=f"CIFAR-10, 32 x 32 RGB, standardised: {how}",
    )


def _sheet(batch):
    return f"{batch}_tiles.webp"


def _cut(file, out):
    """Fill `out` (IMAGES, SIDE, SIDE, 3) with the tiles of a sheet, row by row."""
    sheet = pixels.read(file, channels=3)
    side = ROWS * SIDE
    if sheet.shape[:2] != (side, side):
        raise UserError(
            f"{file} is {sheet.shape[1]} x {sheet.shape[0]} pixels, but a sheet of {ROWS} x {ROWS} tiles is "
            f"{side} x {side}: fetch it again"
        )
    tiles = sheet.reshape(ROWS, SIDE, ROWS, SIDE, 3).transpose(0, 2, 1, 3, 4)
    out[:] = tiles.reshape(out.shape)
