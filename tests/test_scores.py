"""Scores against scikit-learn, hand-made cases, closed forms and normal theory."""

import json
from math import log, sqrt

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from bnn_jax import metrics, scores
from bnn_jax.types import UserError


def random_case(num_classes, count=300, seed=0, rounded=True):
    """Probabilities that know something; rounded ones hold many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=count)
    probs = softmax(rng.normal(size=(count, num_classes)) + np.eye(num_classes)[labels], axis=1)
    if rounded:
        probs = np.round(probs, 1) + 1e-3
    return probs / probs.sum(axis=1, keepdims=True), labels


def binary(p1):
    return np.stack([1 - np.asarray(p1), p1], axis=1)


def by_sklearn(probs, labels, decided, weights):
    """The scores that scikit-learn has, by our names."""
    classes = range(probs.shape[1])
    two = len(classes) == 2
    given = dict(sample_weight=weights)
    average = dict(average="binary" if two else "macro", **given)
    one_hot = np.eye(len(classes))[labels]
    specificity = [sk.recall_score(labels == k, decided == k, pos_label=False, **given) for k in classes]
    ranked = (labels, probs[:, 1]) if two else (one_hot, probs)
    return {
        "accuracy": sk.accuracy_score(labels, decided, **given),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, decided, **given),
        "recall": sk.recall_score(labels, decided, **average),
        "precision": sk.precision_score(labels, decided, **average),
        "f1": sk.f1_score(labels, decided, **average),
        "specificity": specificity[1] if two else np.mean(specificity),
        "auroc": sk.roc_auc_score(*ranked, **given),
        "average_precision": sk.average_precision_score(*ranked, **given),
        "nll": sk.log_loss(labels, probs, labels=classes, **given),
        "brier": sum(sk.brier_score_loss(labels == k, probs[:, k], **given) for k in classes),
    }


# classification


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("num_classes", "threshold"), [(2, None), (2, 0.3), (5, None)])
def test_scores_are_those_of_sklearn(num_classes, threshold, weighted, rounded):
    probs, labels = random_case(num_classes, rounded=rounded)
    decided = probs.argmax(1) if threshold is None else probs[:, 1] >= threshold
    weights = np.random.default_rng(1).integers(4, size=300) if weighted else np.ones(300)
    found = scores.classification(probs, labels, threshold, weights)
    for name, value in by_sklearn(probs, labels, decided.astype(int), weights).items():
        assert found.pop(name) == pytest.approx(value, rel=1e-12), name
    assert set(found) == {"ece", "ece_classwise"}


def test_scores_are_those_of_metrics_and_plain_floats():
    probs, labels = random_case(5)
    found = scores.classification(probs, labels)
    for name in ("accuracy", "nll", "brier", "ece"):
        assert found[name] == pytest.approx(getattr(metrics, name)(probs, labels), rel=1e-12), name
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("num_classes", [2, 5])
def test_a_weight_is_a_repetition(num_classes):
    probs, labels = random_case(num_classes)
    counts = np.random.default_rng(2).integers(3, size=len(labels))
    repeated = scores.classification(np.repeat(probs, counts, axis=0), np.repeat(labels, counts))
    assert scores.classification(probs, labels, sample_weight=counts) == pytest.approx(repeated)


def test_ece_by_class_by_hand():
    """Predicted 0.9 and 0.1 for all four points, of which one is class 1: both classes are 0.15 off."""
    found = scores.classification(binary([0.1] * 4), [0, 0, 0, 1])
    assert found["ece_classwise"] == pytest.approx(0.15)
    assert scores.classification([[0.5, 0.5]], [1])["ece_classwise"] == 0.5  # one bin, but two classes
    three = scores.classification([[0.6, 0.25, 0.15]] * 2, [0, 1])
    assert three["ece_classwise"] == pytest.approx((0.1 + 0.25 + 0.15) / 3)


def test_a_confidence_on_the_edge_of_a_bin_lies_where_metrics_has_it():
    edge = np.linspace(0, 1, 16)[10]
    for neighbour in (edge - 0.01, edge + 0.01):
        probs, labels = binary([edge, neighbour]), np.array([0, 1])
        assert scores.classification(probs, labels)["ece"] == pytest.approx(metrics.ece(probs, labels))


def test_undefined_scores_are_left_out():
    without_class_1 = scores.classification(binary([0.1, 0.7, 0.2]), [0, 0, 0])
    missing = {"recall", "balanced_accuracy", "auroc", "average_precision"}
    assert missing.isdisjoint(without_class_1)
    assert (without_class_1["precision"], without_class_1["f1"]) == (0, 0)
    assert without_class_1["specificity"] == pytest.approx(2 / 3)
    only_class_1 = scores.classification(binary([0.1, 0.7, 0.2]), [1, 1, 1])
    assert {"specificity", "auroc"}.isdisjoint(only_class_1)
    assert only_class_1["recall"] == pytest.approx(1 / 3)
    never_decided = scores.classification(binary([0.1, 0.2]), [0, 1])
    assert "precision" not in never_decided
    assert never_decided["f1"] == 0
    three = scores.classification([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2]], [0, 1])
    assert {"recall", "auroc", "average_precision", "precision", "f1"}.isdisjoint(three)
    assert three["accuracy"] == 1


def test_confusion_by_hand():
    probs = binary([0.1, 0.5, 0.6, 0.7, 0.4])
    labels = np.array([0, 0, 0, 1, 1], np.uint8)
    np.testing.assert_array_equal(scores.confusion(probs, labels), [[2, 1], [1, 1]])
    np.testing.assert_array_equal(scores.confusion(probs, labels, threshold=0.4), [[1, 2], [0, 2]])
    many = np.arange(200, dtype=np.uint8)  # 200 * 199 does not fit into uint8
    np.testing.assert_array_equal(scores.confusion(np.eye(200), many), np.eye(200))
    assert scores.classification(np.eye(200), many)["accuracy"] == 1


def test_a_point_on_the_threshold_is_class_1_in_float32_too():
    probs = binary(np.array([0.3], np.float32))
    below = float(probs[0, 1])
    np.testing.assert_array_equal(scores.confusion(probs, [1], below), [[0, 0], [0, 1]])
    np.testing.assert_array_equal(
        scores.confusion(probs, [1], float(np.nextafter(below, 1))), [[0, 0], [1, 0]]
    )


# thresholds


def test_youden_by_hand_halfway_between_neighbours():
    probs, labels = binary([0.1, 0.3, 0.4, 0.8, 0.9]), np.array([0, 0, 1, 1, 1])
    assert scores.choose_threshold(probs, labels, "youden") == pytest.approx(0.35)
    assert scores.confusion(probs, labels, 0.35).tolist() == [[2, 0], [0, 3]]


def test_of_equally_good_thresholds_youden_takes_more_recall():
    """J = 1/2 both at 0.85 (recall 1/2, no false alarm) and at 0.35 (recall 1, one false alarm of two)."""
    probs, labels = binary([0.2, 0.5, 0.4, 0.9]), np.array([0, 0, 1, 1])
    assert scores.choose_threshold(probs, labels, "youden") == pytest.approx((0.2 + 0.4) / 2)


def test_tied_scores_stay_together():
    probs, labels = binary([0.2, 0.6, 0.6, 0.6]), np.array([0, 0, 1, 1])
    assert scores.choose_threshold(probs, labels, "youden") == pytest.approx(0.4)
    assert scores.choose_threshold(probs, labels, ("recall", 0.5)) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("recall", "expected"), [(0.2, 0.85), (0.25, 0.85), (0.26, 0.6), (0.75, 0.35), (0.76, 0.05), (1, 0.05)]
)
def test_threshold_of_a_recall_by_hand(recall, expected):
    probs, labels = binary([0.1, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9]), np.array([1, 0, 1, 0, 1, 0, 1])
    threshold = scores.choose_threshold(probs, labels, ("recall", recall))
    assert threshold == pytest.approx(expected)
    assert scores.classification(probs, labels, threshold)["recall"] >= recall


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.9, 0.95, 0.99, 1.0])
def test_no_larger_threshold_has_the_recall(recall):
    probs, labels = random_case(2, rounded=False)
    threshold = scores.choose_threshold(probs, labels, ("recall", recall))
    larger = np.sort(probs[:, 1][probs[:, 1] > threshold])[1]  # leaves out the lowest score included
    assert scores.classification(probs, labels, threshold)["recall"] >= recall
    assert scores.classification(probs, labels, larger)["recall"] < recall


def test_youden_has_the_largest_j_of_all_thresholds():
    probs, labels = random_case(2)
    gain = lambda t: sum(scores.classification(probs, labels, t)[name] for name in ("recall", "specificity"))
    best = gain(scores.choose_threshold(probs, labels, "youden"))
    assert best == pytest.approx(max(gain(t) for t in np.linspace(0, 1, 1001)))


def test_neighbouring_floats_have_no_middle():
    probs = binary([0.5, np.nextafter(0.5, 1)])
    threshold = scores.choose_threshold(probs, [0, 1], "youden")
    assert scores.classification(probs, [0, 1], threshold)["accuracy"] == 1


# temperature


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_temperature_is_recovered(true):
    """Within five standard deviations of the maximum-likelihood estimate of 1/T, from its information."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(4000, 3))
    probs = softmax(logits / true, axis=1)
    labels = (rng.random((4000, 1)) > probs.cumsum(axis=1)).sum(axis=1)
    information = np.sum(np.sum(probs * logits**2, 1) - np.sum(probs * logits, 1) ** 2)
    found = scores.temperature(softmax(logits, axis=1), labels)
    assert abs(1 / found - 1 / true) < 5 / sqrt(information)


