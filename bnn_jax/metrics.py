"""How good predictions are: scores of predictive probabilities and of predictive densities.

    score = 1/T sum_t s(p_t, y_t),    p_t = 1/D sum_d p(y | x_t, w_d)

The scores take the predictive mean p_t, already averaged over posterior draws; NLL and Brier are proper
(doi:10.1198/016214506000001437). Two things are approximated: the ECE bins the confidence
(arXiv:1706.04599), and log 0 counts as log `TINY`, -87.3 nats, so that no score is infinite.

Everything runs on NumPy arrays, after sampling. T test points, K classes, D draws.
"""

import numpy as np

from bnn_jax.types import UserError

TINY = np.finfo(np.float32).tiny  # smallest positive normal float32: the floor under every logarithm


def check_probs(probs, axes: str, labels=None):
    """`probs` and `labels` as arrays, or a `UserError` that names what is wrong.

    Args:
        probs: probabilities, one axis per letter of `axes`, the last one K; rows sum to 1 within 1 %, which
            lets half precision pass and logits not.
        axes: axis letters, as "TK" or "CDTK".
        labels: (T,) integers in [0, K), or None.
    """
    probs = np.asarray(probs)
    if probs.ndim != len(axes) or probs.size == 0:
        raise UserError(f"probs need shape ({', '.join(axes)}) and no empty axis, got {probs.shape}")
    if not (np.isfinite(probs).all() and (probs >= 0).all()):
        raise UserError("probs hold negative or non-finite values: pass probabilities, not logits")
    if np.abs(probs.sum(axis=-1, dtype=np.float64) - 1).max() > 1e-2:
        raise UserError("probs do not sum to 1 over the last axis: pass probabilities, not logits")
    if labels is None:
        return probs, None
    labels = np.asarray(labels)
    if labels.shape != probs.shape[-2:-1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels need {probs.shape[-2]} integers, got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= probs.shape[-1]:
        span = f"{labels.min()}..{labels.max()}"
        raise UserError(f"labels span {span}, but probs have the classes 0..{probs.shape[-1] - 1}")
    return probs, labels


def accuracy(probs, labels) -> float:
    """Share of points whose most probable class is the label.

    probs (T, K), labels (T,); raises `UserError`. Of equally probable classes the first counts.
    """
    probs, labels = check_probs(probs, "TK", labels)
    return float(np.mean(probs.argmax(axis=-1) == labels))


def nll(probs, labels) -> float:
    """Mean negative log-probability of the label, in nats per example.

    probs (T, K), labels (T,); raises `UserError`. Probabilities below `TINY` count as `TINY`.
    The logarithmic score of doi:10.1198/016214506000001437.
    """
    probs, labels = check_probs(probs, "TK", labels)
    chosen = probs[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.mean(np.log(np.maximum(chosen, TINY))))


def brier(probs, labels) -> float:
    """Mean squared distance to the one-hot label, summed over classes: in [0, 2].

    probs (T, K), labels (T,); raises `UserError`. The original form of Brier (1950),
    doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2; for two classes twice the one-class form.
    """
    probs, labels = check_probs(probs, "TK", labels)
    one_hot = np.eye(probs.shape[-1])[labels]
    return float(np.mean(np.sum((probs - one_hot) ** 2, axis=-1)))


def reliability(probs, labels, num_bins: int = 15):
    """The reliability curve of the top label, in `num_bins` equal-width bins (low, high] of the confidence.

    probs (T, K), labels (T,); raises `UserError`. Returns (confidence, accuracy, count), each
    (num_bins,): the means over the bin's points, nan in an empty bin, and their number.
    Source: arXiv:1706.04599.
    """
    probs, labels = check_probs(probs, "TK", labels)
    if num_bins < 1:
        raise UserError(f"num_bins must be at least 1, got {num_bins}")
    top = probs.max(axis=-1).astype(np.float64)
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    index = np.searchsorted(edges[1:-1], top, side="left")
    count = np.bincount(index, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        confidence = np.bincount(index, weights=top, minlength=num_bins) / count
        correct = np.bincount(index, weights=probs.argmax(axis=-1) == labels, minlength=num_bins) / count
    return confidence, correct, count


def ece(probs, labels, num_bins: int = 15) -> float:
    """Expected calibration error: mean over points of |accuracy - confidence| of the point's bin, in [0, 1].

    probs (T, K), labels (T,); raises `UserError`. Top label, equal-width bins: an estimate that is
    biased upwards when bins hold few points. Source: arXiv:1706.04599.
    """
    confidence, correct, count = reliability(probs, labels, num_bins)
    return float(np.nansum(count * np.abs(correct - confidence)) / count.sum())


def entropy(probs) -> np.ndarray:
    """Entropy over the last axis, in nats: probs (..., K) -> (...), in [0, log K]; raises `UserError`."""
    probs = np.asarray(probs)
    check_probs(probs, "." * max(probs.ndim - 1, 0) + "K")
    return -np.sum(probs * np.log(np.maximum(probs, TINY)), axis=-1, dtype=np.float64)


def uncertainty(probs_per_draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictive entropy and its two parts, nats: total = aleatoric + epistemic.

    probs_per_draw (D, T, K) -> (total, aleatoric, epistemic), each (T,): the entropy of the mean, the
    mean entropy, and the mutual information between label and weights, which is 0 where all draws
    agree. Raises `UserError`. Source: arXiv:1710.07283.
    """
    probs, _ = check_probs(probs_per_draw, "DTK")
    total = entropy(probs.mean(axis=0, dtype=np.float64))
    aleatoric = entropy(probs).mean(axis=0)
    return total, aleatoric, np.maximum(total - aleatoric, 0.0)  # rounding only: never negative


def _check_targets(axes: str, y, **arrays) -> list[np.ndarray]:
    """`y` (T,) and the named arrays, one axis per letter of `axes`, in float64, or a `UserError`."""
    checked = {name: np.asarray(a, dtype=np.float64) for name, a in {"y": y, **arrays}.items()}
    for name, a in checked.items():
        ndim = 1 if name == "y" else len(axes)
        if a.ndim != ndim or a.size == 0 or a.shape[-1:] != checked["y"].shape:
            raise UserError(f"{name} of shape {a.shape} does not match y (T,) of shape {np.shape(y)}")
        if np.isnan(a).any():
            raise UserError(f"{name} holds nan")
    return list(checked.values())


def rmse(mean, y) -> float:
    """Root mean squared error of predicted means, in the unit of y. mean (T,), y (T,); raises `UserError`."""
    y, mean = _check_targets("T", y, mean=mean)
    return float(np.sqrt(np.mean((mean - y) ** 2)))


def gaussian_mixture_nll(means, variances, y) -> float:
    """Mean of -log 1/D sum_d Normal(y; mean_d, variance_d), the predictive density of D draws, in nats.

    means (D, T), variances (D, T) positive, y (T,); variances in the squared unit of y. Raises `UserError`.
    """
    y, means, variances = _check_targets("DT", y, means=means, variances=variances)
    if means.shape != variances.shape or not (variances > 0).all():
        raise UserError("variances must be positive and of the shape of means")
    log_prob = -0.5 * (np.log(2 * np.pi * variances) + (y - means) ** 2 / variances)
    return float(np.mean(np.log(len(means)) - np.logaddexp.reduce(log_prob, axis=0)))


def coverage(lower, upper, y) -> float:
    """Share of targets inside the closed interval [lower, upper]. All (T,), unit of y; raises `UserError`."""
    y, lower, upper = _check_targets("T", y, lower=lower, upper=upper)
    if (lower > upper).any():
        raise UserError("lower exceeds upper: swap them")
    return float(np.mean((lower <= y) & (y <= upper)))
