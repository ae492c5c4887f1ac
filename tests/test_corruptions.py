"""Corruptions: closed forms, known noise, and worse at every step on a photograph and on digits."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm
from sklearn.datasets import load_digits, load_sample_image

from bnn_jax import corruptions
from bnn_jax.corruptions import CORRUPTIONS, LEVELS
from bnn_jax.types import UserError

PHOTOS = np.stack([load_sample_image(n)[100:164, 200:280] for n in ("china.jpg", "flower.jpg")])
PHOTOS = (PHOTOS / 255).astype(np.float32)  # (2, 64, 80, 3)
DIGITS = np.kron(load_digits().images[:6] / 16, np.ones((4, 4)))[..., None].astype(np.float32)  # 32 x 32
SETS = {"photos": PHOTOS, "digits": DIGITS}
ALL = pytest.mark.parametrize("name", CORRUPTIONS)


def test_the_names():
    assert CORRUPTIONS == ("gaussian_noise", "gaussian_blur", "contrast", "brightness", "jpeg")
    assert all(len(levels) == 5 for levels in LEVELS.values())


@ALL
@pytest.mark.parametrize("images", SETS.values(), ids=SETS)
def test_every_step_is_worse_and_results_are_pixels(name, images):
    changes = []
    for severity in range(1, 6):
        worse = corruptions.apply(name, images, severity)
        assert (worse.shape, worse.dtype) == (images.shape, np.float32)
        assert 0 <= worse.min() < worse.max() <= 1
        changes.append(np.mean((worse - images) ** 2))
    assert changes[0] > 0
    assert (np.diff(changes) > 0).all()


@ALL
def test_an_image_does_not_depend_on_the_others(name):
    together = corruptions.apply(name, PHOTOS, 3)
    other = corruptions.apply(name, np.stack([PHOTOS[0], 1 - PHOTOS[1]]), 3)
    alone = corruptions.apply(name, PHOTOS[:1], 3)
    np.testing.assert_array_equal(together[0], other[0])
    np.testing.assert_array_equal(together[:1], alone)
    same = corruptions.apply(name, PHOTOS[::-1], 3)[::-1]
    assert np.array_equal(together, same) == (name != "gaussian_noise")  # noise belongs to the place


@ALL
def test_results_repeat_and_the_input_is_left_alone(name):
    images = PHOTOS.copy()
    first = corruptions.apply(name, images, 5, seed=1)
    np.testing.assert_array_equal(images, PHOTOS)
    np.testing.assert_array_equal(corruptions.apply(name, images, 5, seed=1), first)
    changed = not np.array_equal(corruptions.apply(name, images, 5, seed=2), first)
    assert changed == (name == "gaussian_noise")


@pytest.mark.parametrize("severity", range(1, 6))
def test_noise_is_standard_normal_times_c(severity):
    """On mid-grey, at 5 standard deviations from the clip even for c = 0.1. Within 5 sigma each: mean,
    standard deviation, correlation of images and of neighbours, and the share beyond one c."""
    c = LEVELS["gaussian_noise"][severity - 1]
    worse = corruptions.apply("gaussian_noise", np.full((2, 100, 100, 1), 0.5, np.float32), severity)
    e = (worse.astype(np.float64) - 0.5) / c
    n = e.size
    assert abs(e.mean()) < 5 / np.sqrt(n)
    assert abs(e.std() - 1) < 5 / np.sqrt(2 * n)
    assert abs(np.mean(e[0] * e[1])) < 5 / np.sqrt(n / 2)
    assert abs(np.mean(e[:, :, 1:] * e[:, :, :-1])) < 5 / np.sqrt(n)
    outside = 2 * norm.sf(1)
    assert abs(np.mean(np.abs(e) > 1) - outside) < 5 * np.sqrt(outside * (1 - outside) / n)


@pytest.mark.parametrize("severity", range(1, 6))
def test_contrast_in_closed_form(severity):
    """The mean of each channel stays, its standard deviation is multiplied by c."""
    c = LEVELS["contrast"][severity - 1]
    worse = corruptions.apply("contrast", PHOTOS, severity)
    worse, photos = worse.astype(np.float64), PHOTOS.astype(np.float64)
    np.testing.assert_allclose(worse.mean((1, 2)), photos.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(worse.std((1, 2)), c * photos.std((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_in_closed_form(severity):
    """Grey: plus c, clipped. Colour: the standard library's HSV with V + c, black becoming grey."""
    c = LEVELS["brightness"][severity - 1]
    np.testing.assert_allclose(
        corruptions.apply("brightness", DIGITS, severity), np.minimum(DIGITS + c, 1), atol=1e-6
    )
    pixels = np.concatenate([np.eye(4, 3), PHOTOS[0].reshape(-1, 3)[::97]]).astype(np.float32)
    want = []
    for pixel in pixels:
        h, s, v = colorsys.rgb_to_hsv(*pixel.tolist())
        want.append(colorsys.hsv_to_rgb(h, s, min(v + c, 1)))
    got = corruptions.apply("brightness", pixels.reshape(1, 1, -1, 3), severity)
    np.testing.assert_allclose(got[0, 0], want, atol=1e-6)


def test_blur_spreads_a_point_as_far_as_the_side_says():
    """A blurred point has variance s^2, s = c side / 32 by the shorter side, and keeps its sum; a flat image
    and the channels of a colour stay."""
    point = np.zeros((1, 96, 128, 3), np.float32)
    point[0, 48, 64, 1] = 1
    spread = corruptions.apply("gaussian_blur", point, 5)[0].astype(np.float64)
    assert spread[..., 1].sum() == pytest.approx(1, abs=1e-5)
    offsets = np.arange(96) - 48
    assert spread[..., 1].sum(1) @ offsets**2 == pytest.approx(3.0**2, rel=2e-3)  # cut off at 4 s
    assert spread[..., [0, 2]].max() == 0
    flat = np.full((1, 16, 16, 1), 0.7, np.float32)
    np.testing.assert_allclose(corruptions.apply("gaussian_blur", flat, 5), flat, rtol=1e-6)


def test_jpeg_is_pillow():
    file = io.BytesIO()
    Image.fromarray(np.round(PHOTOS[1] * 255).astype(np.uint8)).save(file, "JPEG", quality=58)
    want = np.asarray(Image.open(file), np.float32) / 255
    np.testing.assert_array_equal(corruptions.apply("jpeg", PHOTOS, 3)[1], want)


@pytest.mark.parametrize(
    ("name", "images", "severity", "message"),
    [
        ("fog", PHOTOS, 1, "unknown corruption 'fog': choose from gaussian_noise"),
        ("jpeg", PHOTOS, 0, "severity must be a whole number from 1 to 5, not 0"),
        ("jpeg", PHOTOS, 6, "not 6"),
        ("jpeg", PHOTOS, 1.5, "not 1.5"),
        ("jpeg", PHOTOS[0], 1, "shape"),
        ("jpeg", PHOTOS[..., :2], 1, "shape"),
        ("jpeg", PHOTOS - 0.5, 1, "raw pixels"),
        ("jpeg", PHOTOS * np.nan, 1, "raw pixels"),
        ("jpeg", (PHOTOS * 255).astype(np.uint8), 1, "divide 8-bit images by 255"),
    ],
)
def test_mistakes_are_told(name, images, severity, message):
    with pytest.raises(UserError, match=message):
        corruptions.apply(name, images, severity)
