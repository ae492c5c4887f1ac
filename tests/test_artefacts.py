"""Artefacts: painted discs are found, whole or cut; skin, lesions, hair, rulers, ink and light are not."""

import numpy as np
import pytest

from bnn_jax import artefacts
from bnn_jax.types import UserError

SIDE = 96
Y, X = np.indices((SIDE, SIDE)) / SIDE + 0.5 / SIDE  # pixel centres, in [0, 1]
SKIN, LESION = np.array([0.82, 0.65, 0.58]), np.array([0.25, 0.14, 0.1])
COLOURS = {
    "yellow": (0.88, 0.75, 0.24),
    "green": (0.25, 0.55, 0.27),
    "turquoise": (0.16, 0.6, 0.6),
    "blue": (0.18, 0.37, 0.65),
    "dark blue": (0.1, 0.14, 0.4),
    "purple": (0.41, 0.2, 0.55),
}
BLUE = COLOURS["blue"]


def inside(x, y, width, height=None):
    """Where the image lies in an ellipse of that centre and those half axes, in sides."""
    return ((X - x) / width) ** 2 + ((Y - y) / (height or width)) ** 2 <= 1


def skin():
    """Skin with a gradient of light, noise, and a dark lesion in the middle: (SIDE, SIDE, 3)."""
    image = SKIN * (0.8 + 0.25 * X[..., None])
    image[inside(0.5, 0.5, 0.18)] = LESION
    return image + np.random.default_rng(0).normal(0, 0.01, image.shape)


def paint(where, colour, image=None):
    """`colour` where the mask is true, in the light of the image."""
    image = skin() if image is None else image
    return np.where(where[..., None], np.array(colour) * (0.8 + 0.25 * X[..., None]), image)


def find(image, **settings):
    found = artefacts.patches(np.clip(image, 0, 1)[None], **settings)
    return bool(found.flagged[0]), found.area[0], found.count[0]


@pytest.mark.parametrize("radius", [0.08, 0.15, 0.25, 0.35])
@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_discs_of_all_colours_and_sizes(colour, radius):
    where = inside(0.6, 0.45, radius)
    flagged, area, count = find(paint(where, colour))
    assert flagged
    assert count == 1
    assert area == pytest.approx(where.mean(), rel=0.05)
    assert area == pytest.approx(np.pi * radius**2, rel=0.05)


@pytest.mark.parametrize(
    "where",
    [
        inside(0, 0.4, 0.2),
        inside(0.7, 1.05, 0.2),
        inside(1, 1, 0.3),
        inside(0.05, -0.05, 0.3),
        inside(0.2, 0.25, 0.12, 0.16),  # a disc in a picture of 4 : 3 made square
        inside(0.25, 0.3, 0.25, 0.14),  # one in a tall picture
    ],
    ids=["half", "less than half", "a quarter in the corner", "less than that", "narrow", "wide"],
)
def test_cut_and_squeezed_discs(where):
    flagged, area, _ = find(paint(where, BLUE))
    assert flagged
    assert area == pytest.approx(where.mean(), rel=0.05)


def test_two_patches_count_twice():
    where = inside(0.15, 0.2, 0.12) | inside(0.85, 0.9, 0.2)
    flagged, area, count = find(paint(where, COLOURS["green"]))
    assert (flagged, count) == (True, 2)
    assert area == pytest.approx(where.mean(), rel=0.05)


@pytest.mark.parametrize("spoilt", ["hair", "outline", "hole", "dark corners"])
def test_discs_that_are_spoilt(spoilt):
    disc = inside(0.3, 0.25, 0.2)
    image = paint(disc, BLUE)
    match spoilt:
        case "hair":
            image[np.abs(Y - 0.2 - 0.2 * X) < 0.012] = 0.05
        case "outline":
            image[inside(0.3, 0.25, 0.22) & ~disc] = 0.05
        case "hole":
            image[inside(0.33, 0.25, 0.06)] = 0.95
        case "dark corners":
            image[~inside(0.55, 0.55, 0.42)] = 0.05
    flagged, area, count = find(image)
    assert (flagged, count) == (True, 1)
    if spoilt != "dark corners":  # there only what is seen
        assert area == pytest.approx(disc.mean(), rel=0.1)


