"""Colour patches in dermoscopy images: large saturated discs stuck beside the lesion, which networks learn.

    candidate pixel   hue in [h1, h2], saturation >= s, value >= v
    region            candidates joined over hairs, connected, holes filled; share of the image in [a1, a2]
    disc              |region and E| / |region or E| >= r,  E the best ellipse through its rim

In the ISIC archive patches stand beside benign lesions only, so that a network can tell "benign" by the patch
(arXiv:1909.13584). E has its axes along the image's, as a disc has in a picture of 4 : 3 that was made
square: for each of a few ratios of the axes it is fitted by linear least squares, and the best counts. Only
the part of the rim is fitted, and only pixels compared, where the picture neither ends nor is widely dark:
discs cut by the border or by dark corners stay discs.

Not found: red, orange and beige patches, whose hues are those of skin, blood and lesions, and blue ones on
skin in blue light. A round and strongly blue naevus can be taken for a patch.

Runs on the host, image by image.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.colors import rgb_to_hsv
from scipy import ndimage

from bnn_jax import pixels

_THIN = 0.04  # hairs and outlines are thinner, dark corners and lesions thicker; share of the shorter side
_ASPECTS = np.geomspace(0.5, 2, 9)  # width by height of ellipses; 16 : 9 made square gives 0.56
_WIDEST = 0.75  # largest half axis, as a share of the longer side: a straight edge is no rim of a disc
_FEWEST = 8  # rim pixels that an ellipse is fitted to


class Patches(NamedTuple):
    """What was found, one entry an image."""

    flagged: np.ndarray  # (N,) bool: at least one patch
    area: np.ndarray  # (N,) share of pixels in patches
    count: np.ndarray  # (N,) number of patches


def patches(
    images: np.ndarray,
    hue: tuple[float, float] = (40.0, 300.0),
    saturation: float = 0.4,
    value: float = 0.2,
    area: tuple[float, float] = (0.01, 0.6),
    roundness: float = 0.85,
) -> Patches:
    """The images with colour patches.

    Args:
        images: (N, H, W, 3) raw pixels, floats in [0, 1]; 64 pixels a side are enough.
        hue: degrees, from yellow over green and blue to purple; skin, blood and lesions lie outside.
        saturation: smallest of a patch, in [0, 1]; lower finds paler patches, and skin in bluish light.
        value: smallest of a patch, in [0, 1]; in darker pixels hue and saturation are mostly noise.
        area: smallest and largest share of the pixels in one patch; dots and lines of ink are smaller,
            skin in bluish light is larger.
        roundness: smallest overlap with the ellipse, intersection over union, in [0, 1].

    Raises:
        UserError: images of another shape or range.
    """
    images = pixels.check_rgb(images, "patches")
    share, count = np.zeros(len(images)), np.zeros(len(images), int)
    for i, image in enumerate(images):
        h, s, v = np.moveaxis(rgb_to_hsv(image), -1, 0)
        seen = v >= value
        candidates = seen & (s >= saturation) & (360 * h >= hue[0]) & (360 * h <= hue[1])
        if candidates.mean() < area[0] / 2:  # most images; joining does not double them
            continue
        steps = max(1, round(_THIN * min(seen.shape) / 2))
        dark = ~_join(seen, steps)
        labels, found = ndimage.label(_join(candidates, steps))
        for number in range(1, found + 1):
            region = ndimage.binary_fill_holes(labels == number)
            if area[0] <= region.mean() <= area[1] and _roundness(region, dark) >= roundness:
                share[i] += region.mean()
                count[i] += 1
    return Patches(count > 0, share, count)


def _join(mask, steps):
    """A mask (H, W) without gaps of less than 2 `steps` pixels; outside the picture counts as mask."""
    grown = ndimage.binary_dilation(mask, iterations=steps)
    return ndimage.binary_erosion(grown, iterations=steps, border_value=1)


def _roundness(region, dark):
    """The best overlap of a region with an ellipse through its rim, where it is not dark; 0 without a rim."""
    compared = region | ~dark
    y, x = np.nonzero(region & ndimage.binary_dilation(compared & ~region))
    if len(x) < _FEWEST:
        return 0.0
    rows, columns = np.indices(region.shape)
    best = 0.0
    for a in _ASPECTS**2:
        # (x - x0)^2 + a (y - y0)^2 = w^2 is linear in x0, a y0 and w^2 - x0^2 - a y0^2
        design = np.stack([2 * x, 2 * y, np.ones_like(x)], 1)
        (x0, y0, rest), _, rank, _ = np.linalg.lstsq(design, x**2 + a * y**2)
        if rank < 3:  # a straight line
            continue
        y0 /= a
        width = np.sqrt(max(rest + x0**2 + a * y0**2, 0)) + 0.5  # the edge lies half a pixel outside the rim
        height = (width - 0.5) / np.sqrt(a) + 0.5
        if max(width, height) > _WIDEST * max(region.shape):
            continue
        ellipse = ((columns - x0) / width) ** 2 + ((rows - y0) / height) ** 2 <= 1
        ellipse &= compared
        best = max(best, (region & ellipse).sum() / (region | ellipse).sum())
    return best
