"""Random changes of training images, on the device: pure functions of (key, image), jitted and vmapped.

    output(p) = image(c + R T S Z F (p - c)),   p, c in pixels, c = ((H - 1) / 2, (W - 1) / 2)

F flips, Z zooms, S shears, T shifts and R rotates, as Keras' ImageDataGenerator composes them and with its
conventions. The map is composed first and the image resampled once, bilinearly; beyond the edge counts
the nearest pixel. Then follow brightness, contrast, a clip to [0, 1], and the crop. The key of
an example is fold_in(key, its number in the data set), so that its augmentation depends neither on its place
in the batch nor on the device.

Augmented copies are no new evidence: the ELBO keeps the N of the data set. Its log likelihood becomes the
mean over random copies, which is no likelihood of the data (arXiv:2106.05586). At test time p(y | x) is the
mean over crops of x: see `over_crops`.

Images are raw pixels, floats in [0, 1]: augment first, standardise afterwards.
"""

import dataclasses
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from bnn_jax import ops
from bnn_jax.types import Key, UserError


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What to vary, each drawn uniformly and independently for every image; all off by default."""

    rotation: float = 0.0  # largest rotation to either side, degrees
    shear: float = 0.0  # largest shear to either side, degrees
    zoom: tuple[float, float] | None = None  # range of the factor, for each axis; below 1 magnifies
    shift: float = 0.0  # largest shift to either side, as a fraction of the side
    brightness: tuple[float, float] | None = None  # range of the factor on every pixel
    contrast: tuple[float, float] | None = None  # range of the factor on the distance from the channel mean
    flip_horizontal: bool = False  # left and right change places, with probability 1/2
    flip_vertical: bool = False  # top and bottom, likewise
    crop: int | None = None  # side of a random square crop, pixels


class Warp(NamedTuple):
    """The parameters of one geometric change. Pairs are (rows, columns)."""

    rotation: Any = 0.0  # () degrees, clockwise
    shear: Any = 0.0  # () degrees
    zoom: Any = (1.0, 1.0)  # (2,)
    shift: Any = (0.0, 0.0)  # (2,) fraction of the side; positive moves the content up and left
    flip: Any = (False, False)  # (2,) bool: vertical, horizontal


def is_off(augmentation: Augmentation) -> bool:
    """Whether nothing is varied: `build` then returns the identity, and the caller may leave it out."""
    return augmentation == Augmentation()


def build(augmentation: Augmentation) -> Callable:
    """The random change of one image. With everything off it returns the image itself.

    Returns:
        (key, image (H, W, C) in [0, 1]) -> image (H, W, C), or (crop, crop, C). Pixels keep every bit
        unless an option changes them.

    Raises:
        UserError: a value is out of range; on call, the crop exceeds the image, or the image is not (H, W, C)
            floats.
    """
    _check(augmentation)
    if is_off(augmentation):
        return lambda key, image: image
    brightness, contrast, crop = augmentation.brightness, augmentation.contrast, augmentation.crop
    geometric = ("rotation", "shear", "zoom", "shift", "flip_horizontal", "flip_vertical")
    warps = any(getattr(augmentation, name) for name in geometric)

    def augment(key: Key, image: jax.Array) -> jax.Array:
        if image.ndim != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
            got = f"{image.dtype} of shape {image.shape}"
            raise UserError(f"augmentation needs an image (H, W, C) of floats in [0, 1], got {got}")
        # Always the same split, so that switching one option on leaves the draws of the others as they are.
        warp_key, brightness_key, contrast_key, crop_key = jax.random.split(key, 4)
        if warps:
            image = warp(image, draw_warp(warp_key, augmentation))
        if brightness:
            image = image * _uniform(brightness_key, brightness)
        if contrast:
            mean = image.mean((0, 1))
            image = mean + _uniform(contrast_key, contrast) * (image - mean)
        if warps or brightness or contrast:
            image = jnp.clip(image, 0, 1)
        if crop:
            _check_crop(image.shape[:2], crop)
            last = jnp.array(image.shape[:2]) - crop
            row, column = jax.random.randint(crop_key, (2,), 0, last + 1)
            image = jax.lax.dynamic_slice(image, (row, column, 0), (crop, crop, image.shape[2]))
        return image

    return augment


def batch(augment: Callable) -> Callable:
    """`augment` on a whole batch, compiled.

    Args:
        augment: (key, image) -> image, as `build` returns it.

    Returns:
        (key, images (B, H, W, C), numbers (B,) int: each example's place in the data set) -> images. Pass a
        key of the step, `fold_in(key, t)`.
    """

    @jax.jit
    def augmented(key: Key, images: jax.Array, numbers: jax.Array) -> jax.Array:
        return jax.vmap(lambda n, image: augment(jax.random.fold_in(key, n), image))(numbers, images)

    return augmented


def draw_warp(key: Key, augmentation: Augmentation) -> Warp:
    """One random geometric change, of what `augmentation` switches on."""
    rotation, shear, zoom, shift, flip = jax.random.split(key, 5)
    either_side = lambda key, most, shape=(): _uniform(key, (-most, most), shape)
    wanted = jnp.array([augmentation.flip_vertical, augmentation.flip_horizontal])
    return Warp(
        rotation=either_side(rotation, augmentation.rotation),
        shear=either_side(shear, augmentation.shear),
        zoom=_uniform(zoom, augmentation.zoom or (1.0, 1.0), (2,)),
        shift=either_side(shift, augmentation.shift, (2,)),
        flip=wanted & jax.random.bernoulli(flip, shape=(2,)),
    )


def warp(image: jax.Array, by: Warp) -> jax.Array:
    """One image (H, W, C), resampled once under a fixed change; beyond the edge counts the nearest pixel."""
    height, width = image.shape[:2]
    centre = (height - 1) / 2, (width - 1) / 2
    # Elementwise on purpose: accelerators round the operands of matrix products, here by a tenth of a pixel.
    y = (jnp.arange(height) - centre[0])[:, None] * jnp.where(by.flip[0], -by.zoom[0], by.zoom[0])
    x = (jnp.arange(width) - centre[1])[None, :] * jnp.where(by.flip[1], -by.zoom[1], by.zoom[1])
    shear, angle = jnp.deg2rad(by.shear), jnp.deg2rad(by.rotation)
    y, x = y - jnp.sin(shear) * x, jnp.cos(shear) * x
    y, x = y + by.shift[0] * height, x + by.shift[1] * width
    y, x = jnp.cos(angle) * y - jnp.sin(angle) * x, jnp.sin(angle) * y + jnp.cos(angle) * x
    at = (y + centre[0], x + centre[1])
    resample = lambda channel: map_coordinates(channel, at, order=1, mode="nearest")
    return jax.vmap(resample, in_axes=-1, out_axes=-1)(image)


def centre_crop(images: jax.Array, size: int) -> jax.Array:
    """The square in the middle: (..., H, W, C) -> (..., size, size, C); where it cannot be centred, the
    upper left one of the two next to the centre.

    Raises:
        UserError: `size` exceeds the image or is below 1.
    """
    height, width = images.shape[-3:-1]
    _check_crop((height, width), size)
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size, :]


def sliding_crops(images: jax.Array, size: int, stride: int) -> jax.Array:
    """Crops at every `stride` pixels, row by row: (B, H, W, C) -> (G, B, size, size, C). The last of each
    row and column touches the edge, by a smaller step if need be, so that no border is left out.

    Raises:
        UserError: `size` exceeds the image or is below 1, or `stride` is below 1.
    """
    corners = _corners(images.shape[1:3], size, stride)
    return jnp.stack([images[:, top : top + size, left : left + size] for top, left in corners])


def over_crops(f: Callable, size: int, stride: int) -> Callable:
    """The mean of `f` over the sliding crops of images: one crop at a time, so memory stays one crop's.

    With f = lambda x: likelihood.mean(apply(params, x)), the predictive probability of an image is the mean
    over its crops.

    Args:
        f: (B, size, size, C) -> a pytree of arrays (B, ...).
        size, stride: pixels, as for `sliding_crops`.

    Returns:
        (images (B, H, W, C)) -> what f returns, averaged over the crops.

    Raises:
        UserError: on call, as `sliding_crops`.
    """

    def mean(images: jax.Array) -> Any:
        images = jnp.asarray(images)
        shape = (images.shape[0], size, size, images.shape[3])
        one = lambda corner: f(jax.lax.dynamic_slice(images, (0, *corner, 0), shape))
        values = jax.lax.map(ops.in_loop(one), jnp.asarray(_corners(images.shape[1:3], size, stride)))
        return jax.tree.map(lambda a: a.mean(0), values)

    return mean


def _uniform(key: Key, span: tuple[float, float], shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.random.uniform(key, shape, minval=span[0], maxval=span[1])


def _corners(sides: tuple[int, int], size: int, stride: int) -> np.ndarray:
    """(G, 2): the upper left corners of all sliding crops."""
    _check_crop(sides, size)
    if stride < 1:
        raise UserError(f"the stride of sliding crops must be at least 1 pixel, not {stride}")
    rows, columns = ([*range(0, side - size, stride), side - size] for side in sides)
    return np.array([(row, column) for row in rows for column in columns], np.int32)


def _check_crop(sides: tuple[int, int], size: int) -> None:
    if not 1 <= size <= min(sides):
        raise UserError(f"a crop of {size} pixels does not fit into images of {sides[0]} x {sides[1]}")


def _check(a: Augmentation) -> None:
    """Raise a UserError that names the first option out of range."""
    for name, most in (("rotation", 180), ("shear", 89), ("shift", 1)):
        value = getattr(a, name)
        if not 0 <= value <= most:
            unit = "of the side" if name == "shift" else "degrees"
            raise UserError(f"augmentation: {name} must lie in 0..{most} {unit}, not {value}")
    for name in ("zoom", "brightness", "contrast"):
        span = getattr(a, name)
        if span is not None and (len(span) != 2 or not 0 < span[0] <= span[1] < inf):
            raise UserError(f"augmentation: {name} must be two positive factors, low <= high, not {span}")
    if a.crop is not None and a.crop < 1:
        raise UserError(f"augmentation: crop must be at least 1 pixel, not {a.crop}")
