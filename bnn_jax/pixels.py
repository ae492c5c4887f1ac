"""Image files as arrays of 8-bit pixels, always whole, upright and either grey or RGB.

What is done to a file, in this order:
    turned as its EXIF orientation says
    16- and 32-bit integers: 255 v / top, top the largest value of the stored type (65535 for 16 bits); no
        stretching to the values that occur, so that pictures stay comparable
    palette -> RGB, or grey where all colours used are grey; 1 bit -> 0 and 255; CMYK and others -> RGB
    transparency: composited on black
    RGB -> grey on request, by ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B
    resized on request to a square, bilinear with antialiasing; the aspect ratio is not kept

Pillow decodes. Pictures that could exhaust the memory (`PIL.Image.MAX_IMAGE_PIXELS`) are refused.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bnn_jax.types import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # Pillow tries no others, whatever the suffix
_GREY = ("1", "L", "LA", "La")
_KNOWN = (*_GREY, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _SIGNED = 0, 2  # values of the latter two


def read(path: str | Path, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """The picture in a file: (H, W, C) uint8.

    Args:
        path: a PNG, JPEG, BMP, GIF, TIFF or WebP file, told by its content, not by its suffix.
        size: pixels a side of the result; default: as the file is.
        channels: 1 for grey or 3 for RGB; default: as the file is.

    Raises:
        UserError: it cannot be read, is no image, truncated, damaged, too large, has several frames or pixels
            that are neither grey nor colours; `size` or `channels` that make no sense.
    """
    _check_wish(size, channels)
    image = _decode(path)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array


def read_all(
    paths: Sequence[str | Path], size: int | None = None, channels: int | None = None, skip_bad: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The pictures of many files, decoded side by side: (pixels (n, H, W, C) uint8, kept (n,), left out).

    `kept` are the positions in `paths` of those that were read, in order; `left out` names every other file
    and why. Without `channels`, all are RGB as soon as one is; `read` tells about the rest.

    Raises:
        UserError: as `read`, for the first bad file in order unless `skip_bad`; no files, or none that can be
            read; without `size`, pictures of different sizes.
    """
    _check_wish(size, channels)
    if len(paths) == 0:
        raise UserError("no image files to read")

    def attempt(path):
        try:
            return read(path, size, channels)
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error}, or pass --skip-bad to leave it out") from None
            return str(error)

    found, kept, left_out = [], [], []
    with ThreadPoolExecutor() as pool, closing(pool.map(attempt, paths)) as pictures:
        for i, picture in enumerate(pictures):  # leaving early closes it: the rest is cancelled
            if isinstance(picture, str):
                left_out.append(picture)
                continue
            if found and picture.shape[:2] != found[0].shape[:2]:
                one, other = (f"{p.shape[1]} x {p.shape[0]}" for p in (found[0], picture))
                raise UserError(
                    f"the images differ in size: {paths[kept[0]]} is {one} pixels, {paths[i]} {other}; "
                    "pass --image-size to resize all of them"
                )
            found.append(picture)
            kept.append(i)
    if not found:
        raise UserError(f"none of {len(paths)} images can be read; the first: {left_out[0]}")
    height, width = found[0].shape[:2]
    pixels = np.empty((len(found), height, width, max(p.shape[2] for p in found)), np.uint8)
    for i in range(len(found)):
        pixels[i] = found[i]  # a grey picture is broadcast to R = G = B
        found[i] = None  # freed at once: not all pictures twice
    return pixels, np.array(kept), left_out


def check_rgb(images: np.ndarray, what: str) -> np.ndarray:
    """`images` as an array, if they are raw RGB pixels (N, H, W, 3), floats in [0, 1].

    Raises:
        UserError: they are not; `what` names what needs them.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"{what} need RGB images (N, H, W, 3), got shape {images.shape}")
    inside = images.min(initial=0) == 0 and images.max(initial=1) == 1  # false for NaN, too
    if not (np.issubdtype(images.dtype, np.floating) and inside):
        raise UserError(f"{what} need raw pixels, floats in [0, 1]: divide 8-bit images by 255")
    return images


def fit(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Float pictures (N, H, W, C) in another size and with other channels, changed as `read` changes files:
    (N, size, size, channels) float32."""
    grey = images.shape[-1] == 1
    if channels == 1 and not grey:
        images = images @ np.array([[0.299], [0.587], [0.114]], images.dtype)
    result = np.empty((len(images), size, size, images.shape[-1]), np.float32)
    for picture, planes in zip(result, images.astype(np.float32, copy=False), strict=True):
        for c in range(planes.shape[-1]):
            picture[..., c] = Image.fromarray(planes[..., c]).resize((size, size), Image.Resampling.BILINEAR)
    return np.repeat(result, 3, -1) if channels == 3 and grey else result


def _check_wish(size, channels):
    if size is not None and size < 1:
        raise UserError(f"the image size must be at least 1 pixel, got {size}")
    if channels not in (None, 1, 3):
        raise UserError(f"images have 1 channel (grey) or 3 (RGB), not {channels}")


def _decode(path):
    """The picture as a Pillow image of mode L or RGB."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # an MPO's others are previews
                raise UserError(f"{path} has {image.n_frames} frames: save the one that is meant")
            image.load()
            depth = _depth(image)
            image = ImageOps.exif_transpose(image)
            if depth:
                return _eight_bits(path, image, *depth)
            if image.mode not in _KNOWN:
                raise UserError(
                    f"{path} has pixels of type {image.mode}, of unknown range: save it as 8-bit grey or RGB"
                )
            return _grey_or_rgb(image)
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): look at its name and rights") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path} is no {', '.join(FORMATS)} image, or its beginning is damaged: replace or remove it"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path} has too many pixels to be safe: make it smaller") from None
    except Exception as error:  # on damaged bytes, decoders fail in any way whatever
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is truncated or damaged ({reason}): fetch it again") from None


def _depth(image):
    """(bits, signed, white is zero) of integer pixels of more than 8 bits, else None."""
    if image.mode.split(";")[0] != "I":
        return None
    tags = getattr(image, "tag_v2", {})  # of a TIFF; a PNG has 16 bits
    bits = tags.get(_BITS, (16,))[0]
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    return bits, signed, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _eight_bits(path, image, bits, signed, white_is_zero):
    values = np.asarray(image).astype(np.int64)
    if bits == 32 and not signed:
        values &= 2**32 - 1  # Pillow holds them as signed
    if values.min() < 0:
        raise UserError(f"{path} has negative pixels: save it as 8-bit or unsigned 16-bit grey")
    top = 2 ** (bits - signed) - 1
    values = top - values if white_is_zero else values
    return Image.fromarray(((255 * values + top // 2) // top).astype(np.uint8))


def _grey_or_rgb(image):
    grey = image.mode in _GREY
    indexed = image.mode in ("P", "PA")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    elif grey:
        return image.convert("L")
    else:
        image = image.convert("RGB")
    if indexed:
        values = np.asarray(image)
        grey = bool((values == values[..., :1]).all())
    return image.getchannel(0) if grey else image
