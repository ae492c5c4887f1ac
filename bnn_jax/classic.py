"""What came before: the classic linear and Gaussian classifiers behind one function, on scikit-learn.

    least_squares    min_w sum_i (t_i - w.x_i - b)^2, t_i = +-1; of several solutions the smallest w
    perceptron       w <- w + t_i x_i at every mistake; doi:10.1037/h0042519
    svm              min_w |w|^2 / 2 + sum_i max(0, 1 - t_i w.x_i)^2, b within w; doi:10.1007/BF00994018
    gaussian         p(x, C_k) = pi_k N(x; mu_k, S_k) by maximum likelihood: a quadratic boundary
    gaussian_shared  the same with one S = sum_k pi_k S_k: a linear boundary
    logistic         P(C_k | x) = softmax_k(w_k.x + b_k), of two classes sigmoid(w.x + b); MAP, w ~ N(0, 1)

The first three fit one class against the rest and have no probabilities: their scores rank the classes and
are neither P(C | x) nor log odds; those of the Gaussians are log p(x, C_k), in nats. Covariances are shrunk,
S <- (1 - s) S + s tr(S)/F I with s = `SHRINKAGE`: they stay invertible where a feature is constant and where
there are more features than examples. Shrinkage, margin and the prior of w take features of about equal width
for granted, as a `Dataset` has them.

Shapes: N examples, F features, T test points, K classes.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import softmax
from sklearn.covariance import empirical_covariance, shrunk_covariance
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron
from sklearn.svm import LinearSVC

from bnn_jax.types import UserError

SHRINKAGE = 1e-3  # small: the fit is maximum likelihood wherever that determines one


class Fitted(NamedTuple):
    """A classifier; each function takes (T, F) features."""

    decide: Callable  # -> (T,) int labels, the class of the largest score
    scores: Callable  # -> (T, K) decision values
    probs: Callable | None  # -> (T, K) P(C | x), the softmax of the scores; None: has no probabilities


def fit(name: str, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
    """The classifier `name`, one of `NAMES`, fitted to labelled examples.

    Args:
        x: (N, F) floats; images flattened.
        y: (N,) integers 0..K-1, every class at least once.
        seed: the order in which the perceptron sees the examples; the others have no randomness.

    Raises:
        UserError: no such name; `x` or `y` of another form; a class within which no feature varies, as of one
            example (`gaussian`), or nothing but such (`gaussian_shared`). On call: other features.
    """
    if name not in NAMES:
        raise UserError(f"unknown classifier {name!r}: choose from {', '.join(NAMES)}")
    x, y, num_classes = _checked(x, y)
    score = _FITS[name](x, y, num_classes, seed)

    def scores(x_new):
        x_new = np.asarray(x_new, np.float64)
        if x_new.ndim != 2 or x_new.shape[1] != x.shape[1]:
            raise UserError(
                f"{name} knows {x.shape[1]} features: x must be (T, {x.shape[1]}), not {x_new.shape}"
            )
        return score(x_new)

    return Fitted(
        decide=lambda x_new: scores(x_new).argmax(axis=1),
        scores=scores,
        probs=(lambda x_new: softmax(scores(x_new), axis=1)) if name in _WITH_PROBS else None,
    )


def _checked(x, y):
    """(x as float64, y, K), or a UserError that names what is wrong."""
    x, y = np.asarray(x, np.float64), np.asarray(y)
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(f"x must be (N, F), not {x.shape}: flatten images")
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"y must be ({len(x)},) integers, one an example, not {y.dtype} of shape {y.shape}")
    if not np.isfinite(x).all():
        raise UserError("x holds NaN or infinite values: clean or drop them")
    if y.min() < 0:
        raise UserError(f"labels must be 0..K-1, found {y.min()}")
    counts = np.bincount(y)
    if len(counts) < 2 or not counts.all():
        raise UserError(f"labels must be 0..K-1 with examples of each, found {np.unique(y).tolist()}")
    return x, y, len(counts)


def _least_squares(x, y, num_classes, seed):
    return LinearRegression().fit(x, 2 * np.eye(num_classes)[y] - 1).predict


def _perceptron(x, y, num_classes, seed):
    """Stops 20 epochs after the loss was lowest, and that is 0 on separable data. Where classes overlap the
    last w counts, which may be far from the best."""
    model = Perceptron(max_iter=500, tol=1e-6, n_iter_no_change=20, random_state=seed)
    with warnings.catch_warnings():  # with overlap there is nothing to converge to
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return lambda x: _both(model.decision_function(x))


def _svm(x, y, num_classes, seed):
    model = LinearSVC(dual=False, max_iter=10_000).fit(x, y)
    return lambda x: _both(model.decision_function(x))


def _logistic(x, y, num_classes, seed):
    model = LogisticRegression(tol=1e-5, max_iter=10_000).fit(x, y)
    # of two classes the decision value is the log odds; the softmax of its halves is the probability
    return lambda x: _both(model.decision_function(x)) / (2 if num_classes == 2 else 1)


def _gaussian(x, y, num_classes, seed):
    for k, number in enumerate(np.bincount(y)):
        if not _varies(x[y == k]):
            where = f"class {k}, examples: {number}"
            raise UserError(f"gaussian: no feature varies ({where}); give more, or take gaussian_shared")
    covariances = [shrunk_covariance(empirical_covariance(x[y == k]), SHRINKAGE) for k in range(num_classes)]
    return _log_joint(x, y, covariances)


def _gaussian_shared(x, y, num_classes, seed):
    if not any(_varies(x[y == k]) for k in range(num_classes)):
        raise UserError("gaussian_shared: no feature varies within any class; give more examples")
    centred = x - np.stack([x[y == k].mean(axis=0) for k in range(num_classes)])[y]
    covariance = empirical_covariance(centred, assume_centered=True)
    return _log_joint(x, y, [shrunk_covariance(covariance, SHRINKAGE)] * num_classes)


def _log_joint(x, y, covariances):
    """x (T, F) -> log pi_k N(x; mu_k, S_k) (T, K), given the K covariances."""
    priors, means = np.bincount(y) / len(y), [x[y == k].mean(axis=0) for k in range(len(covariances))]
    roots = [np.linalg.cholesky(covariance) for covariance in covariances]

    def one(x, prior, mean, root):
        white = solve_triangular(root, (x - mean).T, lower=True)
        log_det = 2 * np.log(np.diag(root)).sum()
        return np.log(prior) - 0.5 * ((white**2).sum(axis=0) + log_det + len(root) * np.log(2 * np.pi))

    return lambda x: np.stack([one(x, *own) for own in zip(priors, means, roots, strict=True)], axis=1)


def _varies(x):
    """Whether any feature does: asked of the values, as a variance is not quite 0 by rounding."""
    return np.ptp(x, axis=0).any()


def _both(decision):
    """(T,) of two classes, positive for class 1, as (T, 2); more classes as they are."""
    return np.stack([-decision, decision], axis=1) if decision.ndim == 1 else decision


_FITS = {
    "least_squares": _least_squares,
    "perceptron": _perceptron,
    "svm": _svm,
    "gaussian": _gaussian,
    "gaussian_shared": _gaussian_shared,
    "logistic": _logistic,
}
_WITH_PROBS = ("gaussian", "gaussian_shared", "logistic")
NAMES = tuple(_FITS)
