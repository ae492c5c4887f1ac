r"""Judging a trained model: decisions, ranking, calibration, referral, and error bars for every score.

    score(w) = sum_t w_t s(p_t, y_t) / sum_t w_t

Every score is a function of example weights w. With w = 1 it is the score itself; with w_t the number of
times that example t was drawn it is a bootstrap replicate, for which whatever does not depend on w (the
sorted order, the bins, the terms of single examples) is computed once. Formulas are those of scikit-learn.
A score that is 0/0, such as the recall of a class without examples, is left out, never NaN.

What is approximated: both calibration errors bin the confidence (arXiv:1706.04599, class by class
arXiv:1910.12656), intervals are percentiles of the bootstrap (doi:10.1214/ss/1177013815).
T examples, K classes. Regression is judged in `regression_scores`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from bnn_jax import metrics
from bnn_jax.types import UserError, positive

Score = Callable[[np.ndarray], dict[str, float]]  # example weights (T,) -> scores by name
_BINS = 15  # as metrics.ece


def classification(probs, labels, threshold: float | None = None, sample_weight=None) -> dict[str, float]:
    """The scores of predicted probabilities, by name.

    `accuracy`, `balanced_accuracy`, `recall`, `precision`, `f1`, `specificity`, `auroc`,
    `average_precision`, `nll` (nats), `brier`, `ece`, `ece_classwise`; what is undefined is left out. Two
    classes: of class 1. More: unweighted mean over classes, each against the rest.

    Args:
        probs: (T, K). labels: (T,) ints.
        threshold: two classes only: class 1 is decided where p_1 >= threshold; else the most probable class.
        sample_weight: (T,) not negative; 1 by default.

    Raises:
        UserError: not probabilities, labels that do not match, a threshold with K != 2, wrong weights.
    """
    score = weighted_classification(probs, labels, threshold)
    weights = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if weights.shape != (len(labels),) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise UserError(f"sample_weight needs {len(labels)} finite numbers, none negative and not all 0")
    return score(weights)


def weighted_classification(probs, labels, threshold: float | None = None) -> Score:
    """`classification` as a function of the weights (T,), for `bootstrap`. Raises `UserError` as it does."""
    probs, labels = _check(probs, labels)
    num_classes = probs.shape[1]
    cell = num_classes * labels + _decide(probs, threshold)
    one_hot = np.eye(num_classes)[labels]
    terms = {
        "nll": -np.log(np.maximum(probs[np.arange(len(labels)), labels], metrics.TINY)),
        "brier": np.sum((probs - one_hot) ** 2, axis=1),
    }
    top = probs.max(axis=1)
    top_bin, top_gap = _bin(top), (probs.argmax(axis=1) == labels) - top
    class_bin, class_gap = _bin(probs) + _BINS * np.arange(num_classes), one_hot - probs
    ranked = [1] if num_classes == 2 else range(num_classes)
    areas = [_areas(probs[:, k], labels == k) for k in ranked]

    def score(weights: np.ndarray) -> dict[str, float]:
        total = weights.sum()
        found = _rates(np.bincount(cell, weights, num_classes**2).reshape(num_classes, num_classes))
        found["auroc"], found["average_precision"] = np.mean([area(weights) for area in areas], axis=0)
        found |= {name: weights @ values / total for name, values in terms.items()}
        found["ece"] = np.abs(np.bincount(top_bin, weights * top_gap)).sum() / total
        by_class = np.bincount(class_bin.ravel(), (weights[:, None] * class_gap).ravel())
        found["ece_classwise"] = np.abs(by_class).sum() / total / num_classes
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}

    return score


def confusion(probs, labels, threshold: float | None = None) -> np.ndarray:
    """(K, K) counts: row the true class, column the decided one. Arguments and errors as `classification`."""
    probs, labels = _check(probs, labels)
    return confusion_matrix(labels, _decide(probs, threshold), labels=range(probs.shape[1]))


def choose_threshold(probs, labels, rule: str | tuple[str, float]) -> float:
    """The threshold on p_1 that a rule picks; from validation data, never from test data.

    A threshold is put halfway between the score that it just includes and the next lower one (or 0), so that
    small shifts on other data change no decision.

    Args:
        probs: (T, 2). labels: (T,) with both classes.
        rule: "youden": largest recall + specificity - 1, of equal ones the lowest threshold, that is the most
            recall (doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3).
            ("recall", r): the largest threshold whose recall of class 1 is at least r.

    Raises:
        UserError: K != 2, a single class in the labels, r outside (0, 1], an unknown rule.
    """
    probs, labels = _check(probs, labels)
    if probs.shape[1] != 2:
        raise UserError(f"a threshold needs two classes, the probabilities have {probs.shape[1]}")
    if len(np.unique(labels)) < 2:
        raise UserError(f"a threshold cannot be chosen: all {len(labels)} labels are {labels[0]}")
    if rule != "youden" and not (len(rule) == 2 and rule[0] == "recall" and 0 < rule[1] <= 1):
        raise UserError(f"rule must be 'youden' or ('recall', r) with 0 < r <= 1, not {rule!r}")
    false, true, scores = roc_curve(labels, probs[:, 1], drop_intermediate=False)
    false, true, scores = false[1:], true[1:], scores[1:]  # without "nothing is class 1"; scores descend
    if rule == "youden":  # 1e-12: rounding must not break ties
        best = np.flatnonzero(true - false >= np.max(true - false) - 1e-12)[-1]
    else:
        best = np.flatnonzero(true >= rule[1])[0]
    lower = scores[best + 1] if best + 1 < len(scores) else 0.0
    middle = (lower + scores[best]) / 2
    return float(middle if middle > lower else scores[best])  # neighbouring floats have no middle


def temperature(probs, labels) -> float:
    """The temperature of the smallest validation NLL of softmax(log p / T), between 1/20 and 20.

    Of a Bayesian model it scales the log of the predictive mean, not the logits of single draws. T > 1 says
    that the model was too sure. Where every prediction is right the limit 1/20 results.
    probs (T, K), labels (T,); raises `UserError`. Source: arXiv:1706.04599.
    """
    probs, labels = _check(probs, labels)
    limit = np.log(20.0)
    nll = lambda log_t: metrics.nll(scale(probs, np.exp(log_t)), labels)
    found = minimize_scalar(nll, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-7})
    # Where predictions are right and sure the NLL is 0 on a whole range.
    return float(np.exp(-limit if nll(-limit) <= found.fun else found.x))


def scale(probs, temperature: float) -> np.ndarray:
    """softmax(log p / temperature): probs (T, K) -> (T, K); raises `UserError` unless temperature > 0."""
    probs, _ = _check(probs)
    positive("temperature", temperature)
    return softmax(np.log(np.maximum(probs, metrics.TINY)) / temperature, axis=1)


def risk_coverage(probs, labels, uncertainty, threshold: float | None = None):
    """The share of errors among the n least uncertain examples, for n = 1..T.

    Equal uncertainties are answered in random order; the curve is its expected value.

    Args:
        uncertainty: (T,), larger is less sure. The others as `classification`.

    Returns:
        (coverage (T,) = n / T, risk (T,), mean of the risk: the AURC of arXiv:1805.08206, which is small for
        a good order). Selective risk: arXiv:1705.08500.
    """
    probs, labels = _check(probs, labels)
    wrong = _decide(probs, threshold) != labels
    _, group, size = np.unique(
        _uncertainty(uncertainty, len(labels)), return_inverse=True, return_counts=True
    )
    errors = np.bincount(group, wrong) / size
    answered = np.arange(1, len(labels) + 1)
    risk = np.cumsum(np.repeat(errors, size)) / answered
    return answered / len(labels), risk, float(risk.mean())


def referral(
    probs, labels, uncertainty, fractions: Sequence[float] = (0, 0.05, 0.1, 0.2, 0.3, 0.5), threshold=None
) -> list[dict]:
    """Scores of the rest when the most uncertain go to a doctor, one dict for each of `fractions`.

    Keys `referred` (the share), `answered` (examples, at least one), and as far as defined `accuracy`,
    `recall`, `precision`, `balanced_accuracy`. Examples of equal uncertainty at the cut count in part.
    Other arguments as `risk_coverage`.

    Raises:
        UserError: as `classification`; a fraction outside [0, 1).
    """
    score = weighted_classification(probs, labels, threshold)
    uncertainty, records = _uncertainty(uncertainty, len(labels)), []
    names = ("accuracy", "recall", "precision", "balanced_accuracy")
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise UserError(f"the share of referred examples must lie in [0, 1), not {fraction}")
        answered = len(labels) - int(fraction * len(labels) + 1e-9)  # 0.29 * 100 is 28.999...
        cut = np.partition(uncertainty, answered - 1)[answered - 1]
        below, tied = uncertainty < cut, uncertainty == cut
        found = score(below + tied * ((answered - below.sum()) / tied.sum()))
        kept = {name: found[name] for name in names if name in found}
        records.append({"referred": float(fraction), "answered": answered, **kept})
    return records


def recall_by_share(probs, labels, uncertainty, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Recall of all cases (class 1) when the most uncertain share goes to a doctor who misses none.

    Returns:
        shares from 0 to 1 and recall there, (U + 1,) each for U different uncertainties: equal ones go
        together.

    Raises:
        UserError: as `classification`; not two classes, or no case.
    """
    probs, labels = _check(probs, labels)
    if probs.shape[1] != 2 or not (labels == 1).any():
        raise UserError("recall by share needs two classes and a case of class 1")
    uncertainty = _uncertainty(uncertainty, len(labels))
    order = np.argsort(-uncertainty, kind="stable")
    ends = np.flatnonzero(np.diff(uncertainty[order], append=-np.inf)) + 1
    missed = ((_decide(probs, threshold) != 1) & (labels == 1))[order]
    left = missed.sum() - np.concatenate([[0], missed.cumsum()[ends - 1]])
    return np.concatenate([[0], ends]) / len(labels), 1 - left / (labels == 1).sum()


