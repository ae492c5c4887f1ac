"""Distances in weight space against closed forms, exact shifts and loops over all pairs."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from bnn_jax import diagnostics, weight_space
from bnn_jax.types import UserError

MEASURES = {
    "wasserstein": weight_space.wasserstein,
    "sliced": lambda x, y: weight_space.sliced_wasserstein(np.random.default_rng(0), x, y),
    "mmd2": weight_space.mmd2,
    "median": weight_space.median_distance,
}


@pytest.fixture(params=[False, True], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """The columns at once, and one or two at a time."""
    if request.param:
        monkeypatch.setattr(weight_space, "BLOCK_VALUES", 70)


def test_weight_moments_and_std_ratio_by_hand():
    mean, std = weight_space.weight_moments(np.array([[1.0, 0.0], [3.0, 0.0]], np.float32))
    np.testing.assert_array_equal(mean, [2.0, 0.0])
    np.testing.assert_array_equal(std, [np.sqrt(2.0), 0.0])
    np.testing.assert_array_equal(weight_space.weight_moments([[5.0, 6.0]])[1], 0)
    ratio = weight_space.std_ratio([[0.0, 0.0], [1.0, 1.0]], [[1.0, 2.0], [5.0, 2.0]])
    np.testing.assert_array_equal(ratio, [0.25, np.nan])
    with pytest.raises(UserError, match="D, P"):
        weight_space.weight_moments(np.ones(3))
    with pytest.raises(UserError, match="3 weights"):
        weight_space.std_ratio(np.ones((2, 3)), np.ones((2, 4)))


def test_wasserstein_of_a_shift_and_a_scale_is_exact(blocks):
    x = np.random.default_rng(0).standard_normal((30, 5))
    shift = np.array([0.0, 1.0, -2.0, 0.5, 3.0])
    np.testing.assert_allclose(weight_space.wasserstein(x + shift, x), np.abs(shift), atol=1e-12)
    rms = np.sqrt(np.mean(x**2, axis=0))
    np.testing.assert_allclose(weight_space.wasserstein(3 * x, x), 2 * rms)
    np.testing.assert_array_equal(weight_space.wasserstein(x[::-1], x), 0)


def test_wasserstein_of_gaussians():
    """W2^2 = (m - m')^2 + (s - s')^2, here at the normal quantiles of 20,000 and 30,000 draws."""
    quantiles = lambda n: norm.ppf((np.arange(n) + 0.5) / n)[:, None]
    draws = np.array([1.0, 0.0, -2.0]) + np.array([1.0, 0.5, 3.0]) * quantiles(20_000)
    found = weight_space.wasserstein(draws, np.repeat(quantiles(30_000), 3, axis=1))
    np.testing.assert_allclose(found, [1.0, 0.5, np.sqrt(8)], rtol=2e-3)


@pytest.mark.parametrize(("few", "many"), [(1, 4), (2, 3), (4, 6), (3, 6), (7, 5)])
def test_wasserstein_of_different_numbers_of_draws(few, many, blocks):
    """Each draw as often as makes the numbers equal."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((few, 4)), rng.standard_normal((many, 4))
    common = math.lcm(few, many)
    equal = np.sort(np.repeat(x, common // few, 0), 0) - np.sort(np.repeat(y, common // many, 0), 0)
    np.testing.assert_allclose(weight_space.wasserstein(x, y), np.sqrt(np.mean(equal**2, axis=0)))


def test_wasserstein_is_the_least_over_all_matchings():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 5, 1))
    costs = [np.mean((x[list(order)] - y) ** 2) for order in itertools.permutations(range(5))]
    assert weight_space.wasserstein(x, y)[0] == pytest.approx(np.sqrt(min(costs)))


def test_sliced_wasserstein_of_a_shift(blocks):
    """Along theta the shift is theta . s, whose mean square is |s|^2 / P with relative error sqrt(2 / L)."""
    rng = np.random.default_rng(3)
    x, shift = rng.standard_normal((12, 7)), rng.standard_normal(7)
    found = weight_space.sliced_wasserstein(np.random.default_rng(4), x + shift, x, 50)
    directions = np.random.default_rng(4).standard_normal((7, 50))
    directions /= np.linalg.norm(directions, axis=0)
    assert found == pytest.approx(np.sqrt(np.mean((shift @ directions) ** 2)))
    many = weight_space.sliced_wasserstein(rng, x + shift, x, 5000)
    assert many**2 == pytest.approx(np.mean(shift**2), rel=5 * np.sqrt(2 / 5000))


