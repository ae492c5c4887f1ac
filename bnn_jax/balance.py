"""Training on classes of unequal size, with what each remedy does to the N of the ELBO written down.

    ELBO = N/B sum_{i in batch} log p(y_i | x_i, w) - KL(q || p)

    class_weights  log p times w_k = N / (K n_k); over the training set the mean weight is 1, N stays
    over_sample    small classes repeated up to the largest: copies are no new evidence, N stays; in
                   expectation the same as class_weights
    under_sample   large classes cut down to the smallest: what is left out is no evidence, N shrinks
    focal          (1 - p)^gamma log p: less of what is learned already (arXiv:1708.02002), N stays

n_k examples of class k of K. The first three aim at predictions for classes of equal frequency: on data as
frequent as the training set they are not calibrated. With weights, copies or the focal loss the product over
examples is no normalised likelihood, and the posterior a generalised one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bnn_jax.types import Likelihood, UserError

REMEDIES = ("none", "class_weights", "over_sample", "under_sample", "focal")


class Balanced(NamedTuple):
    """What an epoch visits and what the ELBO counts."""

    indices: np.ndarray  # (M,) the training examples that an epoch visits, ascending
    num_data: int  # the N of the ELBO
    note: str  # one sentence for the log


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) float32 weights in inverse proportion to the class sizes; their mean over the labels is 1.

    labels: (N,) integers in 0..K-1. Raises `UserError`, also where a class has no example.
    """
    counts = _counts(labels, num_classes)
    return (counts.sum() / (num_classes * counts)).astype(np.float32)


def weighted(likelihood: Likelihood, weights: np.ndarray) -> Likelihood:
    """`likelihood` with log_prob(outputs, y) times weights[y]; mean and noise are untouched.

    Not normalised over y: a weight is a power of the likelihood, one example counted as w.

    Args:
        likelihood: of a classification, targets (B,) integers.
        weights: (K,) positive, see `class_weights`.

    Raises:
        UserError: not a classification, or weights that are not (K,) positive numbers; on call, labels that
            are not integers.
    """
    _require_classification(likelihood, "class weights")
    weights = np.asarray(weights, np.float32)
    if weights.ndim != 1 or not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError(f"class weights must be (K,) positive numbers, got {weights}")

    def log_prob(outputs, y):
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise UserError(f"class weights need integer labels, got {y.dtype}")
        return jnp.asarray(weights)[y] * likelihood.log_prob(outputs, y)

    def fisher_root(outputs, y):
        root = likelihood.fisher_root(outputs, y)
        return jnp.sqrt(jnp.asarray(weights)[y]).reshape(-1, *[1] * (outputs.ndim - 1)) * root

    return likelihood._replace(log_prob=log_prob, fisher_root=likelihood.fisher_root and fisher_root)


def focal(likelihood: Likelihood, gamma: float) -> Likelihood:
    """`likelihood` with log_prob replaced by (1 - p)^gamma log p, p = exp(log_prob): the focal loss of
    Lin et al., arXiv:1708.02002, without its class weights.

    Not a normalised likelihood: no density over y has this logarithm, so the ELBO bounds no evidence
    and the posterior is a generalised one. gamma = 0 is the likelihood itself.

    Args:
        likelihood: of a classification.
        gamma: 0 or more; 2 in the paper.

    Raises:
        UserError: not a classification, or `gamma` is negative.
    """
    _require_classification(likelihood, "the focal loss")
    if not 0 <= gamma < float("inf"):
        raise UserError(f"the focal loss needs gamma of 0 or more, not {gamma}")
    if gamma == 0:
        return likelihood

    def log_prob(outputs, y):
        log_p = likelihood.log_prob(outputs, y)
        # At p = 1 value and gradient are 0, but for gamma < 1 the rules give inf * 0: take it out before the
        # power, too, since a gradient flows also through the branch that is not chosen.
        unsure = log_p < -jnp.finfo(log_p.dtype).tiny
        safe = jnp.where(unsure, log_p, -1.0)
        return jnp.where(unsure, (-jnp.expm1(safe)) ** gamma * safe, 0.0)

    return likelihood._replace(log_prob=log_prob, fisher_root=None)


def over_sample(labels: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    """Indices, ascending, in which every class occurs as often as the largest: each example equally often,
    and a random choice once more where that does not come out even.

    labels: (N,) integers in 0..K-1. Raises `UserError`, also where a class has no example.
    """
    largest = _counts(labels, num_classes).max()

    def choose(rng, own):
        rest = rng.choice(own, largest % len(own), replace=False)
        return np.concatenate([np.repeat(own, largest // len(own)), rest])

    return _by_class(choose, labels, num_classes, seed)


def under_sample(labels: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    """Indices, ascending, of as many examples of every class as the smallest has, drawn without replacement.

    labels: (N,) integers in 0..K-1. Raises `UserError`, also where a class has no example.
    """
    smallest = _counts(labels, num_classes).min()
    return _by_class(lambda rng, own: rng.choice(own, smallest, replace=False), labels, num_classes, seed)


def plan(name: str, labels: np.ndarray, num_classes: int, seed: int = 0) -> Balanced:
    """The examples of an epoch, the N of the ELBO and a sentence for the log, for the remedy `name`.

    "class_weights" and "focal" change the likelihood, not the examples: wrap it in `weighted` or `focal`.

    Args:
        name: one of `REMEDIES`.
        labels: (N,) integers in 0..K-1, of the training examples.
        num_classes: K.
        seed: of what is drawn.

    Raises:
        UserError: unknown name, labels that are not such integers, or a class without examples.
    """
    if name not in REMEDIES:
        raise UserError(f"unknown remedy for class imbalance {name!r}: choose from {', '.join(REMEDIES)}")
    n = int(_counts(labels, num_classes).sum())
    indices, num_data = np.arange(n), n
    note = f"{name}: {n:,} examples; the ELBO keeps N = {n:,}"
    if name == "over_sample":
        indices = over_sample(labels, num_classes, seed)
        note = f"{name}: {n:,} examples, {len(indices):,} visited an epoch; the ELBO keeps N = {n:,}"
    elif name == "under_sample":
        indices = under_sample(labels, num_classes, seed)
        num_data = len(indices)
        note = f"{name}: {num_data:,} of {n:,} examples kept; the ELBO uses N = {num_data:,}"
    return Balanced(indices, num_data, note)


def _counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) examples of each class, or a UserError that names what is wrong with the labels."""
    labels = np.asarray(labels)
    if num_classes < 2:
        raise UserError(f"balancing needs at least 2 classes, not {num_classes}")
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels must be (N,) integers, got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"labels span {labels.min()}..{labels.max()}, not 0..{num_classes - 1}")
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        empty = ", ".join(map(str, np.flatnonzero(counts == 0)))
        raise UserError(f"no training example of class {empty}: add some, or leave the class out")
    return counts


def _by_class(choose: Callable, labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """What `choose`(rng, indices of one class) returns for each class, joined and sorted."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    return np.sort(np.concatenate([choose(rng, np.flatnonzero(labels == k)) for k in range(num_classes)]))


def _require_classification(likelihood: Likelihood, what: str) -> None:
    if likelihood.task != "classification":
        raise UserError(f"{what} need classes, but this likelihood is for {likelihood.task}")
