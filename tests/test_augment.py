"""Augmentation against flips, turns and SciPy; its draws against their distributions; crops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits

from bnn_jax import augment
from bnn_jax.augment import Augmentation, Warp
from bnn_jax.likelihoods import categorical
from bnn_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

RNG = np.random.default_rng(0)
SQUARE = RNG.random((9, 9, 3), np.float32)
IMAGE = RNG.random((8, 10, 2), np.float32)  # unequal sides: rows and columns cannot be confused
DIGITS = (load_digits().images[:24, ..., None] / 16).astype(np.float32)
NUMBERS = np.arange(100, 124, dtype=np.int32)
ALL = Augmentation(20.0, 10.0, (0.8, 1.2), 0.1, (0.9, 1.1), (0.8, 1.2), True, True, 6)
KEY = jax.random.key(0)
AUGMENT = augment.batch(augment.build(ALL))  # compiled once for all tests


def assert_uniform(sample, low, high):
    """Inside the range; mean and variance within 5 standard deviations of a uniform sample's."""
    n, half = sample.size, (high - low) / 2
    assert low <= sample.min() <= sample.max() <= high
    assert abs(sample.mean() - (low + high) / 2) < 5 * half / np.sqrt(3 * n)
    assert abs(sample.var() - half**2 / 3) < 5 * half**2 * np.sqrt(4 / 45 / n)  # kurtosis 9/5


def assert_share(hits, p):
    """The share of hits is within 5 standard deviations of p."""
    assert abs(hits.mean() - p) < 5 * np.sqrt(p * (1 - p) / hits.size)


def ramp(height, width, rows, columns):
    """An image that is linear in its centred coordinates: bilinear resampling is exact on it."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return (0.5 + rows * (y - (height - 1) / 2) + columns * (x - (width - 1) / 2))[..., None]


def test_everything_off_is_the_identity():
    assert augment.is_off(Augmentation())
    assert not augment.is_off(ALL)
    assert augment.build(Augmentation())(KEY, IMAGE) is IMAGE
    np.testing.assert_array_equal(augment.warp(IMAGE, Warp()), IMAGE)


@pytest.mark.parametrize("turns", [1, 2, -1])
def test_right_angles_are_rot90(turns):
    """Positive angles turn clockwise, `np.rot90` counts the other way."""
    turned = augment.warp(SQUARE, Warp(rotation=-90.0 * turns))
    np.testing.assert_allclose(turned, np.rot90(SQUARE, turns), atol=1e-5)


def test_flips_reverse_an_axis_exactly():
    np.testing.assert_array_equal(augment.warp(IMAGE, Warp(flip=(True, False))), IMAGE[::-1])
    np.testing.assert_array_equal(augment.warp(IMAGE, Warp(flip=(False, True))), IMAGE[:, ::-1])


def test_whole_shifts_move_pixels_and_repeat_the_edge():
    shifted = augment.warp(IMAGE, Warp(shift=(2 / 8, -3 / 10)))
    rows, columns = np.clip(np.arange(8) + 2, 0, 7), np.clip(np.arange(10) - 3, 0, 9)
    np.testing.assert_allclose(shifted, IMAGE[rows][:, columns], atol=1e-5)


def test_zoom_and_shear_of_a_ramp():
    """Inside, output(p) = a . M p: zoom scales each slope, shear leaks the row's slope into the column's."""
    image = ramp(8, 10, 0.02, 0.03)
    zoomed = augment.warp(image, Warp(zoom=(0.5, 0.8)))
    np.testing.assert_allclose(zoomed, ramp(8, 10, 0.02 * 0.5, 0.03 * 0.8), atol=1e-6)
    out = augment.warp(image, Warp(zoom=(2.0, 1.0)))  # rows beyond the edge repeat the edge
    np.testing.assert_allclose(out[2:6], ramp(8, 10, 0.04, 0.03)[2:6], atol=1e-6)
    np.testing.assert_allclose(out[jnp.array([0, 1, 6, 7])], image[[0, 0, 7, 7]], atol=1e-6)
    s = np.deg2rad(5.0)
    sheared = augment.warp(image, Warp(shear=5.0))
    want = ramp(8, 10, 0.02, 0.03 * np.cos(s) - 0.02 * np.sin(s))
    np.testing.assert_allclose(sheared[1:-1], want[1:-1], atol=1e-6)


def test_zoom_keeps_symmetry():
    symmetric = SQUARE + SQUARE[::-1] + SQUARE[:, ::-1] + SQUARE[::-1, ::-1]
    zoomed = augment.warp(symmetric, Warp(zoom=(0.7, 1.3)))
    np.testing.assert_allclose(zoomed, zoomed[::-1], atol=1e-5)
    np.testing.assert_allclose(zoomed, zoomed[:, ::-1], atol=1e-5)


def test_the_composed_map_is_that_of_keras():
    """Its matrices, multiplied in its order, given to SciPy; the flip comes last, on the output."""
    by = Warp(25.0, 10.0, (0.8, 1.3), (0.1, -0.2), (True, False))
    r, s = np.deg2rad(by.rotation), np.deg2rad(by.shear)
    rotation = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    shift = np.array([[1, 0, by.shift[0] * 8], [0, 1, by.shift[1] * 10], [0, 0, 1]])
    shear = np.array([[1, -np.sin(s), 0], [0, np.cos(s), 0], [0, 0, 1]])
    matrix = rotation @ shift @ shear @ np.diag([*by.zoom, 1])
    centre = np.array([3.5, 4.5])
    offset = centre + matrix[:2, 2] - matrix[:2, :2] @ centre
    for channel in range(2):
        want = affine_transform(IMAGE[..., channel], matrix[:2, :2], offset, order=1, mode="nearest")
        np.testing.assert_allclose(augment.warp(IMAGE, by)[..., channel], want[::-1], atol=1e-5)


def test_draws_have_their_distributions():
    n = 5000
    draws = jax.jit(jax.vmap(lambda key: augment.draw_warp(key, ALL)))(jax.random.split(KEY, n))
    draws = jax.tree.map(np.asarray, draws)
    assert_uniform(draws.rotation, -20, 20)
    assert_uniform(draws.shear, -10, 10)
    for axis in range(2):
        assert_uniform(draws.zoom[:, axis], 0.8, 1.2)
        assert_uniform(draws.shift[:, axis], -0.1, 0.1)
        assert_share(draws.flip[:, axis], 0.5)
    together = [draws.rotation, draws.shear, *draws.zoom.T, *draws.shift.T, *draws.flip.T]
    correlations = np.corrcoef(together)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(n)


def test_only_what_is_on_varies():
    off = augment.draw_warp(KEY, Augmentation())
    for got, want in zip(off, Warp(), strict=True):
        np.testing.assert_array_equal(got, np.asarray(want))
    one, both = Augmentation(rotation=20.0), Augmentation(rotation=20.0, shift=0.1)
    assert augment.draw_warp(KEY, one).rotation == augment.draw_warp(KEY, both).rotation


def test_brightness_and_contrast():
    """Brightness multiplies and clips; contrast keeps each channel's mean; factors are uniform."""
    n = 4000
    numbers = np.arange(n)
    image = np.broadcast_to(np.array([[[0.2], [0.4]], [[0.6], [0.95]]], np.float32), (n, 2, 2, 1))
    bright = augment.batch(augment.build(Augmentation(brightness=(0.9, 1.1))))(KEY, image, numbers)
    factors = np.asarray(bright[:, 0, 0, 0] / 0.2)
    assert_uniform(factors, 0.9 - 1e-6, 1.1 + 1e-6)
    np.testing.assert_allclose(bright, np.minimum(factors[:, None, None, None] * image, 1), rtol=1e-5)
    assert (bright[:, 1, 1] == 1).any()
    contrast = augment.batch(augment.build(Augmentation(contrast=(0.5, 1.0))))(KEY, image, numbers)
    np.testing.assert_allclose(contrast.mean((1, 2, 3)), 0.5375, rtol=1e-5)
    assert_uniform(np.asarray((contrast[:, 1, 0, 0] - contrast[:, 0, 0, 0]) / 0.4), 0.5 - 1e-5, 1 + 1e-5)


