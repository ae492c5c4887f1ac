"""Any file in MedMNIST's .npz format: images and labels of a given train/val/test split.

Arrays `<part>_images` (N, H, W) or (N, H, W, 3) uint8 and `<part>_labels` (N,) or (N, 1) integers for the
parts train, val and test (Yang et al., doi:10.1038/s41597-022-01721-8). The validation part is left alone.
"""

import zipfile
from pathlib import Path

import numpy as np

from bnn_jax.data import check
from bnn_jax.types import Dataset, UserError


def load(path: Path | None = None, seed: int = 0) -> Dataset:
    """The training and test part of the file at `path`, in the file's order.

    Pixels are standardised with the mean and standard deviation of all training pixels.

    Raises:
        UserError: no path, no such file, not in this format, or data that cannot be trained on.
    """
    if path is None:
        raise UserError("the data set medmnist needs --path FILE.npz")
    names = [f"{part}_{kind}" for part in ("train", "test") for kind in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise UserError(f"{path} is not in MedMNIST format: no array {', '.join(missing)}")
            arrays = {name: file[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except UserError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or not an .npz file: {error}") from None
    images = {part: _images(path, arrays[f"{part}_images"]) for part in ("train", "test")}
    labels = {part: _labels(path, arrays[f"{part}_labels"]) for part in ("train", "test")}
    mean, std = images["train"].mean(), images["train"].std()
    if std == 0:
        raise UserError(f"{path}: all training pixels have the same value")
    show = images["test"]
    return check(
        Dataset(
            name=path.stem,
            x_train=(images["train"] - mean) / std,
            y_train=labels["train"],
            x_test=(images["test"] - mean) / std,
            y_test=labels["test"],
            num_classes=int(labels["train"].max(initial=0)) + 1,
            description=f"{path.name} in MedMNIST format, standardised, its own split",
            image_test=show[..., 0] if show.shape[-1] == 1 else show,
        )
    )


def _images(path, images):
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise UserError(f"{path}: images must be (N, H, W) or (N, H, W, 3), not {images.shape}")
    scale = 255 if images.dtype == np.uint8 else 1
    images = images.astype(np.float32) / scale
    return images[..., None] if images.ndim == 3 else images


def _labels(path, labels):
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(f"{path}: labels must be (N,) or (N, 1), not {labels.shape}: one class an image")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: class labels must be integers, not {labels.dtype}")
    return labels.astype(np.int32)
