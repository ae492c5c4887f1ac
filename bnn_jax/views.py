r"""The same RGB images as other inputs: colour as hue, saturation and value, and the spectrum.

    hsv      ((1 + s cos h) / 2, (1 + s sin h) / 2, v)
    fourier  log(1 + |F|) / log(1 + H W),    F_kl = sum_yx x_yx exp(-2 pi i (k y / H + l x / W))

Hue is an angle. As one number it jumps from 1 to 0 at red, where skin and lesions lie, so that neighbouring
pixels of one colour differ by the whole range; cut at cyan instead it would still be arbitrary in greys, as
of hairs and dark corners. The point (s cos h, s sin h) jumps nowhere but at black and is the same under
stronger or weaker light; grey is its origin. Nothing is lost: see `hsv`.

All views lie in [0, 1], as raw pixels do, by rules that know nothing of the data set: standardise afterwards.
Runs on the host, in batches; what becomes of an image does not depend on those beside it.
"""

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from numpy import fft

from bnn_jax import pixels
from bnn_jax.types import UserError

_BATCH = 128  # images at a time: bounds what is needed beside the result


def rgb(images: np.ndarray) -> np.ndarray:
    """The images themselves."""
    return images


def hsv(images: np.ndarray) -> np.ndarray:
    """Hue and saturation as a point of the colour disc, and the value: (N, H, W, 3) in [0, 1], and so is the
    result.

    With p and q the first two channels, s = hypot(2 p - 1, 2 q - 1) and h = atan2(2 q - 1, 2 p - 1); v is the
    third. Grey is (1/2, 1/2, v), red (1, 1/2, 1).
    """
    return _in_batches(_disc, images)


def fourier(images: np.ndarray) -> np.ndarray:
    """The log magnitude of each channel's 2-D Fourier transform, frequency 0 at (H // 2, W // 2):
    (N, H, W, C) in [0, 1], and so is the result.

    No magnitude exceeds H W, the one of frequency 0 of a white image, so that 1 is reached there only. The
    phase is left out: cyclic shifts change nothing, nor does a turn by 180 degrees.
    """
    return _in_batches(_spectrum, images)


VIEWS: MappingProxyType[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"rgb": rgb, "hsv": hsv, "fourier": fourier}
)


def apply(name: str, images: np.ndarray) -> np.ndarray:
    """A view of images: (N, H, W, 3) float32 in [0, 1].

    Args:
        name: one of `VIEWS`.
        images: (N, H, W, 3) raw pixels, floats in [0, 1]. "rgb" returns them without a copy if float32.

    Raises:
        UserError: unknown name, or images of another shape or range.
    """
    if name not in VIEWS:
        raise UserError(f"unknown view {name!r}: choose from {', '.join(VIEWS)}")
    images = pixels.check_rgb(images, "views")
    return VIEWS[name](images.astype(np.float32, copy=False))


def _disc(images):
    from matplotlib.colors import rgb_to_hsv  # takes long to import, and few runs look at hues

    h, s, v = np.moveaxis(rgb_to_hsv(images), -1, 0)
    angle = 2 * np.pi * h
    return np.stack([(1 + s * np.cos(angle)) / 2, (1 + s * np.sin(angle)) / 2, v], axis=-1)


def _spectrum(images):
    magnitude = np.abs(fft.fft2(images, axes=(1, 2)))
    top = np.log1p(images.shape[1] * images.shape[2])
    scaled = np.minimum(np.log1p(magnitude) / top, 1)  # rounding only: never above 1
    return fft.fftshift(scaled, axes=(1, 2))


def _in_batches(view, images):
    """`view` of images (N, H, W, C), `_BATCH` at a time, in float32."""
    images = np.asarray(images)
    result = np.empty(images.shape, np.float32)
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        result[part] = view(images[part].astype(np.float32, copy=False))
    return result
