"""Distances by hand, against closed forms of Gaussians, and what every one of them must be."""

import numpy as np
import pytest
from scipy import stats

from bnn_jax import distances, metrics
from bnn_jax.types import UserError

P = np.array([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5], [1.0, 0.0]])
Q = np.array([[0.6, 0.4], [0.6, 0.4], [0.5, 0.5], [0.0, 1.0]])
RNG = np.random.default_rng(0)


def test_by_hand():
    assert distances.agreement(P, Q) == 0.5
    assert distances.total_variation(P, Q) == pytest.approx((0.1 + 0.2 + 0.0 + 1.0) / 4)
    kl = lambda p, q: stats.entropy(p, q)
    want = [(kl(p, q) + kl(q, p)) / 2 for p, q in zip(P[:3], Q[:3], strict=True)]
    assert distances.symmetric_kl(P[:3], Q[:3]) == pytest.approx(np.mean(want))
    assert 40 < distances.symmetric_kl(P[3:], Q[3:]) < 100  # cut at TINY, where it would be infinite
    want = np.mean(stats.entropy(P.T) - stats.entropy(Q.T))
    assert distances.entropy_gap(P, Q) == pytest.approx(want)
    labels = np.array([0, 1, 0, 1])
    want = metrics.ece(P, labels) - metrics.ece(Q, labels)
    assert distances.calibration_gap(P, Q, labels) == want != 0


@pytest.mark.parametrize("name", distances.CLASSIFICATION.distances)
def test_every_distance_knows_its_own_and_changes_sides(name):
    distance, labels = distances.CLASSIFICATION.distances[name], np.array([0, 1, 0, 1])
    assert distance(P, P, labels) == (1 if name == "agreement" else 0)
    sign = -1 if name in distances.SIGNED else 1
    assert distance(P, Q, labels) == pytest.approx(sign * distance(Q, P, labels))
    with pytest.raises(UserError, match="differ in shape"):
        distance(P, Q[:3], labels)
    with pytest.raises(UserError, match="logits"):
        distance(P - 1, Q, labels)


def test_w2_of_sorted_draws():
    """Of equal numbers of draws the root mean square of the sorted differences; a shift is itself."""
    p, q = RNG.normal(size=(64, 5, 2)), 3 * RNG.normal(size=(64, 5, 2))
    want = np.sqrt(np.mean((np.sort(p, 0) - np.sort(q, 0)) ** 2, 0))
    np.testing.assert_allclose(distances.w2(p, q), want)
    np.testing.assert_allclose(distances.w2(p, np.add(p[::-1], [1, -2])), np.broadcast_to([1.0, 2.0], (5, 2)))
    # A point mass is as far as the root mean square from it, draws repeated are the same distribution.
    np.testing.assert_allclose(distances.w2(p, np.zeros((1, 5, 2))), np.sqrt(np.mean(p**2, 0)))
    np.testing.assert_allclose(distances.w2(p, np.repeat(p, 4, 0)), 0)


def test_w2_of_gaussians():
    """sqrt((m - n)^2 + (s - t)^2), of samples of different numbers."""
    p = stats.norm.ppf((np.arange(999) + 0.5) / 999, 1.0, 2.0).reshape(-1, 1, 1)
    q = stats.norm.ppf((np.arange(501) + 0.5) / 501, 0.0, 0.5).reshape(-1, 1, 1)
    assert distances.w2(p, q)[0, 0] == pytest.approx(np.hypot(1.0, 1.5), rel=5e-3)
    with pytest.raises(UserError, match="draws need shapes"):
        distances.w2(p, np.zeros((3, 2, 1)))
    with pytest.raises(UserError, match="draws need shapes"):
        distances.w2(p, q[:0])


def gaussian(mean, std):
    """One draw at one point."""
    return np.full((1, 1), mean), np.full((1, 1), std**2)