def test_temperature_is_where_the_slope_of_the_nll_vanishes():
    probs, labels = random_case(4, rounded=False)
    best = scores.temperature(probs, labels)
    nll = [metrics.nll(scores.scale(probs, best * factor), labels) for factor in (0.99, 1, 1.01)]
    assert nll[1] < min(nll[0], nll[2])


def test_scaling_by_hand_and_its_limits():
    probs = binary([0.2, 0.5])
    np.testing.assert_allclose(scores.scale(probs, 1), probs)
    np.testing.assert_allclose(scores.scale(probs, 0.5), binary([0.04 / 0.68, 0.5]))
    np.testing.assert_allclose(scores.scale([[1.0, 0.0]], 2.0), [[1, 0]], atol=1e-18)  # no nan from log 0
    assert scores.temperature(binary([0.2, 0.9]), [0, 1]) == pytest.approx(1 / 20, rel=1e-3)  # all right
    assert scores.temperature(binary([0.0, 1.0]), [0, 1]) == pytest.approx(1 / 20, rel=1e-3)  # and sure


# referral


def errors_case(wrong):
    """Class 1 is decided for all; `wrong` says where the label is 0."""
    return binary(np.full(len(wrong), 0.9)), 1 - np.asarray(wrong, int)


def test_aurc_of_perfect_random_and_worst_order():
    """T = 20, 5 errors: the mean over n of max(0, n - 15) / n, of 1/4, and of min(5, n) / n."""
    probs, labels = errors_case(np.repeat([0, 1], [15, 5]))
    n = np.arange(1, 21)
    for uncertainty, risk in (
        (np.arange(20.0), np.maximum(0, n - 15) / n),
        (np.zeros(20), np.full(20, 0.25)),
        (-np.arange(20.0), np.minimum(5, n) / n),
    ):
        coverage, found, aurc = scores.risk_coverage(probs, labels, uncertainty)
        np.testing.assert_allclose(coverage, n / 20)
        np.testing.assert_allclose(found, risk)
        assert aurc == pytest.approx(risk.mean())