def test_sliced_wasserstein_by_hand(blocks):
    """Direction by direction, for different numbers of draws; in one dimension it is W2 itself."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((9, 4)) + 1
    directions = np.random.default_rng(6).standard_normal((4, 20))
    lines = [
        weight_space.wasserstein(x @ d[:, None], y @ d[:, None])[0] / np.linalg.norm(d) for d in directions.T
    ]
    found = weight_space.sliced_wasserstein(np.random.default_rng(6), x, y, 20)
    assert found == pytest.approx(np.sqrt(np.mean(np.square(lines))))
    one = weight_space.sliced_wasserstein(rng, x[:, :1], y[:, :1])
    assert one == pytest.approx(weight_space.wasserstein(x[:, :1], y[:, :1])[0])


def test_mmd_by_hand(blocks):
    """A loop over pairs; the draws lie far from 0, which must not cost digits."""
    rng = np.random.default_rng(7)
    x, y = 1e6 + rng.standard_normal((5, 12)), 1e6 + rng.standard_normal((4, 12)) + 1
    k = lambda a, b, h: np.exp(-np.sum((a - b) ** 2) / (2 * h**2))

    def by_hand(h):
        within = lambda z: np.mean([k(a, b, h) for a, b in itertools.permutations(z, 2)])
        return within(x) + within(y) - 2 * np.mean([k(a, b, h) for a in x for b in y])

    median = np.median([np.linalg.norm(a - b) for a, b in itertools.combinations([*x, *y], 2)])
    assert weight_space.median_distance(x, y) == pytest.approx(median)
    assert weight_space.mmd2(x, y) == pytest.approx(by_hand(median))
    assert weight_space.mmd2(x, y, bandwidth=2.0) == pytest.approx(by_hand(2.0))


def test_mmd_is_unbiased():
    """Under equality its mean is 0. Between N(0, 1) and N(m, 1) in P dimensions it is
    2 (h^2 / (h^2 + 2))^(P/2) (1 - exp(-|m|^2 / (2 (h^2 + 2))))."""
    rng, h, size = np.random.default_rng(8), 2.0, 3
    draws = rng.standard_normal((2000, 2, 10, size))
    for shift in (0.0, 0.8):
        found = np.array([weight_space.mmd2(x + shift, y, bandwidth=h) for x, y in draws])
        decay = 1 - np.exp(-size * shift**2 / (2 * (h**2 + 2)))
        exact = 2 * (h**2 / (h**2 + 2)) ** (size / 2) * decay
        assert abs(found.mean() - exact) < 5 * found.std() / np.sqrt(len(found))
    assert found.mean() > 5 * found.std() / np.sqrt(len(found))


def test_mmd_with_the_median_is_around_zero_and_sees_a_shift():
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((2, 500, 20, 30))
    null = np.array([weight_space.mmd2(a, b) for a, b in zip(x, y, strict=True)])
    assert abs(null.mean()) < 5 * null.std() / np.sqrt(len(null))
    assert null.min() < 0 < null.max()
    assert weight_space.mmd2(x[0] + 1, y[0]) > null.max()


@pytest.mark.parametrize("name", MEASURES)
def test_symmetric(name):
    rng = np.random.default_rng(10)
    x, y = rng.standard_normal((8, 5)), 2 * rng.standard_normal((11, 5))
    np.testing.assert_allclose(MEASURES[name](x, y), MEASURES[name](y, x))


@pytest.mark.parametrize("name", ["wasserstein", "sliced", "median"])
def test_units_are_those_of_the_weights(name):
    rng = np.random.default_rng(11)
    x, y = rng.standard_normal((2, 8, 5))
    np.testing.assert_allclose(MEASURES[name](10 * x, 10 * y), 10 * MEASURES[name](x, y))
    assert weight_space.mmd2(10 * x, 10 * y) == pytest.approx(weight_space.mmd2(x, y))


def test_by_layer(blocks):
    """A leaf twice as wide and shifted by one and two deviations; one whose reference partly stands still."""
    rng = np.random.default_rng(12)
    w = rng.standard_normal((40, 2, 2))
    w = (w - w.mean(axis=0)) / w.std(axis=0) * [[0.5, 0.5], [2.0, 2.0]]
    unit = w.std(axis=0, ddof=1)
    steps = np.array([[1.0, 1.0], [2.0, 2.0]]) * unit
    still = np.tile([3.0, 0.0], (40, 1)) + [0.0, 1.0] * rng.standard_normal((40, 1))
    reference = {"a": {"kernel": w}, "b": still, "c": np.ones(40)}
    draws = {"a": {"kernel": 2 * w + steps}, "b": still + 0.5, "c": np.ones(40) + 2}
    found = weight_space.by_layer(draws, reference)
    squares = steps**2 + w.std(axis=0) ** 2  # a shift, and W2 = std for twice the width
    assert found["a/kernel"] == pytest.approx(
        {
            "mean_difference": np.sqrt(2.5),
            "std_ratio": 2.0,
            "wasserstein": np.sqrt(squares.mean()),
            "wasserstein_in_std": np.sqrt((squares / unit**2).mean()),
        }
    )
    deviation = still[:, 1].std(ddof=1)
    assert found["b"] == pytest.approx(
        {
            "mean_difference": 0.5 / deviation,
            "std_ratio": 1.0,
            "wasserstein": 0.5,
            "wasserstein_in_std": 0.5 / deviation,
        }
    )
    assert found["c"] == {
        "mean_difference": None,
        "std_ratio": None,
        "wasserstein": 2.0,
        "wasserstein_in_std": None,
    }
    ratio = weight_space.std_ratio(draws["a"]["kernel"].reshape(40, -1), w.reshape(40, -1))
    assert found["a/kernel"]["std_ratio"] == pytest.approx(np.median(ratio))


def test_mixing():
    """Three weights mix, one is wider in a chain (R-hat), one hardly moves (ESS), one is constant."""
    rng = np.random.default_rng(13)
    w = rng.standard_normal((4, 200, 6))
    w[0, :, 3] *= 3
    for t in range(1, 200):
        w[:, t, 4] = 0.99 * w[:, t - 1, 4] + 0.1 * w[:, t, 4]
    w[..., 5] = 1
    assert diagnostics.ess_bulk(w[..., 3]) > 100
    found = weight_space.mixing({"a": w[..., :5], "b": w, "c": w[..., 5], "d": w[..., 0]})
    assert found == {"a": 0.6, "b": 0.6, "c": None, "d": 1.0}
    short = weight_space.mixing({"a": rng.standard_normal((2, 20, 300))})
    assert short["a"] < 0.2  # R-hat may be low, but 40 draws are hardly ever worth 100


def test_floor():
    """The mean over pairs of chains, in the structure of the measure."""
    rng = np.random.default_rng(14)
    chains = {"a": rng.standard_normal((3, 20, 2, 2)), "b": rng.standard_normal((3, 20))}
    pairs = [(0, 1), (0, 2), (1, 2)]
    pick = lambda c: {name: a[c] for name, a in chains.items()}
    each = [weight_space.by_layer(pick(p), pick(q)) for p, q in pairs]
    found = weight_space.floor(weight_space.by_layer, chains)
    assert found.keys() == {"a", "b"}
    for name, values in found.items():
        assert values == pytest.approx({m: np.mean([e[name][m] for e in each]) for m in values})
    flat = chains["a"].reshape(3, 20, 4)
    per_weight = weight_space.floor(weight_space.wasserstein, flat)
    expected = np.mean([weight_space.wasserstein(flat[p], flat[q]) for p, q in pairs], axis=0)
    np.testing.assert_allclose(per_weight, expected)
    chains["b"][2] = 1  # a chain that stands still is the reference of two pairs
    assert weight_space.floor(weight_space.by_layer, chains)["b"]["std_ratio"] is None


def test_mistakes_are_named():
    x, y = np.ones((4, 3)), np.ones((5, 3))
    for measure in MEASURES.values():
        with pytest.raises(UserError, match=r"\(D, P\) and \(D', P\), got \(4, 3\), \(5, 2\)"):
            measure(x, y[:, :2])
    with pytest.raises(UserError, match=r"\(D, P\)"):
        weight_space.wasserstein(x[0], y)
    with pytest.raises(UserError, match="1 direction"):
        weight_space.sliced_wasserstein(np.random.default_rng(0), x, y, 0)
    with pytest.raises(UserError, match="2 draws"):
        weight_space.mmd2(x[:1], y)
    with pytest.raises(UserError, match="do the draws vary"):
        weight_space.mmd2(x, y)
    with pytest.raises(UserError, match="positive bandwidth"):
        weight_space.mmd2(x, y, bandwidth=-1.0)
    with pytest.raises(UserError, match="different networks: a; b"):
        weight_space.by_layer({"a": x}, {"b": x})
    with pytest.raises(UserError, match="a: draws and reference"):
        weight_space.by_layer({"a": x}, {"a": y[:, :2]})
    with pytest.raises(UserError, match="2 chains"):
        weight_space.floor(weight_space.wasserstein, np.ones((1, 4, 3)))
    with pytest.raises(UserError, match="D >= 4"):
        weight_space.mixing({"a": np.ones((2, 3, 1))})
