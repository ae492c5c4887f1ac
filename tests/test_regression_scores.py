"""Scores of regression against normal quantiles, closed forms of a bimodal mixture and `metrics`."""

from math import sqrt

import numpy as np
import pytest
from scipy.stats import norm

from bnn_jax import metrics, regression_scores
from bnn_jax.types import UserError


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(6, 40))
    return means, rng.uniform(0.1, 2, size=(6, 40)), means.mean(0) + rng.normal(size=40)


def test_errors_by_hand_and_density_of_metrics(case):
    means, variances, y = case
    found = regression_scores.regression(means, variances, y)
    assert found["rmse"] == pytest.approx(metrics.rmse(means.mean(0), y))
    assert found["nll"] == pytest.approx(metrics.gaussian_mixture_nll(means, variances, y))
    by_hand = regression_scores.regression([[1.0, 2.0], [3.0, 2.0]], np.ones((2, 2)), [5.0, 1.0])
    assert by_hand["mae"] == 2
    assert by_hand["rmse"] == pytest.approx(sqrt((9 + 1) / 2))


def test_a_weight_is_a_repetition(case):
    means, variances, y = case
    counts = np.random.default_rng(1).integers(3, size=40)
    repeated = regression_scores.regression(*(np.repeat(a, counts, axis=-1) for a in case))
    assert regression_scores.weighted_regression(means, variances, y)(counts) == pytest.approx(repeated)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_interval_of_one_draw_is_the_normal_one(level):
    means, std = np.array([[-3.0, 0.0, 1e6]]), np.array([[0.1, 1.0, 50.0]])
    low, high = regression_scores.mixture_interval(means, std**2, level)
    expected = norm.interval(level, means[0], std[0])
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_interval_of_two_far_draws(level):
    """Half the mass at -100 and at 100: the quantile q lies where the left one has 2q of its own mass."""
    means, variances = np.array([[-100.0], [100.0]]), np.ones((2, 1))
    low, high = regression_scores.mixture_interval(means, variances, level)
    expected = norm.ppf(1 - level, -100)  # 2q of the lower component, q = (1 - level) / 2
    np.testing.assert_allclose((low, high), [[expected], [-expected]], rtol=1e-9)


def test_the_ends_have_the_probability_asked_for(case):
    means, variances, _ = case
    ends = regression_scores.mixture_interval(means, variances, 0.9)
    for end, probability in zip(ends, (0.05, 0.95), strict=True):
        np.testing.assert_allclose(norm.cdf(end, means, np.sqrt(variances)).mean(0), probability, rtol=1e-8)
        np.testing.assert_allclose(regression_scores.interval_level(means, variances, end), 0.9, rtol=1e-8)


def test_coverage_is_that_of_the_intervals(case):
    means, variances, y = case
    found = regression_scores.regression(means, variances, y)
    for level in (50, 90, 95):
        ends = regression_scores.mixture_interval(means, variances, level / 100)
        assert found[f"coverage_{level}"] == metrics.coverage(*ends, y)
    assert found["interval_width_95"] == pytest.approx(np.mean(ends[1] - ends[0]))


def test_coverage_of_a_true_model_is_the_level():
    """Targets drawn from the mixture itself: within five standard deviations of the binomial."""
    rng, count = np.random.default_rng(0), 4000
    means, std = rng.normal(size=(3, count)), rng.uniform(0.5, 2, size=(3, count))
    draw, points = rng.integers(3, size=count), np.arange(count)
    y = rng.normal(means[draw, points], std[draw, points])
    found = regression_scores.regression(means, std**2, y)
    for level in (0.5, 0.9, 0.95):
        bound = 5 * sqrt(level * (1 - level) / count)
        assert abs(found[f"coverage_{level * 100:.0f}"] - level) < bound


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regression_scores.regression([1.0], [1.0], [1.0]), "shape"),
        (lambda: regression_scores.regression([[1.0]], [[0.0]], [1.0]), "positive"),
        (lambda: regression_scores.regression([[1.0]], [[1.0]], [[1.0]]), "1 numbers"),
        (lambda: regression_scores.regression([[np.nan]], [[1.0]], [1.0]), "finite"),
        (lambda: regression_scores.regression([[1.0]], [[1.0]], [np.inf]), "finite"),
        (lambda: regression_scores.mixture_interval([[1.0]], [[1.0]], 1.0), "level"),
    ],
)
def test_a_mistake_is_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