def test_ties_have_the_mean_over_random_orders():
    """Two tied groups, shuffled 2000 times: within five standard errors of the mean."""
    rng = np.random.default_rng(0)
    probs, labels = errors_case(rng.random(12) < 0.4)
    tied = np.repeat([0.0, 1.0], 6)
    expected = scores.risk_coverage(probs, labels, tied)[1]
    shuffled = [scores.risk_coverage(probs, labels, tied + 0.5 * rng.random(12))[1] for _ in range(2000)]
    error = np.std(shuffled, axis=0) / sqrt(2000)
    assert (np.abs(np.mean(shuffled, axis=0) - expected) <= 5 * error + 1e-12).all()


def test_referral_by_hand():
    """Ten points; the two errors are the most uncertain but one."""
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1, 0])
    probs = binary([0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.4, 0.3, 0.2])
    records = scores.referral(probs, labels, np.arange(10), fractions=(0, 0.1, 0.3, 0.9))
    assert records[0] == {
        "referred": 0.0,
        "answered": 10,
        "accuracy": pytest.approx(0.8),
        "recall": pytest.approx(0.6),
        "precision": 1,
        "balanced_accuracy": pytest.approx(0.8),
    }
    assert [r["answered"] for r in records] == [10, 9, 7, 1]
    assert records[1]["recall"] == pytest.approx(0.6)
    assert records[2]["recall"] == records[2]["accuracy"] == 1
    assert records[3] == {"referred": 0.9, "answered": 1, "accuracy": 1.0}  # one negative: no recall
    lower = scores.referral(probs, labels, np.arange(10), (0.1,), threshold=0.35)[0]
    assert lower["recall"] == pytest.approx(4 / 5)
    assert scores.referral(probs, labels, np.arange(10))[5]["answered"] == 5