def test_random_crops_are_uniform_and_inside():
    n = 6000
    image = np.arange(6 * 5, dtype=np.float32).reshape(1, 6, 5, 1)  # a pixel's value is its place
    crops = augment.batch(augment.build(Augmentation(crop=3)))(
        KEY, np.broadcast_to(image, (n, 6, 5, 1)), np.arange(n)
    )
    row, column = np.divmod(np.asarray(crops[:, 0, 0, 0]).astype(int), 5)
    inside = image[0, row[:, None, None] + np.arange(3)[:, None], column[:, None, None] + np.arange(3)]
    np.testing.assert_array_equal(crops, inside)  # every pixel of it, bit by bit
    for r in range(4):
        for c in range(3):
            assert_share((row == r) & (column == c), 1 / 12)
    assert (row.max(), column.max()) == (3, 2)


def test_a_crop_as_large_as_the_image_is_the_image():
    whole = augment.build(Augmentation(crop=9))
    np.testing.assert_array_equal(whole(KEY, SQUARE), SQUARE)


def test_results_stay_pixels():
    strong = Augmentation(180.0, 40.0, (0.3, 3.0), 0.5, (0.5, 3.0), (0.5, 3.0), True, True)
    changed = augment.batch(augment.build(strong))(KEY, DIGITS, NUMBERS)
    assert changed.shape == DIGITS.shape
    assert changed.dtype == jnp.float32
    assert 0 <= changed.min() < changed.max() <= 1