def share_for_recall(probs, labels, uncertainty, threshold: float, recall: float) -> float:
    """The smallest share of `recall_by_share` with the wanted recall.

    Raises:
        UserError: as `recall_by_share`; or `recall` outside (0, 1].
    """
    if not 0 < recall <= 1:
        raise UserError(f"recall must lie in (0, 1], not {recall}")
    shares, reached = recall_by_share(probs, labels, uncertainty, threshold)
    return float(shares[np.argmax(reached >= recall - 1e-12)])


def ood_auroc(uncertainty_in, uncertainty_out) -> float:
    """Probability that a foreign example (T',) is more uncertain than one of the test set (T,); ties half.

    Raises `UserError` for empty or non-finite arrays.
    """
    inside, outside = (_uncertainty(u, np.size(u)) for u in (uncertainty_in, uncertainty_out))
    foreign = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(foreign, np.concatenate([inside, outside])))


def of_mistakes(right, uncertainty) -> dict[str, float | None]:
    """Mean uncertainty of `right` (T,) predictions and of `wrong` ones, and the `auroc` with which it tells
    the wrong ones; None where there are none. Raises `UserError` as `ood_auroc`."""
    of_right, of_wrong = np.asarray(uncertainty)[right], np.asarray(uncertainty)[~np.asarray(right)]
    return {
        "right": float(of_right.mean()) if len(of_right) else None,
        "wrong": float(of_wrong.mean()) if len(of_wrong) else None,
        "auroc": ood_auroc(of_right, of_wrong) if len(of_right) and len(of_wrong) else None,
    }


