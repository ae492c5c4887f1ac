"""The evaluation's report: exact tables, every picture on ordinary and awkward input, one page of it all."""

import io
import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from scipy.special import softmax

from bnn_jax import metrics, regression_scores, scores, style
from bnn_jax.report import evaluation, judgement

pytestmark = pytest.mark.filterwarnings("error")
NAMES = ["normal", "a $ name <b> that is rather long"]


def case(num_classes=2, count=60, seed=0):
    """(labels, probs (T, K), aleatoric, epistemic) of five draws that know something."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    logits = 1.5 * np.eye(num_classes)[labels] + rng.normal(size=(count, num_classes))
    draws = softmax(logits + 0.5 * rng.normal(size=(5, count, num_classes)), axis=-1)
    return labels, draws.mean(0), *metrics.uncertainty(draws)[1:]


def judged(num_classes=2, threshold=0.4):
    """(results, evidence) with everything in them."""
    labels, probs, aleatoric, epistemic = case(num_classes)
    threshold = threshold if num_classes == 2 else None
    values = scores.classification(probs, labels, threshold)
    intervals = {name: (value - 0.1, value + 0.1) for name, value in values.items()}
    damaged = {
        f"blur {i}": [{"severity": s, "accuracy": 0.9 / s, "nll": 0.1 * s} for s in (2, 1)] for i in "ab"
    }
    results = {
        **scores.with_intervals(values, intervals),
        "interval": "95 % bootstrap interval over patients",
        **({} if threshold is None else {"threshold": threshold, "threshold_rule": "recall 0.9 there"}),
        "temperature": 1.25,
        "nll_scaled": 0.3,
        "referral_uncertainty": 0.61,
        "referral_share": 0.1,
        "confusion": scores.confusion(probs, labels, threshold).tolist(),
        "referral": scores.referral(probs, labels, aleatoric + epistemic, threshold=threshold),
        "ood": {"digits": {"auroc": 0.8, "auroc_interval": [0.7, 0.9], "num_examples": 30}},
        "corruptions": damaged,
        "data": {"description": "some <data>", "num_test": 60},
        "config": {"seed": 0},
        "environment": {"jax": "1"},
    }
    images = np.random.default_rng(0).random((60, 8, 8))
    evidence = evaluation.Evidence(
        task="classification",
        labels=labels,
        probs=probs,
        aleatoric=aleatoric,
        epistemic=epistemic,
        images=images,
        ids=[f"folder/image {i}.png" for i in range(60)],
        class_names=NAMES if num_classes == 2 else None,
        threshold=threshold,
        probs_scaled=scores.scale(probs, 1.25),
        ood={"digits": 2 * epistemic[:30]},
        corruptions=damaged,
    )
    return results, evidence


def regression():
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(5, 40)), rng.uniform(0.5, 1, size=(5, 40))
    y = means[0] + 3 * rng.normal(size=40)
    return regression_scores.regression(means, variances, y), evaluation.Evidence(
        "regression", means=means, variances=variances, y=y, unit="1000 $", epistemic=means.var(0)
    )


def written(folder):
    return (folder / "evaluation.html").read_text(encoding="utf-8"), {
        path.stem for path in (folder / "evaluation").glob("*.png")
    }


# the page


BINARY = {"confusion", "operating", "reliability", "referral", "entropy", "uncertain", "wrong"}
OUTSIDE = {"ood", "corruptions"}


def test_a_page_of_everything(tmp_path):
    results, evidence = judged()
    json.dumps(results, allow_nan=False)
    evaluation.write(tmp_path, results, evidence)
    page, pictures = written(tmp_path)
    assert pictures == BINARY | OUTSIDE
    assert page.count('src="data:image/png;base64,') == len(pictures)
    assert not re.search(r"https?://|<link|@import|url\(", page)
    assert "some &lt;data&gt;: 60 test examples." in page
    assert "<td>0.800 (0.700 to 0.900)</td><td>30</td>" in page
    assert "<li>Interval: 95 % bootstrap interval over patients.</li>" in page
    assert "on the probability of class 1: recall 0.9 there" in page
    assert "the most uncertain 10 % of the validation data" in page


def test_a_page_of_many_classes(tmp_path):
    evaluation.write(tmp_path, *judged(num_classes=5))
    assert written(tmp_path)[1] == (BINARY | OUTSIDE) - {"operating"}


def test_a_page_of_the_least(tmp_path):
    """Probabilities of one class's examples, all right, and nothing else: no failure, no empty picture."""
    evidence = evaluation.Evidence("classification", np.zeros(3, int), np.tile([0.9, 0.1], (3, 1)))
    evaluation.write(tmp_path, {"accuracy": 1.0}, evidence)
    assert written(tmp_path)[1] == {"confusion", "reliability"}
    results, evidence = judged()
    sure = np.eye(2)[evidence.labels]
    evaluation.write(
        tmp_path / "sure", results, evidence._replace(probs=sure, threshold=0.5, ood={}, corruptions={})
    )
    assert written(tmp_path / "sure")[1] == BINARY - {"wrong"}


