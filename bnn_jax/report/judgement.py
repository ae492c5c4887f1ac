"""The pictures of an evaluation: decisions, referral, foreign and damaged inputs, single images, regression.

Plain functions of NumPy arrays; `report/evaluation.py` draws them in the house style (`style`).
Colours are safe for colour-blind eyes, and no meaning rests on colour alone.

Shapes: T test examples, K classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from bnn_jax import style

_BLUE, _ORANGE, _DARK, _GREY = "#0072B2", "#D55E00", "#222222", "#9a9a9a"
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#777777")
_MARKERS = "oDs^vP<X"


def confusion(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """The confusion matrix, shaded by the share of each true class.

    Args:
        counts: (K, K) ints, rows true. class_names: K names.
    """
    counts = np.asarray(counts)
    number, names = len(counts), [style.shorten(name, 18) for name in class_names]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = 1.25 if number <= 4 else 0.8
    figure = style.canvas(max(2.2 + cell * number, 4.6), 1.6 + cell * number, "Confusion matrix")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        text = f"{count}\n{100 * share[i, j]:.0f} %" if count or number <= 4 else "0"
        tint = "white" if share[i, j] > 0.55 else _DARK if count else _GREY
        axes.text(j, i, text, ha="center", va="center", color=tint, fontsize=11 if number <= 4 else 8)
    turn = dict(rotation=35, ha="right", rotation_mode="anchor") if number > 3 else {}
    axes.set_xticks(range(number), names, **turn)
    axes.set_yticks(
        range(number), [f"{name}\n(n = {n})" for name, n in zip(names, counts.sum(1), strict=True)]
    )
    axes.set(xlabel="decided class", ylabel="true class", title="per cent of each row")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def operating(labels: np.ndarray, score: np.ndarray, threshold: float, name: str) -> Figure:
    """ROC and precision-recall curve of two classes with the decision threshold marked.

    Args:
        labels: (T,) of 0 and 1, both present. score: (T,) probability of class 1. name: of class 1.
    """
    figure = style.canvas(
        9.5, 4.9, f"Every possible threshold on the probability of {style.shorten(name, 30)}"
    )
    left, right = figure.subplots(1, 2)
    decided, positive = score >= threshold, labels == 1
    recall, alarm = decided[positive].mean(), decided[~positive].mean()
    false, true, _ = roc_curve(labels, score)
    left.plot(false, true, color=_BLUE, lw=1.8, label="model")
    left.plot([0, 1], [0, 1], color=_GREY, ls="--", lw=1, label="chance")
    mark = dict(marker="D", ms=8, color=_ORANGE, mec="white", ls="", zorder=4, clip_on=False)
    mark["label"] = f"threshold {threshold:.3g}"
    left.plot(alarm, recall, **mark)
    left.set(title=f"ROC: recall {recall:.2f}, specificity {1 - alarm:.2f} at the threshold")
    left.set(xlabel="1 - specificity (share of false alarms)", ylabel="recall (share of cases found)")
    precision, found, _ = precision_recall_curve(labels, score)
    right.plot(found[found > 0], precision[found > 0], color=_BLUE, lw=1.8, drawstyle="steps-pre")
    right.axhline(positive.mean(), color=_GREY, ls="--", lw=1)
    if decided.any():
        right.plot(recall, positive[decided].mean(), **mark)
        right.set(title=f"Precision-recall: precision {positive[decided].mean():.2f} at the threshold")
    right.set(xlabel="recall (share of cases found)", ylabel="precision (share of alarms that are right)")
    for axes in (left, right):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    figure.legend(handles=left.lines, loc="outside lower center", ncols=3)
    return figure


def referral(records: Sequence[Mapping], coverage: np.ndarray, risk: np.ndarray, aurc: float) -> Figure:
    """What is won when the most uncertain examples go to a doctor, and the risk-coverage curve.

    Args:
        records: as `scores.referral`. coverage, risk (T,), aurc: as `scores.risk_coverage`.
    """
    figure = style.canvas(9.5, 4.6, "Leaving the most uncertain examples to a doctor")
    left, right = figure.subplots(1, 2)
    for key, tint, line in (("accuracy", _BLUE, "-"), ("recall", _ORANGE, "--")):
        known = [(record["referred"], record[key]) for record in records if key in record]
        if known:
            left.plot(*zip(*known, strict=True), color=tint, ls=line, lw=1.8, label=key)
    left.set(title="of the examples that are still answered")
    left.set(xlabel="share of examples referred", ylabel="accuracy and recall", xlim=(0, None))
    left.set_ylim(top=1 + 0.03 * (1 - left.get_ylim()[0]))
    left.xaxis.set_major_formatter(_percent)
    errors, number = risk[-1] * len(risk), np.arange(1, len(risk) + 1)
    right.plot(coverage, risk, color=_BLUE, lw=1.8, label="model")
    right.axhline(risk[-1], color=_GREY, ls="--", lw=1, label="random order")
    best = np.maximum(0, number - (len(risk) - errors)) / number
    right.plot(coverage, best, color=_DARK, ls=":", lw=1.4, label="best possible order")
    right.set(title=f"risk-coverage: mean risk (AURC) {aurc:.3f}", xlim=(0, 1))
    right.set(xlabel="coverage (share of examples answered)", ylabel="risk (share of errors)")
    right.set_ylim(-0.02 * max(risk.max(), 0.05), 1.1 * max(risk[len(risk) // 20 :].max(), risk[-1], 0.05))
    right.xaxis.set_major_formatter(_percent)
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, columnspacing=1.2)
    return figure


def foreign(inside: np.ndarray, outside: Mapping[str, np.ndarray], quantity: str) -> Figure:
    """Histograms of the epistemic uncertainty of the test set and of inputs of another kind.

    Args:
        inside: (T,). outside: name to (T',). quantity: what it is, with unit.
    """
    figure = style.canvas(8.2, 1.4 + 1.9 * len(outside), "Doubt about inputs of another kind")
    panels = figure.subplots(len(outside), 1, sharex=True, squeeze=False)[:, 0]
    everything = np.concatenate([inside, *outside.values()])
    high = everything.max() if everything.max() > 0 else 1.0
    low = max(np.quantile(everything, 0.02), 1e-4 * high)
    edges = np.geomspace(low, max(high, 1.01 * low), 36)
    for axes, (name, values) in zip(panels, outside.items(), strict=True):
        for data, tint, line, label in (
            (inside, _BLUE, "-", "test set"),
            (values, _ORANGE, "--", "other inputs"),
        ):
            share = np.histogram(np.clip(data, low, high), edges)[0] / len(data)
            axes.stairs(share, edges, color=tint, alpha=0.25, fill=True)
            axes.stairs(share, edges, color=tint, lw=1.6, ls=line, label=label)
        axes.set(
            title=f"{style.shorten(name, 60)} (n = {len(values)})", xscale="log", ylabel="share of inputs"
        )
        axes.yaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    panels[-1].set_xlim(low, high)
    panels[-1].xaxis.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
    panels[-1].xaxis.set_major_formatter("{x:g}")
    panels[-1].xaxis.set_minor_formatter(NullFormatter())
    panels[-1].set_xlabel(f"{quantity}, log scale; the first bin holds all below")
    lines = [patch for patch in panels[0].patches if not patch.get_fill()]
    figure.legend(handles=lines, loc="outside lower center", ncols=2)
    return figure


def corruptions(records: Mapping[str, Sequence[Mapping]], clean: Mapping[str, float]) -> Figure:
    """Accuracy and NLL against the severity of each corruption.

    Args:
        records: name to one dict a severity with keys `severity`, `accuracy`, `nll`.
        clean: the scores without corruption, drawn at severity 0.
    """
    figure = style.canvas(9.5, 5.0, "Damaged images")
    panels = figure.subplots(1, 2)
    ordered = {name: sorted(rows, key=lambda row: row["severity"]) for name, rows in records.items()}
    kinds = (("accuracy", "accuracy", "higher"), ("nll", "NLL (nats)", "lower"))
    for axes, (key, label, better) in zip(panels, kinds, strict=True):
        for i, (name, rows) in enumerate(ordered.items()):
            points = [(row["severity"], row[key]) for row in ({"severity": 0, **clean}, *rows) if key in row]
            look = dict(color=_CYCLE[i % 8], marker=_MARKERS[(i + i // 8) % 8], ms=6, mec="white", lw=1.6)
            axes.plot(
                *zip(*points, strict=True), label=style.shorten(name, 24), clip_on=False, zorder=3, **look
            )
        axes.set(xlabel="severity (0: as it is)", ylabel=label, title=f"{label}: {better} is better")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(-0.15, max(row["severity"] for rows in ordered.values() for row in rows) + 0.15)
    columns = len(records) if len(records) <= 4 else -(-len(records) // 2)
    figure.legend(handles=panels[0].lines, loc="outside lower center", ncols=min(columns, 4))
    return figure


def gallery(images: np.ndarray, titles: Sequence[str], headline: str) -> Figure:
    """Up to twelve images with a text of a few lines each; (n, H, W) or (n, H, W, 3) in [0, 1]."""
    columns = min(4, len(images))
    num_rows = -(-len(images) // columns)
    figure = style.canvas(max(2.5 * columns, 5.5), 0.5 + 2.95 * num_rows, headline)
    grid = figure.subplots(num_rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=9, loc="center")
    figure.get_layout_engine().set(hspace=0.06)
    return figure


def predicted(y, mean, low, high, unit: str, most: int = 400) -> Figure:
    """Predicted against true values with the ends of the 95 % interval; all (T,), `most` drawn at most."""
    figure = style.canvas(6.8, 6.6, "Predicted against true values")
    axes = figure.subplots()
    kept = np.sort(np.random.default_rng(0).permutation(len(y))[:most])
    y, mean, low, high = (np.asarray(a)[kept] for a in (y, mean, low, high))
    inside = (low <= y) & (y <= high)
    for chosen, tint, shape, label in ((inside, _BLUE, "o", "inside"), (~inside, _ORANGE, "X", "outside")):
        axes.vlines(y[chosen], low[chosen], high[chosen], color=tint, alpha=0.3, lw=1.2)
        look = dict(color=tint, marker=shape, s=26, ec="white", lw=0.5, zorder=3)
        axes.scatter(y[chosen], mean[chosen], label=f"truth {label} the bar ({chosen.sum()})", **look)
    ends = np.array([min(low.min(), y.min()), max(high.max(), y.max())])
    axes.plot(ends, ends, color=_GREY, ls="--", lw=1, zorder=0, label="equal")
    axes.set(xlabel=f"true value{_in(unit)}", ylabel=f"predicted mean and central 95 % interval{_in(unit)}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def coverage(level: np.ndarray) -> Figure:
    """The share of targets inside the central interval of every probability.

    Args:
        level: (T,) of the interval that just reaches each target, `regression_scores.interval_level`.
    """
    figure = style.canvas(6.2, 6.0, "Do the intervals hold what they promise?")
    axes = figure.subplots()
    grid = np.linspace(0, 1, 201)
    observed = np.searchsorted(np.sort(level), grid, side="right") / len(level)
    spread = 1.96 * np.sqrt(grid * (1 - grid) / len(level))
    band = dict(color="#dedede", lw=0, label=f"95 % of calibrated models (n = {len(level)})")
    axes.fill_between(grid, np.clip(grid - spread, 0, 1), np.clip(grid + spread, 0, 1), **band)
    axes.plot([0, 1], [0, 1], color=_GREY, ls="--", lw=1)
    axes.plot(grid, observed, color=_BLUE, lw=1.8, label="model")
    promised = np.array([0.5, 0.9, 0.95])
    share = np.mean(level <= promised[:, None], axis=1)
    axes.plot(promised, share, marker="D", ms=7, color=_ORANGE, mec="white", ls="", zorder=4, clip_on=False)
    text = "\n".join(
        f"{100 * p:.0f} % interval: {100 * q:.1f} %" for p, q in zip(promised, share, strict=True)
    )
    axes.text(0.97, 0.03, text, ha="right", va="bottom", linespacing=1.5)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="probability of the central interval", ylabel="share of targets inside")
    axes.legend(loc="upper left")
    return figure


def _percent(share, _):
    return f"{100 * share:.3g} %"


def _in(unit):
    return f" ({unit})" if unit else ""