@pytest.mark.parametrize(("m", "s"), [(0.0, 1.0), (0.5, 1.0), (0.3, 2.0), (2.0, 0.5)])
def test_densities_of_a_regression(m, s):
    """Total variation and KL of two normal densities, from their cells."""
    p, q = gaussian(0.0, 1.0), gaussian(m, s)
    cuts = distances.edges([p, q])
    y = np.array([0.7])
    a, b = (distances.features(*parts, y, cuts)[0] for parts in (p, q))
    grid = np.linspace(-30, 30, 200_001)
    f, g = stats.norm.pdf(grid), stats.norm.pdf(grid, m, s)
    measured = {name: d(a, b, y) for name, d in distances.REGRESSION.distances.items()}
    assert measured["total_variation"] == pytest.approx(
        np.trapezoid(abs(f - g), grid) / 2, rel=5e-3, abs=1e-9
    )
    kl = 0.5 * ((1 + m**2) / s**2 + s**2 + m**2) / 2 - 0.5
    assert measured["symmetric_kl"] == pytest.approx(kl, rel=1e-2, abs=1e-9)
    # abs: the density inside a cell is not even
    assert measured["entropy_gap"] == pytest.approx(-np.log(s), rel=1e-3, abs=1e-3)
    scores = {name: score(b, y) for name, score in distances.REGRESSION.scores.items()}
    assert scores["nll"] == pytest.approx(-stats.norm.logpdf(0.7, m, s))
    assert scores["rmse"] == pytest.approx(abs(m - 0.7))
    for level in (50, 90):
        low, high = stats.norm.interval(level / 100, m, s)
        assert scores[f"coverage_{level}"] == (low <= 0.7 <= high)


def test_features_are_averaged_over_draws():
    """Cells are probabilities; mean, density and distribution function at y are those of the mixture."""
    means, variances = RNG.normal(size=(2, 7, 4)), 0.2 + RNG.random((2, 7, 4))
    y = RNG.normal(size=4)
    cuts = distances.edges([(means, variances), (np.full((1, 4), 9.0), np.ones((1, 4)))])
    assert cuts.shape == (4, distances.CELLS + 1)
    assert (cuts[:, -1] == 14).all()
    assert (np.diff(cuts) > 0).all()
    found = distances.features(means, variances, y, cuts)
    cells = found[..., : -distances.BEYOND]
    assert cells.shape == (2, 7, 4, distances.CELLS)
    np.testing.assert_allclose(cells.sum(-1), 1)
    mean = found.mean((0, 1))
    parts = means.reshape(-1, 4), np.sqrt(variances).reshape(-1, 4)
    np.testing.assert_allclose(mean[:, -3], parts[0].mean(0))
    np.testing.assert_allclose(mean[:, -2], stats.norm.pdf(y, *parts).mean(0))
    np.testing.assert_allclose(mean[:, -1], stats.norm.cdf(y, *parts).mean(0))
    below = stats.norm.cdf(cuts[:, 81], *parts).mean(0)
    np.testing.assert_allclose(mean[:, :81].sum(-1), below)


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_an_outlying_draw_leaves_the_distances_of_others_alone(far):
    """One draw of fifty far away takes its share of the total variation, and no more."""
    p, q = (np.zeros((50, 1)), np.ones((50, 1))), (np.full((50, 1), 3.0), np.ones((50, 1)))
    strange = p[0].copy(), p[1]
    strange[0][0] = far
    y = np.zeros(1)

    def apart(*methods):
        cuts = distances.edges(methods)
        a, b = (distances.features(*parts, y, cuts).mean(0) for parts in methods[:2])
        return {name: d(a, b, y) for name, d in distances.REGRESSION.distances.items()}

    alone, beside, itself = apart(p, q), apart(p, q, strange), apart(strange, q)
    exact = 2 * stats.norm.cdf(1.5) - 1
    assert alone["total_variation"] == pytest.approx(exact, rel=5e-3)
    for name, value in alone.items():
        assert beside[name] == pytest.approx(value, rel=2e-2, abs=1e-2)
    assert itself["total_variation"] == pytest.approx(0.98 * exact + 0.02, abs=1e-2)