def test_a_page_of_a_regression(tmp_path):
    results, evidence = regression()
    evaluation.write(tmp_path, results, evidence._replace(ood={"far": 3 * evidence.epistemic}))
    page, pictures = written(tmp_path)
    assert pictures == {"predicted", "coverage", "ood"}
    assert f'<th scope="row">RMSE ↓</th><td>{results["rmse"]:.3f}</td><td>-</td>' in page


# tables


def test_score_rows_exactly():
    results = {"nll": 0.5, "accuracy": 0.9, "accuracy_interval": [0.85, 0.94], "rmse": 1234.5, "mae": 0.00123}
    assert evaluation.score_rows(results) == [
        ["score", "value", "95 % interval"],
        ["accuracy ↑", "0.900", "0.850 to 0.940"],
        ["NLL, nats ↓", "0.500", "-"],
        ["RMSE ↓", "1.23e+03", "-"],
        ["mean absolute error ↓", "0.00123", "-"],
    ]
    scaled = evaluation.score_rows({"accuracy": 0.9, "nll": 0.5, "nll_scaled": 0.4})
    assert [row[-1] for row in scaled] == ["after temperature scaling", "-", "0.400"]


def test_referral_rows_exactly():
    records = [{"referred": 0.05, "answered": 95, "accuracy": 0.9, "recall": 1.0}]
    assert evaluation.referral_rows(records) == [
        ["referred", "answered", "accuracy", "recall", "precision", "balanced accuracy"],
        ["5 %", "95", "0.900", "1.000", "-", "-"],
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_console_fits_and_names_threshold_and_referral(width):
    console = Console(file=io.StringIO(), width=width)
    console.print(evaluation.console(judged()[0]))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for words in ("Threshold 0.400", "Temperature 1.250", "answered", "50 %", "balanced accuracy"):
        assert words in text


@pytest.mark.parametrize(("rhat", "told"), [(1.02, "draws (median)."), (1.3, "they have not met: draw more")])
def test_chains_that_have_not_met_are_named(rhat, told):
    chains = {"rhat_function_median": rhat, "rhat_function_q95": 1.4, "ess_function_median": 51.0}
    console = Console(file=io.StringIO(), width=200)
    console.print(evaluation.console(judged()[0] | chains | {"num_chains": 2}))
    text = console.file.getvalue()
    assert f"Predictions of 2 chains: R-hat {rhat:.3f} (median), 1.400 (95 %), worth 51.000 draws" in text
    assert told in text


# pictures


def figures():
    """Every picture on ordinary input, then on awkward input, by name."""
    labels, probs, aleatoric, epistemic = case()
    total, p1 = aleatoric + epistemic, probs[:, 1]
    curve = scores.risk_coverage(probs, labels, total)
    right = np.eye(2)[labels]
    random = np.random.default_rng(0)
    ones = np.ones(6)
    damaged = {
        f"corruption of a long name {i}": [{"severity": 1, "accuracy": 0.5, "nll": 1.0}] for i in range(9)
    }
    return {
        "confusion": lambda: judgement.confusion([[5, 1], [0, 9]], NAMES),
        "confusion, many, one empty": lambda: judgement.confusion(np.diag([*range(12)]), ["class"] * 12),
        "operating": lambda: judgement.operating(labels, p1, 0.4, NAMES[1]),
        "operating, no alarm": lambda: judgement.operating(labels, p1, 1.0, NAMES[1]),
        "referral": lambda: judgement.referral(scores.referral(probs, labels, total), *curve),
        "referral, no error": lambda: judgement.referral(
            scores.referral(right, labels, total), *scores.risk_coverage(right, labels, total)
        ),
        "foreign": lambda: judgement.foreign(epistemic, {"a": 2 * epistemic, "b": ones}, "entropy (nats)"),
        "foreign, one draw": lambda: judgement.foreign(0 * ones, {"a": 0 * ones}, "entropy (nats)"),
        "corruptions": lambda: judgement.corruptions(
            judged()[0]["corruptions"], {"accuracy": 1.0, "nll": 0.1}
        ),
        "corruptions, nine": lambda: judgement.corruptions(damaged, {}),
        "predicted": lambda: judgement.predicted(ones * 2, ones, ones, 3 * ones, "1000 $"),
        "predicted, all outside": lambda: judgement.predicted(
            random.normal(size=900), *np.zeros((3, 900)), ""
        ),
        "coverage": lambda: judgement.coverage(random.random(30)),
        "coverage, none inside": lambda: judgement.coverage(np.ones(5)),
    }


@pytest.mark.parametrize("name", figures())
def test_picture_draws_with_labels(name):
    figure = style.styled(lambda: figures()[name]())()
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), dpi=40)
    for axes in figure.axes:
        assert axes.get_xlabel() or any(o.get_xlabel() for o in axes.get_shared_x_axes().get_siblings(axes))
        assert axes.get_ylabel()
        shown = [tick.get_text() for tick in axes.get_xticklabels()]
        assert not any("mathdefault" in text for text in shown)  # the style shows text as it is


