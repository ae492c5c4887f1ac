"""The classic classifiers against closed forms, and what all of them share."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from bnn_jax import classic
from bnn_jax.types import UserError

WITH_PROBS = {"gaussian", "gaussian_shared", "logistic"}


def blobs(num_classes=2, count=90, features=2, distance=2.0, seed=0):
    """Overlapping Gaussians on a circle, correlated, of sizes and widths that differ by class."""
    rng = np.random.default_rng(seed)
    y = np.sort(rng.choice(num_classes, count, p=np.arange(1, num_classes + 1) / sum(range(num_classes + 1))))
    mix = np.eye(features) + 0.5 * rng.normal(size=(features, features))
    means = np.zeros((num_classes, features))
    angle = 2 * np.pi * np.arange(num_classes) / num_classes
    means[:, :2] = distance * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return rng.normal(size=(count, features)) @ mix * (0.7 + 0.4 * y[:, None]) + means[y], y


def covariance(x, y=None):
    """The shrunk maximum-likelihood covariance, with `y` the mean over classes, weighted by their size."""
    groups = [x] if y is None else [x[y == k] for k in np.unique(y)]
    s = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups) / len(x)
    return (1 - classic.SHRINKAGE) * s + classic.SHRINKAGE * np.trace(s) / len(s) * np.eye(len(s))


NEW = np.random.default_rng(9).normal(0, 3, (50, 2))


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", classic.NAMES)
def test_one_interface(name, num_classes):
    x, y = blobs(num_classes)
    fitted = classic.fit(name, x.astype(np.float32), y.astype(np.int32))
    scores, decided = fitted.scores(NEW), fitted.decide(NEW)
    assert scores.shape == (50, num_classes)
    np.testing.assert_array_equal(decided, scores.argmax(1))
    assert np.mean(fitted.decide(x) == y) > (0.4 if name == "perceptron" else 0.7)
    assert (fitted.probs is not None) == (name in WITH_PROBS)
    if fitted.probs:
        np.testing.assert_allclose(fitted.probs(NEW), softmax(scores, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(classic.fit(name, x.astype(np.float32), y).scores(NEW), scores)


@pytest.mark.parametrize("name", classic.NAMES)
def test_the_names_of_the_classes_do_not_matter(name):
    """Classes 0 and 1 swapped: columns swapped."""
    x, y = blobs()
    first, swapped = (classic.fit(name, x, labels).scores(NEW) for labels in (y, 1 - y))
    np.testing.assert_allclose(first, swapped[:, ::-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_least_squares_solves_the_normal_equations(num_classes):
    x, y = blobs(num_classes)
    a, targets = np.column_stack([x, np.ones(len(x))]), np.where(y[:, None] == np.arange(num_classes), 1, -1)
    weights = np.linalg.solve(a.T @ a, a.T @ targets)
    expected = np.column_stack([NEW, np.ones(50)]) @ weights
    np.testing.assert_allclose(classic.fit("least_squares", x, y).scores(NEW), expected, atol=1e-10)


def test_shared_covariance_is_a_sigmoid_of_a_line():
    """P(C_1 | x) = sigmoid(w.x + b), w = S^-1 (mu_1 - mu_0), and the prior in b."""
    x, y = blobs()
    (zero, one), inverse = (x[y == 0].mean(0), x[y == 1].mean(0)), np.linalg.inv(covariance(x, y))
    w, prior = inverse @ (one - zero), np.log(np.mean(y == 1) / np.mean(y == 0))
    b = -0.5 * (one @ inverse @ one - zero @ inverse @ zero) + prior
    assert abs(prior) > 0.3
    probs = classic.fit("gaussian_shared", x, y).probs(NEW)
    np.testing.assert_allclose(probs[:, 1], expit(NEW @ w + b), rtol=1e-8)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_gaussians_are_bayes_rule(num_classes, shared):
    x, y = blobs(num_classes)
    joint = []
    for k in range(num_classes):
        own = x[y == k]
        s = covariance(x, y) if shared else covariance(own)
        joint.append(np.log(np.mean(y == k)) + multivariate_normal(own.mean(0), s).logpdf(NEW))
    fitted = classic.fit("gaussian_shared" if shared else "gaussian", x, y)
    np.testing.assert_allclose(fitted.probs(NEW), softmax(joint, axis=0).T, rtol=1e-7, atol=1e-12)
    if not shared:
        np.testing.assert_allclose(fitted.scores(NEW), np.transpose(joint), rtol=1e-10)


def test_shared_covariance_is_the_discriminant_analysis_of_sklearn():
    x, y = blobs(3)
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=classic.SHRINKAGE).fit(x, y)
    ours = classic.fit("gaussian_shared", x, y)
    np.testing.assert_allclose(ours.probs(NEW), other.predict_proba(NEW), rtol=1e-6, atol=1e-12)


def test_own_covariances_see_what_shared_ones_do_not():
    """A narrow class within a wide one of the same mean: no line separates them, a circle does."""
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    x = rng.normal(size=(600, 2)) * np.where(y == 1, 5, 0.5)[:, None]
    right = {name: np.mean(classic.fit(name, x, y).decide(x) == y) for name in classic.NAMES}
    assert right.pop("gaussian") > 0.95
    assert max(right.values()) < 0.65


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", ["perceptron", "svm"])
def test_no_mistake_on_separable_data(name, num_classes):
    rng = np.random.default_rng(0)
    y = np.arange(120) % num_classes
    angle = 2 * np.pi * y / num_classes
    x = 4 * np.stack([np.cos(angle), np.sin(angle)], 1) + rng.uniform(-1, 1, (120, 2)) + [1.0, -2.0]
    for seed in range(3):
        assert (classic.fit(name, x, y, seed).decide(x) == y).all()


def test_svm_is_at_the_minimum_of_its_loss():
    """Gradient of |w|^2 / 2 + sum max(0, 1 - t w.x)^2, w with the bias in it, from the scores alone."""
    x, y = blobs()
    fitted = classic.fit("svm", x, y)
    w = plane(lambda x: fitted.scores(x)[:, 1])
    a, t = np.column_stack([x, np.ones(len(x))]), 2 * y - 1
    gradient = w - 2 * a.T @ (t * np.maximum(0, 1 - t * (a @ w)))
    assert np.abs(gradient).max() < 0.02
    np.testing.assert_allclose(fitted.scores(NEW)[:, 0], -fitted.scores(NEW)[:, 1])


def plane(function, features=2):
    """(w, b) of an affine function."""
    b = function(np.zeros((1, features)))
    return np.append(function(np.eye(features)) - b, b)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_logistic_regression_is_at_the_mode(num_classes):
    """The gradient of -log p(y | x, w) - log N(w; 0, 1) is zero, the bias being free."""
    x, y = blobs(num_classes)
    fitted = classic.fit("logistic", x, y)
    a, wrong = np.column_stack([x, np.ones(len(x))]), fitted.probs(x) - np.eye(num_classes)[y]
    if num_classes == 2:  # one weight vector, that of the log odds
        w = plane(lambda x: -np.subtract(*fitted.scores(x).T))
        gradients = [a.T @ wrong[:, 1] + w * [1, 1, 0]]
    else:
        w = [plane(lambda x, k=k: fitted.scores(x)[:, k]) for k in range(num_classes)]
        gradients = [a.T @ wrong[:, k] + w[k] * [1, 1, 0] for k in range(num_classes)]
    assert np.abs(gradients).max() < 1e-5 * len(x)


@pytest.mark.parametrize("name", classic.NAMES)
def test_constant_features_and_more_features_than_examples(name):
    images, labels = load_digits(return_X_y=True)
    images = images / 16  # some pixels are 0 in every image, more of them within a class
    fitted = classic.fit(name, images[:1000], labels[:1000])
    assert np.mean(fitted.decide(images[1000:]) == labels[1000:]) > 0.85
    assert np.isfinite(fitted.scores(images)).all()
    few = classic.fit(name, images[:40], labels[:40])  # 40 examples, 64 features
    assert np.mean(few.decide(images[:40]) == labels[:40]) > 0.9
    assert np.mean(few.decide(images[1000:]) == labels[1000:]) > 0.3


def test_only_the_perceptron_is_random():
    x, y = blobs()
    scores = {name: [classic.fit(name, x, y, seed).scores(NEW) for seed in (0, 1)] for name in classic.NAMES}
    assert [name for name, (a, b) in scores.items() if (a != b).any()] == ["perceptron"]


X, Y = blobs(3, count=12)
LONE = np.array([0, 0, 0, 1])  # class 1 has one example


@pytest.mark.parametrize(
    ("name", "x", "y", "message"),
    [
        ("lda", X, Y, "unknown classifier 'lda': choose from least_squares, perceptron"),
        ("svm", X.reshape(12, 2, 1), Y, r"x must be \(N, F\), not \(12, 2, 1\): flatten images"),
        ("svm", X[:0], Y[:0], r"x must be \(N, F\), not \(0, 2\)"),
        ("svm", X, Y[:5], r"y must be \(12,\) integers.*shape \(5,\)"),
        ("svm", X, Y.astype(float), "integers, one an example, not float64"),
        ("svm", np.where(X[3, 0] == X, np.nan, X), Y, "x holds NaN or infinite values"),
        ("svm", X, Y - 1, r"labels must be 0\.\.K-1, found -1"),
        ("svm", X, 2 * Y, r"with examples of each, found \[0, 2, 4\]"),
        ("svm", X, 0 * Y, r"with examples of each, found \[0\]"),
        ("gaussian", X[:4], LONE, r"gaussian: no feature varies \(class 1, examples: 1\)"),
        ("gaussian", np.full((4, 2), 0.1), np.array([0, 0, 0, 1]), r"class 0, examples: 3"),
        ("gaussian_shared", 0.1 + LONE[:, None] * np.ones(2), LONE, "no feature varies within any class"),
    ],
)
def test_mistakes_are_told_in_one_line(name, x, y, message):
    with pytest.raises(UserError, match=message) as error:
        classic.fit(name, x, y)
    assert "\n" not in str(error.value)


def test_shared_covariance_takes_a_class_of_one_example():
    assert np.isfinite(classic.fit("gaussian_shared", X[:4], LONE).probs(X)).all()


@pytest.mark.parametrize("shape", [(5, 3), (2,)])
def test_other_features_than_fitted(shape):
    fitted = classic.fit("gaussian", *blobs())
    with pytest.raises(UserError, match=r"gaussian knows 2 features: x must be \(T, 2\), not"):
        fitted.probs(np.zeros(shape))