def test_a_tie_at_the_cut_counts_in_part():
    """One sure right point and three tied ones, one of them wrong; one is referred: 1 + 2 * 2/3 right."""
    probs, labels = errors_case([0, 0, 0, 1])
    (record,) = scores.referral(probs, labels, [0.0, 1.0, 1.0, 1.0], (0.25,))
    assert record["answered"] == 3
    assert record["accuracy"] == pytest.approx((1 + 4 / 3) / 3)
    (none,) = scores.referral(probs, labels, [0.0, 0.0, 0.0, 1.0], (0.25,))
    assert none["accuracy"] == 1


def test_referral_with_all_equal_changes_nothing():
    probs, labels = random_case(2)
    records = scores.referral(probs, labels, np.zeros(300))
    for name in ("accuracy", "recall", "precision", "balanced_accuracy"):
        values = [record[name] for record in records]
        assert values == pytest.approx(6 * values[:1])


def test_referral_counts_exactly():
    probs, labels = errors_case(np.zeros(100))
    answered = [scores.referral(probs, labels, np.arange(100), (k / 100,))[0]["answered"] for k in range(100)]
    assert answered == list(range(100, 0, -1))


def test_ood_auroc_by_hand():
    assert scores.ood_auroc([0.1, 0.2], [0.3, 0.4, 0.5]) == 1
    assert scores.ood_auroc([0.1, 0.3], [0.3, 0.0]) == pytest.approx((1 + 0.5 + 0 + 0) / 4)


# intervals


def test_interval_of_a_mean_is_that_of_normal_theory():
    """Both ends within five standard errors of a simulated quantile, and Edgeworth's term of the skewness."""
    values, replicates = np.random.default_rng(0).normal(size=500), 4000
    mean = lambda counts: {"mean": float(counts @ values / counts.sum())}
    interval = scores.bootstrap(mean, 500, seed=1, replicates=replicates)["mean"]
    sd = values.std() / sqrt(500)
    density = np.exp(-(1.96**2) / 2) / sqrt(2 * np.pi)  # of the normal law at its 97.5 % quantile
    skewness = np.mean((values - values.mean()) ** 3) / values.std() ** 3
    bound = 5 * sqrt(0.025 * 0.975 / replicates) / density + abs(skewness) * (1.96**2 - 1) / 6 / sqrt(500)
    np.testing.assert_allclose(interval, values.mean() + sd * np.array([-1.96, 1.96]), atol=bound * sd)


