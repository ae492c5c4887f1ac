"""Class imbalance: exact counts, scikit-learn's weights, and what each remedy does to the ELBO's sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from bnn_jax import balance
from bnn_jax.likelihoods import bernoulli, categorical, gaussian
from bnn_jax.types import UserError

RNG = np.random.default_rng(0)
COUNTS = (40, 7, 20)
LABELS = RNG.permutation(np.repeat(np.arange(3, dtype=np.int32), COUNTS))
EVEN = RNG.permutation(np.repeat(np.arange(3, dtype=np.int32), 20))
LOGITS = RNG.standard_normal((67, 3)).astype(np.float32)
CATEGORICAL = categorical.build()


def test_weights_are_those_of_sklearn_and_their_mean_is_one():
    weights = balance.class_weights(LABELS, 3)
    want = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(weights, want, rtol=1e-6)
    assert weights[LABELS].mean(dtype=np.float64) == pytest.approx(1, abs=1e-7)
    np.testing.assert_array_equal(balance.class_weights(EVEN, 3), 1)


def test_weighted_multiplies_the_log_likelihood_only():
    weights = np.array([0.5, 2.0, 3.0])
    likelihood = balance.weighted(CATEGORICAL, weights)
    got = jax.jit(likelihood.log_prob)(LOGITS, LABELS)
    np.testing.assert_allclose(got, weights[LABELS] * CATEGORICAL.log_prob(LOGITS, LABELS), rtol=1e-5)
    assert likelihood[1:4] == CATEGORICAL[1:4]  # mean, noise, task


def test_balanced_classes_are_left_as_they_are():
    """Weights are 1, and every plan visits every example once and keeps N: the ELBO is unchanged."""
    likelihood = balance.weighted(CATEGORICAL, balance.class_weights(EVEN, 3))
    logits = LOGITS[:60]
    np.testing.assert_array_equal(likelihood.log_prob(logits, EVEN), CATEGORICAL.log_prob(logits, EVEN))
    for name in balance.REMEDIES:
        plan = balance.plan(name, EVEN, 3)
        np.testing.assert_array_equal(plan.indices, np.arange(60))
        assert plan.num_data == 60


def test_over_sampling_equals_class_weights():
    """Where copies come out even, N times the mean log likelihood of an epoch is the weighted sum."""
    labels = np.repeat([0, 1, 2], [12, 3, 4]).astype(np.int32)
    logits = LOGITS[:19]
    plan = balance.plan("over_sample", labels, 3)
    visited = plan.num_data * np.mean(CATEGORICAL.log_prob(logits, labels)[plan.indices])
    likelihood = balance.weighted(CATEGORICAL, balance.class_weights(labels, 3))
    assert visited == pytest.approx(float(likelihood.log_prob(logits, labels).sum()), rel=1e-5)


def test_over_sample_counts():
    """40, 7, 20: each class 40 times; 7 examples 5 or 6 times, 20 exactly twice."""
    indices = balance.over_sample(LABELS, 3, seed=0)
    np.testing.assert_array_equal(np.bincount(LABELS[indices]), [40, 40, 40])
    times = np.bincount(indices, minlength=67)
    np.testing.assert_array_equal(np.bincount(times[LABELS == 1])[5:], [2, 5])
    assert (times[LABELS == 0] == 1).all()
    assert (times[LABELS == 2] == 2).all()
    assert (np.diff(indices) >= 0).all()


def test_under_sample_counts():
    """7 of every class, none twice, the smallest class whole."""
    indices = balance.under_sample(LABELS, 3, seed=0)
    np.testing.assert_array_equal(np.bincount(LABELS[indices]), [7, 7, 7])
    assert (np.diff(indices) > 0).all()
    assert set(np.flatnonzero(LABELS == 1)) < set(indices)


@pytest.mark.parametrize(
    ("sample", "label", "least", "p"),
    [(balance.over_sample, 1, 5, 5 / 7), (balance.under_sample, 0, 0, 7 / 40)],
)
def test_samples_follow_the_seed_and_favour_no_one(sample, label, least, p):
    """Over 400 seeds each example of a class is drawn once beyond `least` with share p, within 5 sigma."""
    np.testing.assert_array_equal(sample(LABELS, 3, 1), sample(LABELS, 3, 1))
    times = np.mean([np.bincount(sample(LABELS, 3, seed), minlength=67) for seed in range(400)], 0)
    share = times[label == LABELS] - least
    assert np.abs(share - p).max() < 5 * np.sqrt(p * (1 - p) / 400)


@pytest.mark.parametrize(
    ("name", "visited", "num_data", "note"),
    [
        ("none", 4708, 4708, "none: 4,708 examples; the ELBO keeps N = 4,708"),
        ("class_weights", 4708, 4708, "class_weights: 4,708 examples; the ELBO keeps N = 4,708"),
        ("focal", 4708, 4708, "focal: 4,708 examples; the ELBO keeps N = 4,708"),
        (
            "over_sample",
            6988,
            4708,
            "over_sample: 4,708 examples, 6,988 visited an epoch; the ELBO keeps N = 4,708",
        ),
        (
            "under_sample",
            2428,
            2428,
            "under_sample: 2,428 of 4,708 examples kept; the ELBO uses N = 2,428",
        ),
    ],
)
def test_the_plan_for_a_chest_x_ray_set(name, visited, num_data, note):
    plan = balance.plan(name, np.repeat([0, 1], [1214, 3494]), 2)
    assert (len(plan.indices), plan.num_data, plan.note) == (visited, num_data, note)


def test_focal_in_closed_form():
    for gamma in (0.5, 1.0, 2.0):
        got = jax.jit(balance.focal(CATEGORICAL, gamma).log_prob)(LOGITS, LABELS)
        log_p = np.asarray(CATEGORICAL.log_prob(LOGITS, LABELS), np.float64)
        np.testing.assert_allclose(got, (1 - np.exp(log_p)) ** gamma * log_p, rtol=1e-5)
    assert balance.focal(CATEGORICAL, 0) is CATEGORICAL
    assert balance.focal(CATEGORICAL, 2.0)[1:4] == CATEGORICAL[1:4]


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_focal_is_finite_for_every_certainty(gamma):
    """The gradient in the logit z of p = sigmoid(z) is (1 - p)^gamma (1 - p - gamma p log p)."""
    z = jnp.array([-90.0, -10.0, 0.0, 5.0, 12.0, 17.0, 60.0, 88.0, 100.0, 1000.0])  # p rounds to 1 from 17 on
    log_prob = balance.focal(bernoulli.build(), gamma).log_prob
    ones = jnp.ones(len(z), jnp.int32)
    value, slope = log_prob(z, ones), jax.grad(lambda z: log_prob(z, ones).sum())(z)
    z = np.asarray(z, np.float64)
    p, q, log_p = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z.clip(max=700))), -np.logaddexp(0, -z)
    np.testing.assert_allclose(value, q**gamma * log_p, rtol=1e-4, atol=1e-30)
    np.testing.assert_allclose(slope, q**gamma * (q - gamma * p * log_p), rtol=1e-4, atol=1e-6)


def test_focal_is_finite_for_a_saturated_softmax():
    logits = jnp.array([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    for gamma in (0.1, 2.0):
        log_prob = balance.focal(CATEGORICAL, gamma).log_prob
        slope = jax.grad(lambda o, f=log_prob: f(o, jnp.array([0, 1, 0])).sum())(logits)
        assert np.isfinite(slope).all()


def test_remedies_combine():
    """Weights on a focal likelihood: the balanced focal loss of the paper."""
    both = balance.weighted(balance.focal(CATEGORICAL, 2.0), np.array([1.0, 2.0, 3.0]))
    focal = balance.focal(CATEGORICAL, 2.0).log_prob(LOGITS, LABELS)
    np.testing.assert_allclose(both.log_prob(LOGITS, LABELS), (1 + LABELS) * focal, rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 0, 2], 4, "no training example of class 1, 3"),
        ([0.0, 1.0], 2, "labels must be .* integers, got float64"),
        ([[0], [1]], 2, r"shape \(2, 1\)"),
        ([], 2, "integers"),
        ([0, 1, 2], 2, r"span 0\.\.2, not 0\.\.1"),
        ([-1, 0, 1], 2, "span -1"),
        ([0, 0], 1, "at least 2 classes"),
    ],
)
def test_labels_that_cannot_be_balanced(labels, num_classes, message):
    for f in (balance.class_weights, balance.over_sample, balance.under_sample):
        with pytest.raises(UserError, match=message):
            f(np.array(labels), num_classes)
    for name in balance.REMEDIES:
        with pytest.raises(UserError, match=message):
            balance.plan(name, np.array(labels), num_classes)


def test_other_mistakes_are_told():
    with pytest.raises(UserError, match="'smote': choose from none, class_weights"):
        balance.plan("smote", LABELS, 3)
    with pytest.raises(UserError, match="gamma"):
        balance.focal(CATEGORICAL, -1.0)
    for weights in ([1.0, 0.0], [1.0, np.nan], [[1.0]]):
        with pytest.raises(UserError, match="positive"):
            balance.weighted(CATEGORICAL, np.array(weights))
    for f in (lambda x: balance.weighted(x, np.ones(2)), lambda x: balance.focal(x, 1.0)):
        with pytest.raises(UserError, match="regression"):
            f(gaussian.build(1.0))
    with pytest.raises(UserError, match="integer labels, got float32"):
        balance.weighted(CATEGORICAL, np.ones(3)).log_prob(LOGITS, LABELS.astype(np.float32))