def bars(step, width):
    return (np.mod(X, step) < width) & (Y > 0.9)


CLEAN = {
    "skin and a lesion": skin(),
    "black": np.zeros((SIDE, SIDE, 3)),
    "white": np.ones((SIDE, SIDE, 3)),
    "reddish skin": skin() * (1, 0.7, 0.7),
    "a red disc": paint(inside(0.3, 0.3, 0.2), (0.75, 0.2, 0.18)),
    "a brown disc": paint(inside(0.3, 0.3, 0.2), (0.45, 0.25, 0.1)),
    "a blue-grey naevus": paint(inside(0.5, 0.5, 0.2), (0.35, 0.4, 0.5)),
    "a nearly black blue disc": paint(inside(0.5, 0.5, 0.2), (0.02, 0.02, 0.12)),
    "a ruler": paint(bars(0.06, 0.012), (0.05, 0.05, 0.05)),
    "a blue ruler": paint(bars(0.12, 0.012), BLUE),
    "hair": paint(np.mod(X + 0.4 * Y, 0.15) < 0.012, (0.08, 0.05, 0.03)),
    "an ink dot": paint(inside(0.9, 0.3, 0.04), COLOURS["purple"]),
    "an ink line": paint(np.abs(Y - 0.15 - 0.1 * X) < 0.02, COLOURS["purple"]),
    "a blue cross": paint((np.abs(X - 0.3) < 0.05) ^ (np.abs(Y - 0.3) < 0.05), BLUE),
    "a blue triangle": paint(X + Y < 0.6, BLUE),
    "a blue side": paint(X < 0.3, BLUE),
    "a blue side, slightly bent": paint(inside(-2.7, 0.5, 3), BLUE),
    "blue light": skin() * (0.5, 0.8, 1.5),
    "blue light in a dark tube": skin() * (0.5, 0.8, 1.5) * inside(0.5, 0.5, 0.46)[..., None],
}


@pytest.mark.parametrize("image", CLEAN.values(), ids=CLEAN)
def test_what_is_no_patch(image):
    assert find(image) == (False, 0, 0)


def test_thresholds_are_thresholds():
    """A blue disc of saturation 0.72 and value 0.55 or more, and of area 0.045, passes just below each."""
    image = paint(inside(0.2, 0.2, 0.12), BLUE)
    for name, passes, fails in (
        ("saturation", 0.7, 0.75),
        ("value", 0.5, 0.75),
        ("area", (0.04, 0.05), (0.05, 0.6)),
        ("area", (0.04, 0.05), (0.01, 0.04)),
        ("hue", (200, 230), (40, 200)),
        ("hue", (200, 230), (230, 300)),
        ("roundness", 0.9, 1.01),
    ):
        assert find(image, **{name: passes})[0]
        assert not find(image, **{name: fails})[0]


def test_images_are_judged_one_by_one():
    images = np.clip([skin(), paint(inside(0.1, 0.1, 0.2), BLUE), skin()], 0, 1).astype(np.float32)
    found = artefacts.patches(images)
    assert found.flagged.tolist() == [False, True, False]
    assert [a.shape for a in found] == [(3,)] * 3
    assert artefacts.patches(images[:0]).flagged.shape == (0,)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 4, 3)), "shape"),
        (np.zeros((1, 4, 4, 1)), "RGB images"),
        (np.full((1, 4, 4, 3), np.nan), "raw pixels"),
        (np.full((1, 4, 4, 3), 1.5), "raw pixels"),
        (np.zeros((1, 4, 4, 3), np.uint8), "divide 8-bit images by 255"),
    ],
)
def test_mistakes_are_told(images, message):
    with pytest.raises(UserError, match=message):
        artefacts.patches(images)