@pytest.mark.parametrize("shape", [(1, 8, 8), (7, 8, 8, 3)])
def test_gallery_shows_every_image_with_its_text(shape):
    titles = [f"image {i}" for i in range(shape[0])]
    figure = judgement.gallery(np.random.default_rng(0).random(shape), titles, "headline")
    assert [axes.get_title() for axes in figure.axes if axes.images] == titles


def gallery_titles(results, evidence):
    """Gallery -> the text of each of its images."""
    shown = [
        figure for _, _, figures, _ in evaluation._classification(results, evidence) for figure in figures
    ]
    return {name: [axes.get_title() for axes in figure.axes if axes.images] for name, _, figure in shown}


def test_galleries_hold_the_most_uncertain_and_the_worst_errors():
    results, evidence = judged()
    probs = np.tile([0.9, 0.1], (60, 1))
    probs[3], probs[6] = (0.2, 0.8), (0.995, 0.005)
    labels = np.zeros(60, int)
    labels[[6, 8]] = 1
    aleatoric = np.zeros(60)
    aleatoric[5] = 1
    changed = evidence._replace(
        probs=probs, labels=labels, aleatoric=aleatoric, epistemic=np.zeros(60), threshold=None
    )
    found = gallery_titles(results, changed)
    long = style.shorten(NAMES[1], 20)
    assert found["uncertain"][0] == "true: normal\ndecided: normal, p = 0.90\nimage 5.png"
    assert found["wrong"] == [
        f"true: {long}\ndecided: normal, p > 0.99\nimage 6.png",
        f"true: {long}\ndecided: normal, p = 0.90\nimage 8.png",
        f"true: normal\ndecided: {style.shorten(NAMES[1], 16)}, p = 0.80\nimage 3.png",
    ]


def test_galleries_show_the_decision_at_the_threshold():
    results, evidence = judged()
    probs, labels = np.tile([0.7, 0.3], (60, 1)), np.zeros(60, int)
    changed = evidence._replace(probs=probs, labels=labels, threshold=0.3)
    first = gallery_titles(results, changed)["wrong"][0]
    assert first == f"true: normal\ndecided: {style.shorten(NAMES[1], 16)}, p = 0.30\nimage 0.png"


def test_the_threshold_is_marked_where_the_scores_have_it():
    labels, probs, *_ = case()
    found = scores.classification(probs, labels, 0.4)
    left, right = judgement.operating(labels, probs[:, 1], 0.4, "b").axes
    marks = [next(line for line in axes.lines if line.get_marker() == "D") for axes in (left, right)]
    shown = f"ROC: recall {found['recall']:.2f}, specificity {found['specificity']:.2f} at the threshold"
    assert left.get_title() == shown
    (alarm,), (recall,) = marks[0].get_data()
    assert (1 - alarm, recall) == pytest.approx((found["specificity"], found["recall"]))
    (recall,), (precision,) = marks[1].get_data()
    assert (recall, precision) == pytest.approx((found["recall"], found["precision"]))


def test_coverage_curve_passes_through_the_scores():
    found, evidence = regression()
    level = regression_scores.interval_level(evidence.means, evidence.variances, evidence.y)
    (axes,) = judgement.coverage(level).axes
    mark = next(line for line in axes.lines if line.get_marker() == "D")
    assert list(mark.get_ydata()) == pytest.approx([found[f"coverage_{c}"] for c in (50, 90, 95)])


@pytest.mark.parametrize(
    ("text", "expected"), [("abc", "abc"), ("abcdefgh", "abcdefgh"), ("abcdefghi", "abc…fghi"), (7, "7")]
)
def test_shorten(text, expected):
    assert style.shorten(text, 8) == expected