def test_groups_are_drawn_whole():
    """Of ten groups of 20 equal values each: the interval of ten values, exactly."""
    group = np.repeat([f"patient {i}" for i in range(10)], 20)
    values = np.random.default_rng(0).normal(size=10)
    mean_of = lambda values: lambda counts: {"mean": float(counts @ values / counts.sum())}
    together = scores.bootstrap(mean_of(np.repeat(values, 20)), 200, seed=0, groups=group)
    assert together["mean"] == pytest.approx(scores.bootstrap(mean_of(values), 10, seed=0)["mean"])


def test_a_replicate_equals_the_score_of_the_drawn_examples():
    probs, labels = random_case(3)
    first = []
    scores.bootstrap(lambda counts: first.append(counts) or {}, 300, seed=4, replicates=1)
    drawn = np.repeat(np.arange(300), first[0])
    expected = scores.classification(probs[drawn], labels[drawn])
    assert scores.weighted_classification(probs, labels)(first[0]) == pytest.approx(expected)


def test_undefined_replicates_do_not_count():
    probs, labels = binary([0.9, 0.1, 0.2]), np.array([1, 0, 0])  # class 1 is drawn in 1 - (2/3)^3 = 70 %
    intervals = scores.bootstrap(scores.weighted_classification(probs, labels), 3, seed=0)
    assert intervals["recall"] == (1.0, 1.0)
    calls = iter(range(100))
    rare = lambda counts: {"always": 1.0} | ({"rare": 1.0} if next(calls) % 5 < 2 else {})
    assert set(scores.bootstrap(rare, 3, seed=0, replicates=100)) == {"always"}


def test_bootstrap_is_a_function_of_the_seed():
    score = scores.weighted_classification(*random_case(2))
    first, again, other = (scores.bootstrap(score, 300, seed=s, replicates=50) for s in (1, 1, 2))
    assert first == again != other


def test_with_intervals_is_flat():
    assert scores.with_intervals({"a": 0.5, "b": 1.0}, {"a": (0.4, 0.6)}) == {
        "a": 0.5,
        "a_interval": [0.4, 0.6],
        "b": 1.0,
    }


# mistakes