def test_an_example_keeps_its_augmentation_wherever_it_stands():
    order = RNG.permutation(len(DIGITS))
    all_at_once = AUGMENT(KEY, DIGITS, NUMBERS)
    np.testing.assert_array_equal(AUGMENT(KEY, DIGITS[order], NUMBERS[order]), all_at_once[order])
    alone = jax.jit(augment.build(ALL))(jax.random.fold_in(KEY, NUMBERS[5]), DIGITS[5])
    np.testing.assert_allclose(alone, all_at_once[5], atol=1e-6)  # another program: may round differently


def test_examples_and_steps_differ():
    same = np.broadcast_to(DIGITS[:1], DIGITS.shape)
    this, next_ = AUGMENT(KEY, same, NUMBERS), AUGMENT(jax.random.fold_in(KEY, 1), same, NUMBERS)
    assert len(np.unique(np.concatenate([this, next_]).reshape(48, -1), axis=0)) == 48


def test_devices_do_not_matter():
    """Split over 8 devices: the same pixels, without any communication."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    args = (KEY, DIGITS, NUMBERS)
    sharded = jax.jit(AUGMENT, in_shardings=(everywhere, split, split), out_shardings=split)
    result = sharded(*args)
    assert len(result.sharding.device_set) == 8
    np.testing.assert_allclose(result, AUGMENT(*args), atol=1e-6)
    text = sharded.lower(*args).compile().as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        augment.batch(augment.build(ALL))(jax.random.key(1), DIGITS, NUMBERS)


def test_centre_crop():
    np.testing.assert_array_equal(augment.centre_crop(DIGITS, 4), DIGITS[:, 2:6, 2:6])
    np.testing.assert_array_equal(augment.centre_crop(IMAGE, 3), IMAGE[2:5, 3:6])
    np.testing.assert_array_equal(augment.centre_crop(DIGITS, 8), DIGITS)


def test_sliding_crops_reach_every_edge():
    """8 rows in steps of 2: 0, 2, 4; 10 columns: 0, 2, 4, 6. In steps of 3 the last step is shorter."""
    images = np.stack([IMAGE, 1 - IMAGE])
    crops = augment.sliding_crops(images, 4, 2)
    assert crops.shape == (12, 2, 4, 4, 2)
    np.testing.assert_array_equal(crops[5], images[:, 2:6, 2:6])
    np.testing.assert_array_equal(crops[-1], images[:, 4:, 6:])
    uneven = augment.sliding_crops(images, 4, 3)  # rows 0, 3, 4; columns 0, 3, 6
    assert len(uneven) == 9
    np.testing.assert_array_equal(uneven[3], images[:, 3:7, :4])
    np.testing.assert_array_equal(uneven[-1], crops[-1])
    np.testing.assert_array_equal(augment.sliding_crops(images[:, :, :8], 8, 5), images[None, :, :, :8])


def test_over_crops_is_the_mean_over_crops():
    """Of probabilities, not of outputs; also of pytrees, also compiled."""
    likelihood, w = categorical.build(), RNG.standard_normal((16, 3)).astype(np.float32)
    f = lambda x: (likelihood.mean(5 * x.reshape(len(x), -1) @ w), x.sum((1, 2, 3)))
    probs, total = jax.jit(augment.over_crops(f, 4, 3))(DIGITS)
    each = [f(crop) for crop in augment.sliding_crops(DIGITS, 4, 3)]
    np.testing.assert_allclose(probs, np.mean([p for p, _ in each], 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(total, np.mean([t for _, t in each], 0), rtol=1e-5)
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)


def test_over_one_crop_is_the_function_itself():
    f = lambda x: x.mean((1, 2, 3))
    np.testing.assert_array_equal(augment.over_crops(f, 8, 1)(DIGITS), f(jnp.asarray(DIGITS)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": -1.0}, r"rotation must lie in 0\.\.180 degrees"),
        ({"rotation": float("nan")}, "rotation"),
        ({"shear": 90.0}, "shear"),
        ({"shift": 1.5}, "of the side"),
        ({"zoom": (0.0, 1.0)}, "zoom must be two positive factors"),
        ({"zoom": (1.2, 0.8)}, "low <= high"),
        ({"brightness": (-0.1, 1.0)}, "brightness"),
        ({"contrast": (0.5, float("inf"))}, "contrast"),
        ({"crop": 0}, "crop must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        augment.build(Augmentation(**options))


def test_images_that_do_not_fit_are_refused():
    f = augment.build(Augmentation(crop=9))
    with pytest.raises(UserError, match="9 pixels does not fit into images of 8 x 10"):
        f(KEY, IMAGE)
    with pytest.raises(UserError, match=r"\(H, W, C\)"):
        f(KEY, IMAGE[..., 0])
    with pytest.raises(UserError, match="floats"):
        f(KEY, np.zeros((9, 9, 1), np.uint8))
    for crops in (augment.centre_crop, lambda x, size: augment.over_crops(jnp.sum, size, 1)(x)):
        with pytest.raises(UserError, match="does not fit"):
            crops(DIGITS, 9)
    with pytest.raises(UserError, match="stride"):
        augment.sliding_crops(DIGITS, 4, 0)
