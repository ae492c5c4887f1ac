"""A folder with files in MNIST's own format, idx, gzipped or not: MNIST, Fashion-MNIST, KMNIST and the like.

`train-images-idx3-ubyte[.gz]` (N, H, W) uint8 with `train-labels-idx1-ubyte[.gz]` (N,), and the same with
`t10k` for the test part. With one of the two only, the parts are drawn from it.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from bnn_jax.data import assemble, partition
from bnn_jax.splits import content_hash
from bnn_jax.types import Dataset, UserError

FILES = {"train": "train", "test": "t10k"}
UINT8 = 0x08


def load(
    path: Path | None = None,
    seed: int = 0,
    split: str | None = None,
    ratios: tuple[float, float, float] | None = None,
) -> Dataset:
    """The parts in the folder `path`, in the files' order; drawn anew by `seed` as `split` and `ratios` say.

    Exact copies of an image are never torn apart by a drawn split. An id is the part and the row in the file.

    Raises:
        UserError: no path, no such files, a damaged one, or data that cannot be trained on or divided so.
    """
    if path is None:
        raise UserError("the data set idx needs --path FOLDER")
    path = Path(path)
    images, labels = {}, {}
    for part, prefix in FILES.items():
        named = [find(path, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        if None in named:
            continue
        images[part], labels[part] = read(named[0], 3)[..., None], read(named[1], 1)
        if len(images[part]) != len(labels[part]):
            raise UserError(
                f"{named[0]} has {len(images[part])} images, {named[1]} {len(labels[part])} labels"
            )
    if not images:
        raise UserError(
            f"{path} has no train-images-idx3-ubyte and train-labels-idx1-ubyte, nor the same of t10k"
        )
    given = np.repeat(list(labels), [len(y) for y in labels.values()]) if len(labels) == 2 else None
    x, y = np.concatenate(list(images.values())), np.concatenate(list(labels.values()))
    parts, how = partition(
        x,
        y,
        [f"{part}/{row}" for part, found in labels.items() for row in range(len(found))],
        given=given,
        split=split,
        ratios=ratios,
        duplicates=content_hash(x) if given is None or split or ratios else None,
        seed=seed,
    )
    return assemble(
        path.name,
        **parts,
        num_classes=int(y.max(initial=0)) + 1,
        description=f"{path.name}, idx files, standardised: {how}",
    )


def find(folder: Path, name: str) -> Path | None:
    """The file `name`, plain or gzipped, or None."""
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def read(file: Path, ndim: int) -> np.ndarray:
    """The uint8 array of an idx file: two zero bytes, type, rank, sizes (big-endian), values.

    Raises:
        UserError: it is damaged, of another type or rank, or its length is not what its header says.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        zero, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{file} is damaged ({error}): fetch it again") from None
    if (zero, kind, rank) != (0, UINT8, ndim):
        raise UserError(
            f"{file} is no idx file of {ndim} axes of bytes: look at what it is, or fetch it again"
        )
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if len(values) != math.prod(shape):
        raise UserError(f"{file} has {len(values)} values, its header says {shape}: fetch it again")
    return values.reshape(shape)
