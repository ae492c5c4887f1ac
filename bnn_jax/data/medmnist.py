"""Any file in MedMNIST's .npz format: images and labels of a given train/val/test split.

Arrays `<part>_images` (N, H, W) or (N, H, W, 3) and `<part>_labels` (N,) or (N, 1) integers for the parts
train, test and, where it has one, val (Yang et al., doi:10.1038/s41597-022-01721-8); pixels are uint8, or
floats in [0, 1]. An array `class_names` of strings names the classes; the official files have none.
"""

from pathlib import Path

import numpy as np

from bnn_jax.data import assemble, partition, read_npz, to_float
from bnn_jax.splits import content_hash
from bnn_jax.types import Dataset, UserError

PARTS = ("train", "val", "test")


def load(
    path: Path | None = None,
    seed: int = 0,
    split: str | None = None,
    ratios: tuple[float, float, float] | None = None,
) -> Dataset:
    """The parts of the file at `path`, in the file's order; drawn anew by `seed` as `split` and `ratios` say.

    Exact copies of an image are never torn apart by a drawn split. An id is the part and the row in the file.

    Raises:
        UserError: no path, no such file, not in this format, pickled objects in it, an empty part, or data
            that cannot be trained on or divided so.
    """
    if path is None:
        raise UserError("the data set medmnist needs --path FILE.npz")
    path = Path(path)
    names = {part: (f"{part}_images", f"{part}_labels") for part in PARTS}
    optional = (*names["val"], "class_names")
    arrays = read_npz(path, (*names["train"], *names["test"]), optional, "MedMNIST")
    if (names["val"][0] in arrays) != (names["val"][1] in arrays):
        raise UserError(f"{path} is not in MedMNIST format: of val_images and val_labels only one is there")
    present = [part for part in PARTS if names[part][0] in arrays]
    images, labels = {}, {}
    for part in present:
        images[part] = _images(path, arrays, names[part][0])
        labels[part] = _labels(path, arrays, names[part][1], len(images[part]))
        shapes = [found.shape[1:] for found in (images["train"], images[part])]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{path}: images of train and {part} differ in shape: {shapes[0]} and {shapes[1]}"
            )
    if len({found.dtype for found in images.values()}) > 1:
        images = {part: to_float(found) for part, found in images.items()}
    given = np.repeat(present, [len(labels[part]) for part in present])
    ids = [f"{part}/{row}" for part in present for row in range(len(labels[part]))]
    x, y = np.concatenate(list(images.values())), np.concatenate(list(labels.values()))
    if y.max() >= len(y):
        raise UserError(f"{path}: label {y.max()} among {len(y)} images: number the classes 0, 1, ...")
    drawn = split is not None or ratios is not None
    parts, how = partition(
        x,
        y,
        ids,
        given=given,
        split=split,
        ratios=ratios,
        duplicates=content_hash(x) if drawn else None,
        seed=seed,
    )
    class_names = _class_names(path, arrays.get("class_names"))
    return assemble(
        path.stem,
        **parts,
        num_classes=len(class_names) or int((y if drawn else labels["train"]).max()) + 1,
        class_names=class_names,
        description=f"{path.name} in MedMNIST format, standardised: {how}",
    )


def _images(path, arrays, name):
    images = arrays[name]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise UserError(f"{path}: {name} must be (N, H, W) or (N, H, W, 3), not {images.shape}")
    if images.size == 0:
        raise UserError(f"{path}: {name} is empty, of shape {images.shape}")
    if images.dtype.kind not in "uifb":
        raise UserError(f"{path}: {name} must hold uint8 or float pixels, not {images.dtype}")
    whole = images.dtype.kind in "ui"
    if images.dtype != np.uint8:
        low, high = images.min(), images.max()
        if low < 0 or high > (255 if whole else 1):  # never so where either is NaN, which is told later
            raise UserError(
                f"{path}: {name} span {low:g}..{high:g}: pixels must be integers 0..255 or floats in [0, 1]"
            )
        images = images.astype(np.uint8 if whole else np.float32)
    return images[..., None] if images.ndim == 3 else images


def _labels(path, arrays, name, num_images):
    labels = arrays[name]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(f"{path}: {name} must be (N,) or (N, 1), not {labels.shape}: one class an image")
    if len(labels) != num_images:
        raise UserError(f"{path}: {len(labels)} entries in {name} for {num_images} images")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: {name} must be integers, not {labels.dtype}: number the classes 0, 1, ...")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        span = f"{labels.min()}..{labels.max()}"
        raise UserError(f"{path}: {name} span {span}: number the classes 0, 1, ...")
    return labels.astype(np.int32)


def _class_names(path, names):
    if names is None:
        return ()
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(f"{path}: class_names must be (K,) strings, not {names.dtype} of shape {names.shape}")
    return tuple(names.tolist())