PROBS, LABELS = random_case(2, count=6)
THREE = random_case(3, count=6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.classification(2 * PROBS, LABELS), "sum to 1"),
        (lambda: scores.classification(*THREE, threshold=0.5), "two classes"),
        (lambda: scores.classification(PROBS, LABELS, threshold=1.5), "0, 1"),
        (lambda: scores.classification(PROBS, LABELS, sample_weight=np.ones(5)), "6 finite"),
        (lambda: scores.classification(PROBS, LABELS, sample_weight=np.zeros(6)), "not all 0"),
        (lambda: scores.classification(PROBS, LABELS, sample_weight=-np.ones(6)), "negative"),
        (lambda: scores.confusion(PROBS, LABELS[:3]), "6 integers"),
        (lambda: scores.choose_threshold(*THREE, "youden"), "two classes"),
        (lambda: scores.choose_threshold(PROBS, 0 * LABELS, "youden"), "all 6 labels are 0"),
        (lambda: scores.choose_threshold(PROBS, LABELS, ("recall", 0.0)), "0 < r"),
        (lambda: scores.choose_threshold(PROBS, LABELS, ("recall", 1.1)), "0 < r"),
        (lambda: scores.choose_threshold(PROBS, LABELS, ("recall", float("nan"))), "0 < r"),
        (lambda: scores.choose_threshold(PROBS, LABELS, "f1"), "youden"),
        (lambda: scores.choose_threshold(PROBS, LABELS, "recall"), "youden"),
        (lambda: scores.choose_threshold(PROBS, LABELS, ("youden", 0.9)), "youden"),
        (lambda: scores.temperature(PROBS, LABELS[:2]), "6 integers"),
        (lambda: scores.scale(PROBS, 0.0), "positive"),
        (lambda: scores.risk_coverage(PROBS, LABELS, np.ones(5)), "uncertainty"),
        (lambda: scores.referral(PROBS, LABELS, np.full(6, np.nan)), "uncertainty"),
        (lambda: scores.referral(PROBS, LABELS, np.ones(6), (1.0,)), r"\[0, 1\)"),
        (lambda: scores.ood_auroc([], [1.0]), "uncertainty"),
        (lambda: scores.bootstrap(lambda c: {}, 1, seed=0), "two examples.* got 1"),
        (lambda: scores.bootstrap(lambda c: {}, 5, seed=0, groups=[0] * 5), "groups.* got 1"),
        (lambda: scores.bootstrap(lambda c: {}, 5, seed=0, groups=[0, 1]), "5 entries"),
        (lambda: scores.bootstrap(lambda c: {}, 5, seed=0, replicates=0), "one replicate"),
    ],
)
def test_a_mistake_is_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_an_impossible_label_costs_a_finite_nll():
    assert scores.classification([[1.0, 0.0]], [1])["nll"] == pytest.approx(126 * log(2))


def test_share_for_recall_by_hand():
    """Four cases, two of them missed at a threshold of 1/2, with uncertainties 0.9 and 0.3."""
    case = np.array([0.8, 0.9, 0.4, 0.1, 0.2, 0.3])
    probs = np.stack([1 - case, case], 1)
    labels = np.array([1, 1, 1, 1, 0, 0])
    uncertainty = np.array([0.5, 0.1, 0.9, 0.3, 0.2, 0.3])
    share = lambda recall, **k: scores.share_for_recall(probs, labels, uncertainty, 0.5, recall, **k)
    assert share(0.5) == 0
    assert share(0.75) == pytest.approx(1 / 6)  # the first alone
    assert share(1.0) == pytest.approx(4 / 6)  # and 0.5, 0.3 and 0.3
    assert scores.share_for_recall(probs, labels, uncertainty, 0.05, 1.0) == 0
    # Referring that share and no more gives the recall: the doctor finds all that were referred.
    found = (case >= 0.5) | (uncertainty >= 0.9)
    assert found[labels == 1].mean() == 0.75
    shares, recall = scores.recall_by_share(probs, labels, uncertainty, 0.5)
    np.testing.assert_allclose(shares, [0, 1 / 6, 2 / 6, 4 / 6, 5 / 6, 1])
    np.testing.assert_allclose(recall, [0.5, 0.75, 0.75, 1, 1, 1])


@pytest.mark.parametrize("recall", [0.0, 1.1, np.nan])
def test_share_for_a_recall_that_is_none(recall):
    probs = np.full((2, 2), 0.5)
    with pytest.raises(UserError, match=r"recall must lie in \(0, 1\]"):
        scores.share_for_recall(probs, [0, 1], [0, 1], 0.5, recall)
    with pytest.raises(UserError, match="two classes and a case of class 1"):
        scores.share_for_recall(probs, [0, 0], [0, 1], 0.5, 0.9)


def test_the_uncertainty_of_mistakes_by_hand():
    right, uncertainty = np.array([True, False, True, False]), np.array([0.1, 0.4, 0.3, 0.2])
    told = scores.of_mistakes(right, uncertainty)  # of four pairs three have the wrong one above
    assert told == {"right": pytest.approx(0.2), "wrong": pytest.approx(0.3), "auroc": 0.75}
    none_wrong = scores.of_mistakes(right | True, uncertainty)
    assert none_wrong == {"right": pytest.approx(0.25), "wrong": None, "auroc": None}
