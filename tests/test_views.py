"""Views: known colours, the standard library's HSV, single waves, Parseval, and what must change nothing."""

import colorsys

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from bnn_jax import views
from bnn_jax.types import UserError
from bnn_jax.views import VIEWS

PHOTOS = np.stack([load_sample_image(n)[100:164, 200:280] for n in ("china.jpg", "flower.jpg")])
PHOTOS = (PHOTOS / 255).astype(np.float32)  # (2, 64, 80, 3)
NOISE = np.random.default_rng(0).random((5, 12, 9, 3), np.float32)
ALL = pytest.mark.parametrize("name", VIEWS)
ROOT = np.sqrt(3) / 4


def pixel(*colour):
    """The hsv view of one colour."""
    return views.apply("hsv", np.array(colour, np.float32).reshape(1, 1, 1, 3)).ravel()


def spectrum(image):
    """The magnitudes behind the fourier view of one image (H, W), repeated in three channels."""
    image = np.repeat(image[None, ..., None], 3, axis=-1).astype(np.float32)
    scaled = views.apply("fourier", image)[0].astype(np.float64)
    np.testing.assert_array_equal(scaled[..., 0], scaled[..., 2])
    return np.expm1(scaled[..., 0] * np.log1p(image[0, ..., 0].size))


def test_rgb_is_the_identity():
    assert tuple(VIEWS) == ("rgb", "hsv", "fourier")
    assert views.apply("rgb", PHOTOS) is PHOTOS


@ALL
@pytest.mark.parametrize("images", [PHOTOS, NOISE, PHOTOS * 0, PHOTOS * 0 + 1], ids=str)
def test_views_are_pixels(name, images):
    view = views.apply(name, images)
    assert (view.shape, view.dtype) == (images.shape, np.float32)
    assert 0 <= view.min() <= view.max() <= 1


@ALL
def test_an_image_does_not_depend_on_the_others(name, monkeypatch):
    whole = views.apply(name, NOISE)
    for i in range(len(NOISE)):
        np.testing.assert_allclose(views.apply(name, NOISE[i : i + 1])[0], whole[i], atol=1e-6)
    monkeypatch.setattr(views, "_BATCH", 2)  # the last batch is smaller
    np.testing.assert_allclose(views.apply(name, NOISE), whole, atol=1e-6)
    assert views.apply(name, NOISE[:0]).shape == (0, 12, 9, 3)


@pytest.mark.parametrize(
    ("colour", "want"),
    [
        ((1, 0, 0), (1, 0.5, 1)),
        ((1, 1, 0), (0.75, 0.5 + ROOT, 1)),
        ((0, 1, 0), (0.25, 0.5 + ROOT, 1)),
        ((0, 1, 1), (0, 0.5, 1)),
        ((0, 0, 1), (0.25, 0.5 - ROOT, 1)),
        ((1, 0, 1), (0.75, 0.5 - ROOT, 1)),
        ((0.5, 0.25, 0.25), (0.75, 0.5, 0.5)),  # red, half saturated, half as bright
    ],
)
def test_known_colours(colour, want):
    np.testing.assert_allclose(pixel(*colour), want, atol=1e-6)


@pytest.mark.parametrize("v", [0, 0.3, 1])
def test_grey_has_no_saturation(v):
    np.testing.assert_array_equal(pixel(v, v, v), np.array([0.5, 0.5, v], np.float32))


def test_hue_saturation_and_value_are_recovered():
    p, q, v = np.moveaxis(views.apply("hsv", PHOTOS).astype(np.float64), -1, 0)
    p, q = 2 * p - 1, 2 * q - 1
    colours = PHOTOS.reshape(-1, 3)[::97].tolist()
    h, s, want_v = np.transpose([colorsys.rgb_to_hsv(*c) for c in colours])
    at = lambda a: a.ravel()[::97]
    np.testing.assert_allclose(at(np.hypot(p, q)), s, atol=1e-6)
    np.testing.assert_allclose(at(v), want_v, atol=1e-6)
    turn = at(np.arctan2(q, p)) / (2 * np.pi) - h
    assert np.abs((turn - np.round(turn)) * s).max() < 1e-6


def test_colour_has_no_jump_at_red_and_ignores_the_strength_of_light():
    violet, orange = pixel(0.8, 0.4, 0.401), pixel(0.8, 0.401, 0.4)  # either side of red
    assert np.abs(violet - orange).max() < 0.002
    np.testing.assert_allclose(pixel(0.4, 0.2, 0.3)[:2], pixel(0.8, 0.4, 0.6)[:2], atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 12), (9, 7)])
def test_a_wave_has_two_peaks(shape):
    """1/2 + 1/4 cos: H W / 2 at frequency 0, H W / 8 at plus and minus the wave's, nothing elsewhere."""
    (height, width), (k, l) = shape, (2, 3)
    y, x = np.indices(shape)
    found = spectrum(0.5 + 0.25 * np.cos(2 * np.pi * (k * y / height + l * x / width)))
    want = np.zeros(shape)
    i, j = height // 2, width // 2
    want[i, j] = height * width / 2
    want[i + k, j + l] = want[i - k, j - l] = height * width / 8
    np.testing.assert_allclose(found, want, atol=1e-3)


def test_white_reaches_one_and_parseval_holds():
    assert views.apply("fourier", np.ones((1, 6, 5, 3), np.float32))[0, 3, 2].tolist() == [1, 1, 1]
    image = NOISE[0, ..., 0].astype(np.float64)
    assert np.sum(spectrum(image) ** 2) == pytest.approx(image.size * np.sum(image**2), rel=1e-4)


def test_shifts_and_half_turns_leave_the_spectrum():
    want = views.apply("fourier", PHOTOS)
    for same in (np.roll(PHOTOS, (5, -11), axis=(1, 2)), PHOTOS[:, ::-1, ::-1]):
        np.testing.assert_allclose(views.apply("fourier", np.ascontiguousarray(same)), want, atol=1e-3)
    assert np.abs(views.apply("fourier", PHOTOS[:, ::-1]) - want).max() > 0.1  # a mirror image is another


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        ("lab", PHOTOS, "unknown view 'lab': choose from rgb, hsv, fourier"),
        ("hsv", PHOTOS[0], "shape"),
        ("fourier", PHOTOS[..., :1], "need RGB"),
        ("rgb", PHOTOS - 0.5, "raw pixels"),
        ("hsv", PHOTOS * 2, "raw pixels"),
        ("fourier", PHOTOS * np.nan, "raw pixels"),
        ("rgb", (PHOTOS * 255).astype(np.uint8), "divide 8-bit images by 255"),
    ],
)
def test_mistakes_are_told(name, images, message):
    with pytest.raises(UserError, match=message):
        views.apply(name, images)
