"""The evaluation's report: scores, pictures and examples of one trained model, in one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bnn_jax import regression_scores, scores, style
from bnn_jax.report import entropy, html, judgement, plots, tables

_TITLES = {
    "accuracy": "accuracy ↑",
    "balanced_accuracy": "balanced accuracy ↑",
    "recall": "recall (sensitivity) ↑",
    "specificity": "specificity ↑",
    "precision": "precision ↑",
    "f1": "F1 ↑",
    "auroc": "AUROC ↑",
    "average_precision": "average precision ↑",
    "nll": "NLL, nats ↓",
    "brier": "Brier ↓",
    "ece": "ECE ↓",
    "ece_classwise": "ECE by class ↓",
    "aurc": "AURC ↓",
    "rmse": "RMSE ↓",
    "mae": "mean absolute error ↓",
    "coverage_50": "coverage of 50 % intervals",
    "coverage_90": "coverage of 90 % intervals",
    "coverage_95": "coverage of 95 % intervals",
    "interval_width_95": "width of 95 % intervals ↓",
}
_SHOWN = 8  # images in a gallery
_MET = 1.05  # median R-hat from which chains have not met


class Evidence(NamedTuple):
    """What the pictures are drawn from. T test examples, K classes, D draws; what is None is not drawn."""

    task: str  # "classification" or "regression"
    labels: np.ndarray | None = None  # (T,)
    probs: np.ndarray | None = None  # (T, K) predictive mean
    aleatoric: np.ndarray | None = None  # (T,) nats, or variance
    epistemic: np.ndarray | None = None  # (T,)
    images: np.ndarray | None = None  # (T, H, W) or (T, H, W, 3) in [0, 1]
    ids: Sequence[str] | None = None  # (T,) file names
    class_names: Sequence[str] | None = None  # K
    threshold: float | None = None  # on probs[:, 1]
    probs_scaled: np.ndarray | None = None  # (T, K) after temperature scaling
    ood: Mapping[str, np.ndarray] = {}  # data set -> epistemic uncertainties
    corruptions: Mapping[str, Sequence[Mapping]] = {}  # name -> one dict a severity: severity, accuracy, nll
    means: np.ndarray | None = None  # (D, T) regression: as regression_scores.regression takes them
    variances: np.ndarray | None = None  # (D, T)
    y: np.ndarray | None = None  # (T,)
    unit: str = ""  # of y


def write(out: Path, results: Mapping[str, Any], evidence: Evidence) -> None:
    """Write `evaluation.html` to the folder `out` and every picture to `out/evaluation`.

    Args:
        results: scores by name, each with its `<name>_interval` [low, high] if there is one; further, where
            it applies: `interval` (what the intervals are, in words), `threshold` and `threshold_rule`,
            `temperature` and `<name>_scaled`, `referral_uncertainty` (nats) and `referral_share`, `confusion`
            (K, K), `referral` as `scores.referral`, `ood` data set -> {auroc, ...}, `corruptions` as in the
            evidence, `data` {description, num_train, num_test, ...}, `config`, `environment`.
        evidence: predictions on the test set. Referral and galleries order by aleatoric + epistemic.
    """
    for old in (out / "evaluation").glob("*.png"):
        old.unlink()  # of an earlier evaluation, which may have shown more
    head = html.Section("Result", "", table=score_rows(results), notes=_notes(results))
    sections = [head]
    pictures = _classification if evidence.task == "classification" else _regression
    for heading, text, figures, table in (*pictures(results, evidence), *_outside(results, evidence)):
        for name, _, figure in figures:
            style.save(figure, out / "evaluation" / f"{name}.png")
        shown = [(caption, (out / "evaluation" / f"{name}.png").read_bytes()) for name, caption, _ in figures]
        sections.append(html.Section(heading, text, shown, table))
    record = {key: results[key] for key in ("data", "config", "environment") if key in results}
    sections.append(html.Section("Settings", "What was run, and where.", table=tables.settings(record)))
    data = results.get("data", {})
    lead = f"{data.get('description', '')}: {data.get('num_test', '?')} test examples.".lstrip(": ")
    html.write(out / "evaluation.html", "How good is the model, and when does it know?", lead, sections)


def console(results: Mapping[str, Any]) -> Group:
    """Scores with intervals, threshold, temperature and referral table, to print with rich in 80 columns."""
    parts = [_rich(score_rows(results))]
    notes = Table.grid(padding=(0, 1))
    for note in _notes(results):
        notes.add_row("-", Text(note))
    parts.append(Padding(notes, (1, 0, 0, 0)))
    if results.get("referral"):
        parts.append(Padding(_rich(referral_rows(results["referral"])), (1, 0, 0, 0)))
    return Group(*parts)


def score_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Rows of score, value and interval, the header first; `<name>_scaled` beside, where there is any."""
    scaled = any(f"{name}_scaled" in results for name in _TITLES)
    header = ["score", "value", "95 % interval", *(["after temperature scaling"] if scaled else [])]
    rows = []
    for name in (name for name in _TITLES if name in results):
        low, high = results.get(f"{name}_interval") or (None, None)
        interval = "-" if low is None else f"{_three(low)} to {_three(high)}"
        rows.append([_TITLES[name], _three(results[name]), interval])
        rows[-1] += [_three(results.get(f"{name}_scaled"))] if scaled else []
    return [header, *rows]


