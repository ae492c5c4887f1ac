"""Metrics against hand-computed values, closed forms and scikit-learn."""

import json
from math import e, log, pi, sqrt

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from bnn_jax import metrics
from bnn_jax.types import UserError

PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
LABELS = np.array([0, 1, 2, 2])


@pytest.fixture
def many():
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(5), size=400), rng.integers(5, size=400)


def test_scores_by_hand():
    assert metrics.accuracy(PROBS, LABELS) == 0.75
    assert metrics.nll(PROBS, LABELS) == pytest.approx(-log(0.7 * 0.6 * 0.2 * 0.6) / 4)
    assert metrics.brier(PROBS, LABELS) == pytest.approx((0.14 + 0.26 + 0.98 + 0.24) / 4)


def test_scores_agree_with_sklearn(many):
    probs, labels = many
    assert metrics.accuracy(probs, labels) == accuracy_score(labels, probs.argmax(axis=1))
    assert metrics.nll(probs, labels) == pytest.approx(log_loss(labels, probs, labels=range(5)))
    one_against_rest = sum(brier_score_loss(labels == k, probs[:, k]) for k in range(5))
    assert metrics.brier(probs, labels) == pytest.approx(one_against_rest)


def test_scores_are_python_floats(many):
    scores = [f(*many) for f in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece)]
    assert json.loads(json.dumps(scores)) == scores


def test_an_impossible_label_costs_a_finite_nll():
    assert metrics.nll([[1.0, 0.0]], [1]) == pytest.approx(126 * log(2))  # TINY is 2^-126


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_certain_predictions_are_exact_in_every_precision(dtype):
    probs = np.eye(3, dtype=dtype)
    assert (
        metrics.nll(probs, [0, 1, 2]) == metrics.brier(probs, [0, 1, 2]) == metrics.ece(probs, [0, 1, 2]) == 0
    )
    np.testing.assert_array_equal(metrics.entropy(probs), 0)


def test_reliability_by_hand():
    """Two bins (0, 0.5] and (0.5, 1]: a confidence on the edge belongs to the lower one."""
    confidence, correct, count = metrics.reliability(PROBS, LABELS, num_bins=2)
    np.testing.assert_allclose(confidence, [0.5, (0.7 + 0.6 + 0.6) / 3])
    np.testing.assert_array_equal(correct, [0.0, 1.0])
    np.testing.assert_array_equal(count, [1, 3])
    assert metrics.ece(PROBS, LABELS, num_bins=2) == pytest.approx((0.5 + 0.3 + 0.4 + 0.4) / 4)


def test_an_empty_bin_is_nan_and_costs_nothing():
    confidence, correct, count = metrics.reliability(PROBS, LABELS, num_bins=10)
    empty = count == 0
    assert empty.sum() == 7
    np.testing.assert_array_equal([confidence[empty], correct[empty]], np.nan)
    assert metrics.ece(PROBS, LABELS, num_bins=10) == pytest.approx((0.5 + 0.3 + 0.4 + 0.4) / 4)


def test_ece_of_a_calibrated_predictor_vanishes():
    """80 % sure and right 4 times in 5: 0. 99 % sure with the same labels: 0.19."""
    labels = np.tile([0, 0, 0, 0, 1], 20)
    assert metrics.ece(np.tile([0.8, 0.2], (100, 1)), labels) == pytest.approx(0, abs=1e-12)
    assert metrics.ece(np.tile([0.99, 0.01], (100, 1)), labels) == pytest.approx(0.19)


def test_entropy():
    np.testing.assert_allclose(metrics.entropy([[0.5, 0.5], [1.0, 0.0]]), [log(2), 0.0])
    assert metrics.entropy(np.full((2, 3, 7), 1 / 7)).shape == (2, 3)
    assert metrics.entropy(np.full(7, 1 / 7)) == pytest.approx(log(7))


def test_uncertainty_splits_disagreement_from_doubt():
    """Point 0: certain draws disagree. Point 1: draws agree on a coin. Point 2: one certain, one a coin."""
    draws = np.array([[[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]])
    total, aleatoric, epistemic = metrics.uncertainty(draws)
    mixed = 2 * log(2) - 0.75 * log(3)
    np.testing.assert_allclose(total, [log(2), log(2), mixed])
    np.testing.assert_allclose(aleatoric, [0.0, log(2), log(2) / 2])
    np.testing.assert_allclose(epistemic, [log(2), 0.0, mixed - log(2) / 2])


def test_uncertainty_adds_up(many):
    total, aleatoric, epistemic = metrics.uncertainty(many[0].reshape(20, 20, 5))
    np.testing.assert_allclose(total, aleatoric + epistemic)
    assert (epistemic > 0).all()


def test_rmse_and_coverage_by_hand():
    assert metrics.rmse([1.0, 2.0], [4.0, 6.0]) == pytest.approx(sqrt(12.5))
    assert metrics.coverage([0.0, 0.0, -np.inf, 2.0], [1.0, 1.0, 0.0, 3.0], [0.5, 1.0, -9.0, 1.0]) == 0.75


def test_gaussian_mixture_nll():
    """One draw is a Gaussian; two draws at +-1 seen from 0 are one at 1; far away nothing underflows."""
    assert metrics.gaussian_mixture_nll([[3.0]], [[4.0]], [3.0]) == pytest.approx(0.5 * log(2 * pi * 4))
    two = metrics.gaussian_mixture_nll([[1.0], [-1.0]], [[1.0], [1.0]], [0.0])
    assert two == pytest.approx(0.5 * log(2 * pi * e))
    far = metrics.gaussian_mixture_nll([[0.0], [1e6]], [[1.0], [1.0]], [100.0])
    assert far == pytest.approx(0.5 * log(2 * pi) + 5000 + log(2))


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (PROBS[0], LABELS, "shape"),
        (PROBS[:0], LABELS[:0], "empty"),
        (PROBS - 0.2, LABELS, "negative"),
        (np.where(PROBS == 0.5, np.nan, PROBS), LABELS, "non-finite"),
        (2 * PROBS, LABELS, "sum to 1"),
        (PROBS, LABELS[:3], "4 integers"),
        (PROBS, LABELS.astype(float), "4 integers"),
        (PROBS, LABELS + 1, "1..3"),
        (PROBS, LABELS - 1, "-1..1"),
    ],
)
@pytest.mark.parametrize("score", [metrics.accuracy, metrics.nll, metrics.brier, metrics.ece])
def test_wrong_input_is_one_line(score, probs, labels, message):
    with pytest.raises(UserError, match=message) as error:
        score(probs, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.entropy(PROBS - 0.2),
        lambda: metrics.entropy(1.0),
        lambda: metrics.uncertainty(PROBS),
        lambda: metrics.ece(PROBS, LABELS, num_bins=0),
        lambda: metrics.rmse([[1.0, 2.0]], [1.0, 2.0]),
        lambda: metrics.rmse([1.0], [1.0, 2.0]),
        lambda: metrics.rmse([np.nan], [1.0]),
        lambda: metrics.gaussian_mixture_nll([1.0], [1.0], [1.0]),
        lambda: metrics.gaussian_mixture_nll([[1.0]], [[0.0]], [1.0]),
        lambda: metrics.gaussian_mixture_nll([[1.0]], [[1.0], [1.0]], [1.0]),
        lambda: metrics.coverage([1.0], [0.0], [0.5]),
    ],
)
def test_wrong_input_to_the_others(call):
    with pytest.raises(UserError):
        call()
