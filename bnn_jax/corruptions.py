"""Test images made worse in five steps, for accuracy and calibration under a shift of the data.

    noise       x + c e, e ~ N(0, 1)
    blur        x convolved with N(0, s^2), s = c (shorter side) / 32 pixels; the edge pixel goes on outside
    contrast    m + c (x - m), m the image's mean per channel
    brightness  the value V of HSV becomes min(V + c, 1), hue and saturation stay
    jpeg        coded and decoded at quality c

All are clipped to [0, 1]. Definitions and constants c are those of CIFAR-10-C (Hendrycks & Dietterich,
arXiv:1903.12261), made for 32 x 32 pixels; the blur, the only one with a length, scales with the image.
Results are floats and, but for JPEG, not rounded to 8 bits.

Runs on the host; what becomes of an image does not depend on those beside it.
"""

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from bnn_jax.types import UserError

LEVELS = {  # c for severity 1 to 5
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # pixels, in an image of 32 x 32
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to V
    "jpeg": (80, 65, 58, 50, 40),  # quality
}
CORRUPTIONS = tuple(LEVELS)


def apply(name: str, images: np.ndarray, severity: int, seed: int = 0) -> np.ndarray:
    """The corrupted images, float32 in [0, 1].

    Args:
        name: one of `CORRUPTIONS`.
        images: (N, H, W, C) raw pixels, floats in [0, 1]; C is 1 or 3. Pass the whole set: the noise of an
            image belongs to its place in it, and is the same, only scaled, at every severity.
        severity: 1 (weakest) to 5.
        seed: of the noise; the others are deterministic.

    Raises:
        UserError: unknown name or severity, or images of another shape or range.
    """
    if name not in LEVELS:
        raise UserError(f"unknown corruption {name!r}: choose from {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise UserError(f"severity must be a whole number from 1 to 5, not {severity}")
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"corruptions need images (N, H, W, 1 or 3), got shape {images.shape}")
    if not (np.issubdtype(images.dtype, np.floating) and ((images >= 0) & (images <= 1)).all()):
        raise UserError("corruptions need raw pixels, floats in [0, 1]: divide 8-bit images by 255")
    images, c = images.astype(np.float32), LEVELS[name][int(severity) - 1]
    match name:
        case "gaussian_noise":
            # One stream in the order of the images: image i's part does not depend on what follows.
            noise = np.random.default_rng(seed).standard_normal(images.shape, np.float32)
            worse = images + c * noise
        case "gaussian_blur":
            sigma = c * min(images.shape[1:3]) / 32
            worse = gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")
        case "contrast":
            mean = images.mean((1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
            worse = mean + c * (images - mean)
        case "brightness":
            value = images.max(-1, keepdims=True)
            ratio = np.divide(images, value, out=np.ones_like(images), where=value > 0)  # black becomes grey
            worse = ratio * np.minimum(value + c, 1)
        case "jpeg":
            worse = np.array([_jpeg(image, c) for image in images]).reshape(images.shape)
    return np.clip(worse, 0, 1)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """One image (H, W, 1 or 3), coded and decoded."""
    pixels = np.round(image * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as coded:
        return np.asarray(coded, np.float32).reshape(image.shape) / 255