def referral_rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of the referral table, the header first."""
    names = ("accuracy", "recall", "precision", "balanced_accuracy")
    rows = [
        [f"{100 * r['referred']:.3g} %", str(r["answered"]), *(_three(r.get(n)) for n in names)]
        for r in records
    ]
    return [["referred", "answered", *(name.replace("_", " ") for name in names)], *rows]


def _classification(results, evidence):
    """(heading, text, [(file name, caption, figure)], table or None) of every section."""
    labels, threshold, probs = evidence.labels, evidence.threshold, np.asarray(evidence.probs, np.float64)
    decided = probs.argmax(1) if threshold is None else (probs[:, 1] >= threshold).astype(int)
    names = evidence.class_names or [f"class {k}" for k in range(probs.shape[1])]
    counts = scores.confusion(probs, labels, threshold)
    figures = [("confusion", "Rows are true classes.", _draw(judgement.confusion, counts, names))]
    if probs.shape[1] == 2 and len(np.unique(labels)) == 2:
        cut = 0.5 if threshold is None else threshold
        figure = _draw(judgement.operating, labels, probs[:, 1], cut, names[1])
        figures.append(("operating", "What other thresholds would have given on the test set.", figure))
    yield "Decisions", "", figures, None
    curves = {"as trained": probs}
    if evidence.probs_scaled is not None:
        curves["scaled"] = evidence.probs_scaled
    caption = "Accuracy against confidence; scaled: after temperature scaling."
    yield (
        "Calibration",
        "Above the diagonal the model is less sure than it is right, below it is surer.",
        [("reliability", caption if len(curves) == 2 else caption[:29], plots.reliability(curves, labels))],
        None,
    )
    if evidence.aleatoric is None or evidence.epistemic is None:
        return
    total = evidence.aleatoric + evidence.epistemic
    shares = np.linspace(0, 0.6, 61)
    figure = _draw(
        judgement.referral,
        scores.referral(probs, labels, total, shares, threshold),
        *scores.risk_coverage(probs, labels, total, threshold),
    )
    yield (
        "Referral",
        "The examples of largest predictive entropy go to a doctor, the model answers the rest.",
        [("referral", "Scores of the rest, and errors against the share answered.", figure)],
        referral_rows(results["referral"]) if results.get("referral") else None,
    )
    split = entropy.split(
        {"model": evidence.aleatoric}, {"model": evidence.epistemic}, {"model": decided == labels}
    )
    yield (
        "What the model does not know",
        "The entropy of a prediction is the sum of an aleatoric part, which remains if the weights are "
        "known, and an epistemic part, the disagreement of the draws.",
        [("entropy", "Aleatoric and epistemic entropy of right and wrong predictions.", split)],
        None,
    )
    if evidence.images is not None:
        yield "Image by image", "", list(_galleries(evidence, decided, probs, total, names)), None


def _galleries(evidence, decided, probs, total, names):
    sure = probs[np.arange(len(probs)), decided]
    wrong = np.flatnonzero(decided != evidence.labels)
    uncertain = np.argsort(-total, kind="stable")[:_SHOWN]
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:_SHOWN]
    for file, chosen, headline, caption in (
        (
            "uncertain",
            uncertain,
            "The most uncertain test images",
            "The images of largest predictive entropy.",
        ),
        ("wrong", worst, "The most confident mistakes", "Wrong decisions, the most probable ones first."),
    ):
        titles = []
        for i in chosen:
            lines = [f"true: {style.shorten(names[evidence.labels[i]], 20)}"]
            lines.append(f"decided: {style.shorten(names[decided[i]], 16)}, p {_near(sure[i])}")
            if evidence.ids is not None:
                lines.append(style.shorten(Path(str(evidence.ids[i])).name, 26))
            titles.append("\n".join(lines))
        if len(chosen):
            yield file, caption, _draw(judgement.gallery, evidence.images[chosen], titles, headline)


def _regression(results, evidence):
    means, variances, y = evidence.means, evidence.variances, evidence.y
    low, high = regression_scores.mixture_interval(means, variances, 0.95)
    figure = _draw(judgement.predicted, y, np.mean(means, axis=0), low, high, evidence.unit)
    yield "Predictions", "", [("predicted", "Bars are central 95 % intervals.", figure)], None
    figure = _draw(judgement.coverage, regression_scores.interval_level(means, variances, y))
    text = "Above the diagonal the intervals are too wide, below they are too narrow."
    yield "Calibration", text, [("coverage", "Share of targets inside central intervals.", figure)], None


def _outside(results, evidence):
    """Sections on inputs that the model was not trained for."""
    if evidence.ood and evidence.epistemic is not None:
        quantity = "epistemic entropy (nats)" if evidence.task == "classification" else "epistemic variance"
        figure = _draw(judgement.foreign, evidence.epistemic, evidence.ood, quantity)
        yield (
            "Inputs of another kind",
            "AUROC is the probability that such an input has more epistemic uncertainty than a test example.",
            [("ood", "Epistemic uncertainty of the test set and of other inputs.", figure)],
            _records({name: [record] for name, record in results.get("ood", {}).items()}),
        )
    if evidence.corruptions:
        clean = {key: results[key] for key in ("accuracy", "nll") if key in results}
        figure = _draw(judgement.corruptions, evidence.corruptions, clean)
        yield (
            "Damaged images",
            "",
            [("corruptions", "Accuracy and NLL against severity.", figure)],
            _records(results.get("corruptions", {})),
        )


def _records(groups):
    """Rows from name -> list of flat dicts: the numbers they hold, or None where there are none."""
    lines = [(name, record) for name, records in groups.items() for record in records]
    keys = dict.fromkeys(k for _, r in lines for k, v in r.items() if isinstance(v, int | float))
    header = ["input", *(_TITLES.get(key, key.replace("_", " ")) for key in keys)]
    return [header, *([name, *(_cell(r, k) for k in keys)] for name, r in lines)] if lines else None


def _cell(record, key):
    low, high = record.get(f"{key}_interval") or (None, None)
    return _three(record.get(key)) + ("" if low is None else f" ({_three(low)} to {_three(high)})")


def _notes(results):
    notes = []
    if any(name.endswith("_interval") for name in results):
        notes.append(f"Interval: {results.get('interval', '95 % bootstrap interval over test examples')}.")
    if results.get("rhat_function_median") is not None:
        met = results["rhat_function_median"] < _MET
        apart = "" if met else "; they have not met: draw more before you trust this"
        notes.append(
            f"Predictions of {results['num_chains']} chains: R-hat {_three(results['rhat_function_median'])} "
            f"(median), {_three(results['rhat_function_q95'])} (95 %), worth "
            f"{_three(results['ess_function_median'])} draws (median){apart}."
        )
    if "threshold" in results:
        rule = results.get("threshold_rule", "chosen on validation data")
        text = f"Threshold {_three(results['threshold'])} on the probability of class 1"
        notes.append(f"{text}: {rule}.")
    if "temperature" in results:
        said = "too sure" if results["temperature"] > 1 else "not sure enough"
        notes.append(
            f"Temperature {_three(results['temperature'])}, from validation data: it was {said} there."
        )
    if "referral_uncertainty" in results:
        notes.append(
            f"Referral from an entropy of {_three(results['referral_uncertainty'])} nats on: "
            f"the most uncertain {100 * results['referral_share']:.3g} % of the validation data lie above."
        )
    return notes


def _rich(rows):
    header, *body = rows
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for i, title in enumerate(header):
        table.add_column(Text(title), justify="right" if i else "left", max_width=28 if not i else 18)
    for row in body:
        table.add_row(*map(Text, row))
    return table


def _three(value):
    """Three decimals, or three digits of small and of large numbers; an int as it is."""
    if value is None:
        return "-"
    if isinstance(value, int) or value == 0:
        return str(value)
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 else f"{value:.3g}"


def _near(probability):
    return "> 0.99" if probability >= 0.995 else f"= {probability:.2f}"


def _draw(figure, *args):
    return style.styled(figure)(*args)