def bootstrap(
    score: Score, num_examples: int, *, seed: int, replicates: int = 1000, groups=None
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals over test examples, or over whole groups of them.

    A replicate in which a score is undefined does not count for it; with fewer than half of them there is no
    interval.

    Args:
        score: how often each example was drawn, (T,) ints -> scores by name: `weighted_classification`,
            or `weighted_regression` of `regression_scores`.
        groups: (T,) of any kind, equal for examples that belong together (one patient), or None.

    Raises:
        UserError: fewer than two examples or groups, groups of another length, no replicate.
    """
    if groups is not None and np.shape(groups) != (num_examples,):
        raise UserError(f"groups need {num_examples} entries, one an example, got {np.shape(groups)}")
    index = np.arange(num_examples) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(index.max(initial=-1)) + 1
    if count < 2 or replicates < 1:
        raise UserError(f"a bootstrap needs two examples (groups), one replicate; got {count}, {replicates}")
    rng, found = np.random.default_rng(seed), {}
    for _ in range(replicates):
        counts = np.bincount(rng.integers(count, size=count), minlength=count)[index]
        for name, value in score(counts).items():
            found.setdefault(name, []).append(value)
    kept = {name: values for name, values in found.items() if 2 * len(values) >= replicates}
    return {name: tuple(np.quantile(values, [0.025, 0.975]).tolist()) for name, values in kept.items()}


def with_intervals(scores: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> dict:
    """One flat dict: every score, followed by its `<name>_interval` [low, high] where there is one."""
    flat = {}
    for name, value in scores.items():
        flat |= {name: value} | ({f"{name}_interval": list(intervals[name])} if name in intervals else {})
    return flat


def _check(probs, labels=None):
    """In float64, as float32 would round a threshold, and int64, as K * label overflows uint8."""
    probs, labels = metrics.check_probs(probs, "TK", labels)
    return probs.astype(np.float64), None if labels is None else labels.astype(np.int64)


def _decide(probs, threshold):
    if threshold is None:
        return probs.argmax(axis=1)
    if probs.shape[1] != 2 or not 0 <= threshold <= 1:
        raise UserError(
            f"threshold {threshold}, K = {probs.shape[1]}: it needs two classes and lies in [0, 1]"
        )
    return (probs[:, 1] >= threshold).astype(np.int64)


def _rates(matrix):
    """Scores of decisions from a (K, K) table of weights, nan where undefined."""
    hit, true, decided, total = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0), matrix.sum()
    one = (lambda rates: rates[1]) if len(matrix) == 2 else np.mean
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hit / true
        return {
            "accuracy": hit.sum() / total,
            "balanced_accuracy": recall.mean(),
            "recall": one(recall),
            "precision": one(hit / decided),
            "f1": one(2 * hit / (true + decided)),
            "specificity": one((total - true - decided + hit) / (total - true)),
        }


def _areas(score, positive):
    """Weights -> (AUROC, average precision), nan where undefined; sorted once, ties taken together."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)  # of every group of equal scores
    positive = positive[order]

    def areas(weights):
        weights = weights[order]
        true = np.cumsum(weights * positive)[last]
        count = np.cumsum(weights)[last]
        false = count - true
        with np.errstate(invalid="ignore", divide="ignore"):
            rise = np.diff(true, prepend=0)
            auroc = rise @ (false[-1] - (false + np.append(0, false[:-1])) / 2) / (true[-1] * false[-1])
            precision = rise @ (true / np.maximum(count, metrics.TINY)) / true[-1]
        return auroc, precision

    return areas


def _bin(confidence):
    return np.searchsorted(np.linspace(0, 1, _BINS + 1)[1:-1], confidence, side="left")


def _uncertainty(values, count):
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (count,) or not count or not np.isfinite(values).all():
        raise UserError(f"uncertainty needs {count or 'some'} finite numbers, one an example")
    return values
