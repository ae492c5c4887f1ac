"""The generated data sets: patterns, noise, parts, and that a line cannot tell their classes apart."""

from pathlib import Path

import numpy as np
import pytest

from bnn_jax import classic, data
from bnn_jax.data import gratings, signals
from bnn_jax.types import UserError

TOYS = {"signals": signals, "gratings": gratings}
SHAPES = {"signals": (32, 1), "gratings": (12, 12, 1)}
PARTS = {"train": 1200, "val": 300, "test": 600}


def flat(x):
    return np.reshape(x, (len(x), -1))


def patterns(toy, num_cycles=40, num_phases=32):
    """The patterns of every class at every point of a grid, each (n, pixels)."""
    grid = np.meshgrid(np.linspace(*toy.CYCLES, num_cycles), np.arange(num_phases) / num_phases)
    cycles, phase = (a.ravel() for a in grid)
    return [flat(toy.pattern(np.full(len(phase), k), cycles, phase)) for k in range(len(toy.CLASSES))]


@pytest.mark.parametrize("name", TOYS)
def test_parts_and_classes(name):
    found = data.load(data.Options(dataset=name))
    assert (found.name, found.class_names) == (name, TOYS[name].CLASSES)
    for part, number in PARTS.items():
        x, y = getattr(found, f"x_{part}"), getattr(found, f"y_{part}")
        assert (x.shape, x.dtype, y.dtype) == ((number, *SHAPES[name]), np.float32, np.int32)
        assert set(np.bincount(y)) == {number // found.num_classes}
    assert found.x_train.mean() == pytest.approx(0, abs=1e-5)
    assert found.x_train.std() == pytest.approx(1, abs=1e-5)
    everything = np.concatenate([found.x_train, found.x_val, found.x_test])
    assert len(np.unique(flat(everything), axis=0)) == 2100
    assert len({row for ids in found.ids.values() for row in ids}) == 2100


@pytest.mark.parametrize("name", TOYS)
def test_the_seed_is_everything(name):
    first, again, other = (TOYS[name].load(seed=seed) for seed in (1, 1, 2))
    assert data.fingerprint(first) == data.fingerprint(again)
    assert not np.isin(first.x_test, other.x_test).any(axis=tuple(range(1, first.x_test.ndim))).all()


@pytest.mark.parametrize("name", TOYS)
def test_no_path(name):
    with pytest.raises(UserError, match=f"the data set {name} is generated and takes no --path"):
        TOYS[name].load(Path("anywhere"))


@pytest.mark.parametrize(("kind", "mean", "rms"), [(0, 0, 1), (1, 0, 1), (2, 0, 1)])
def test_waves_have_mean_zero_and_power_one(kind, mean, rms):
    """Over whole cycles in the limit of many phases."""
    phase = (np.arange(1000) + 0.5) / 1000
    wave = signals.pattern(np.full(1000, kind), np.full(1000, 3.3), phase)
    np.testing.assert_allclose(wave.mean(0), mean, atol=2e-3)
    np.testing.assert_allclose(np.sqrt((wave**2).mean(0)), rms, atol=2e-3)


def test_waves_exactly():
    one = lambda kind, cycles, phase: signals.pattern(
        np.array([kind]), np.array([cycles]), np.array([phase])
    )[0]
    i = np.arange(32)
    np.testing.assert_allclose(one(0, 2.0, 0.25), np.sqrt(2) * np.cos(4 * np.pi * i / 32), atol=1e-12)
    np.testing.assert_array_equal(one(1, 4.0, 0.0), np.tile(np.repeat([1, -1], 4), 4))
    np.testing.assert_allclose(one(2, 2.0, 0.0), np.sqrt(3) * np.tile(np.arange(16) / 8 - 1, 2), atol=1e-12)


def test_orientations_exactly():
    """Vertical and horizontal stripes are each other's transpose, rising and falling ones are constant
    along a diagonal, and `cycles` of them lie in twelve pixels across."""
    n = len(gratings.CLASSES)
    vertical, rising, horizontal, falling = gratings.pattern(np.arange(n), np.full(n, 2.0), np.full(n, 0.1))
    assert (vertical == vertical[0]).all()
    np.testing.assert_allclose(horizontal, vertical.T, atol=1e-12)
    np.testing.assert_allclose(vertical[0, :6], vertical[0, 6:], atol=1e-12)
    np.testing.assert_allclose(falling[1:, 1:], falling[:-1, :-1], atol=1e-12)
    np.testing.assert_allclose(rising[1:, :-1], rising[:-1, 1:], atol=1e-12)
    for image in (rising, falling):
        assert np.ptp(image) == pytest.approx(2 * gratings.CONTRAST, rel=0.05)
        assert np.ptp(image[0]) > gratings.CONTRAST


def test_gratings_are_pixels():
    found = gratings.load()
    raw = np.concatenate([found.x_train, found.x_test]) * found.scaling.scale + found.scaling.shift
    assert raw.min() == pytest.approx(0, abs=1e-5)
    assert raw.max() == pytest.approx(1, abs=1e-5)
    assert np.mean((raw < 1e-5) | (raw > 1 - 1e-5)) < 0.015  # the share that is clipped
    np.testing.assert_allclose(data.to_images(found.x_train, found.scaling), raw[:1200, ..., 0], atol=1e-6)


@pytest.mark.parametrize("name", TOYS)
def test_noise(name):
    """What the best pattern of the right class leaves over is the noise, of the stated width."""
    toy, found = TOYS[name], TOYS[name].load()
    raw = flat(found.x_test * found.scaling.scale + found.scaling.shift)
    left = np.empty(len(raw))
    for k, templates in enumerate(patterns(toy)):
        own = raw[found.y_test == k]
        left[found.y_test == k] = ((own[:, None] - templates) ** 2).mean(2).min(1)
    assert np.sqrt(left.mean()) == pytest.approx(toy.NOISE, rel=0.08)


@pytest.mark.parametrize(("name", "low", "high"), [("signals", 0.93, 0.98), ("gratings", 0.96, 0.995)])
def test_best_possible_decision(name, low, high):
    """p(x | C) = mean over cycles and phases of N(x; pattern, NOISE^2): nearly always right, not always."""
    toy, found = TOYS[name], TOYS[name].load()
    raw = flat(found.x_test * found.scaling.scale + found.scaling.shift)
    evidence = [
        np.logaddexp.reduce((raw @ t.T - 0.5 * (t**2).sum(1)) / toy.NOISE**2, axis=1) for t in patterns(toy)
    ]
    assert low < np.mean(np.argmax(evidence, axis=0) == found.y_test) < high


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("method", ["logistic", "gaussian_shared", "least_squares"])
def test_a_line_is_no_better_than_a_guess(name, method):
    found = TOYS[name].load()
    fitted = classic.fit(method, flat(found.x_train), found.y_train)
    right = np.mean(fitted.decide(flat(found.x_test)) == found.y_test)
    assert right == pytest.approx(1 / found.num_classes, abs=0.06)  # 3 standard errors
