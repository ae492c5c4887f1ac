"""The pictures of a comparison. Every function takes NumPy arrays and returns a matplotlib `Figure`.

Shapes: T test points, K classes, C chains, D draws, n weights of a layer.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bnn_jax import metrics, style


@style.styled
def distances(results: Mapping[str, Any]) -> Figure:
    """How far each method's predictions are from the reference's, against the reference's own noise.

    Left the total variation, right the agreement, of a regression W2, both with intervals where known. The
    band reaches from no distance to the noise floor (chain against chain), its paler end is the floor's
    interval: a method inside the band cannot be told from the reference.
    """
    reference = results.get("reference") or "reference"
    names = [name for name in results["methods"] if name != reference]
    height = max(len(names), 1)
    figure = style.canvas(9.5, 2.1 + 0.42 * height)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    style.headline(figure, f"How far each method's predictions are from those of {reference}")
    figure.get_layout_engine().set(wspace=0.06)
    floor, label = results.get("floor") or {}, f"noise floor ({reference} against {reference})"
    second, what, none = "agreement", "agreement (share of test points)\ncloser →", 1.0
    if not results["data"]["num_classes"]:
        second, what, none = "w2", "W2 of the draws (unit of the target)\n← closer", 0.0
    panels = ((left, "total_variation", 0.0, label), (right, second, none, "noise floor"))
    for axes, key, none, label in panels:
        points = {name: (y, *_point(results["methods"][name], key)) for y, name in enumerate(names)}
        _distance_panel(axes, points, _point(floor, key), none, label)
    left.set_xlabel("total variation (probability, mean over test points)\n← closer")
    right.set_xlabel(what)
    left.set_ylabel("method")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(height - 0.4, -0.6)
    return figure


def _distance_panel(axes, points, floor, none, label):
    """`none` is the value without any distance; a point is (y, value, ends of its interval or ())."""
    level, ends = floor
    if level is None:
        axes.set_title("no noise floor known")
    else:
        spread = f" ± {max(abs(end - level) for end in ends):.3f}" if ends else ""
        axes.set_title(f"{label}: {level:.3f}{spread}", color="#444444")
        axes.axvspan(none, level, color="#d6d6d6", lw=0, zorder=0)
        axes.axvspan(*(ends or (level, level)), color="#eaeaea", lw=0, zorder=0.1)
        axes.axvline(level, color="#555555", lw=1.2, ls="--")
    for name, (y, value, interval) in points.items():
        if value is None:
            place = dict(xytext=(0.5, y), textcoords=("axes fraction", "data"), ha="center", va="center")
            axes.annotate("not known", (none, y), color=style.GREY, **place)
            continue
        look = dict(color=style.colour(name), clip_on=False, ls="")
        if interval:
            axes.hlines(y, *interval, color=style.colour(name), lw=2)
            axes.plot(interval, (y, y), marker="|", ms=9, mew=2, **look)
        axes.plot(value, y, marker=style.marker(name), ms=9, mec="white", mew=0.8, **look)
        axes.annotate(f"{value:.3f}", (value, y), (0, 8), textcoords="offset points", ha="center", fontsize=9)
    shown = [none, *(x for _, v, i in points.values() for x in (v, *i)), level, *ends]
    low, high = min(filter(_known, shown)), max(filter(_known, shown))
    margin = 0.08 * (high - low) or 0.05
    axes.set_xlim((low - margin, none) if none else (none, high + margin))
    axes.grid(False, axis="y")


@style.styled
def reliability(probs: Mapping[str, np.ndarray], labels: np.ndarray, num_bins: int = 15) -> Figure:
    """Accuracy against confidence, a line a method, above the histogram of the confidences.

    Args:
      probs: method name to (T, K) predicted probabilities.
      labels: (T,) true classes.
      num_bins: bins of equal width, those of the calibration error; an empty one has no marker.
    """
    figure = style.canvas(8.2, 6.4)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    top.plot([0, 1], [0, 1], color=style.GREY, ls="--", lw=1, label="calibrated")
    edges = np.linspace(0, 1, num_bins + 1)
    for name, p in probs.items():
        x, y, count = metrics.reliability(p, labels, num_bins)
        used = count > 0
        x, y = x[used], y[used]
        look = dict(color=style.colour(name), marker=style.marker(name))
        size = np.clip(300 * count[used] / len(labels), 14, 130)
        top.plot(x, y, lw=1.3, alpha=0.6, color=style.colour(name))
        top.scatter(x, y, s=size, edgecolor="white", zorder=3, clip_on=False, **look)
        top.plot([], [], lw=1.3, ms=7, label=name, **look)
        bottom.stairs(count, edges, color=style.colour(name), lw=1.6)
    style.headline(figure, "Reliability: how often a prediction of a given confidence is right")
    top.set(ylabel="accuracy (share of points)", ylim=(-0.03, 1.03))
    bottom.set(xlabel="confidence (probability of the predicted class)", ylabel="test points (log)")
    bottom.set(xlim=(0, 1.005), yscale="log")
    bottom.set_ylim(bottom=0.7)
    style.plain_log(bottom.yaxis)
    title = "marker area:\ntest points in the bin"
    figure.legend(loc="outside right center", title=title, alignment="left")
    return figure


@style.styled
def probability_scatter(
    probs_a: np.ndarray, probs_b: np.ndarray, labels: np.ndarray, name_a: str, name_b: str
) -> Figure:
    """For every test point the probability of its true class under two methods, on logit axes.

    Args:
      probs_a, probs_b: (T, K) predicted probabilities.
      labels: (T,) true classes.
      name_a, name_b: the methods; a is on the horizontal axis.
    """
    figure = style.canvas(6.6, 6.9)
    axes = figure.subplots()
    low, high = 1e-3, 1 - 1e-4
    rows = np.arange(len(labels))
    x, y = (np.clip(p[rows, labels], low, high) for p in (probs_a, probs_b))
    right_a, right_b = probs_a.argmax(1) == labels, probs_b.argmax(1) == labels
    first, second = _pair(name_a, name_b)
    groups = [
        ("both right", right_a & right_b, dict(marker="o", s=16, color=style.GREY, alpha=0.55, lw=0)),
        (f"only {name_a} right", right_a & ~right_b, dict(marker=">", s=55, color=first, ec="white")),
        (f"only {name_b} right", ~right_a & right_b, dict(marker="^", s=55, color=second, ec="white")),
        ("both wrong", ~right_a & ~right_b, dict(marker="x", s=40, color="#AA4499", lw=1.8)),
    ]
    axes.plot([low, high], [low, high], color=style.GREY, ls="--", lw=1, zorder=0)
    for label, chosen, look in groups:
        look.update(label=f"{label} ({chosen.sum()})", clip_on=False, zorder=3)
        axes.scatter(x[chosen], y[chosen], **look)
    ticks = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999]
    names = ["≤ 0.001", *map(str, ticks[1:-1]), "≥ 0.9999"]
    axes.set(xscale="logit", yscale="logit", xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xticks(ticks, names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    axes.minorticks_off()
    style.headline(figure, f"Probability of the true class: {name_b} against {name_a}")
    axes.set_xlabel(f"{name_a}: probability of the true class (logit scale)")
    axes.set_ylabel(f"{name_b}: probability of the true class (logit scale)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@style.styled
def weight_std(
    std_a: Mapping[str, np.ndarray], std_b: Mapping[str, np.ndarray], name_a: str, name_b: str
) -> Figure:
    """Posterior standard deviation of every weight under two methods, coloured by layer, from first to last.

    Args:
      std_a, std_b: layer name to (n,); a weight whose value is not positive in both is left out.
      name_a, name_b: the methods; a is on the vertical axis, and ratios are a / b.
    """
    figure = style.canvas(8.6, max(5.4, 1 + 0.2 * len(std_a)))
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", aspect="equal")
    limits, tints = [], _tints(len(std_a))
    for layer, tint in zip(std_a, tints, strict=True):
        a, b = np.ravel(std_a[layer]), np.ravel(std_b[layer])
        kept = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
        a, b = a[kept], b[kept]
        label = f"{layer}: {np.median(a / b):.2f} (n = {len(a)})" if len(a) else f"{layer}: - (n = 0)"
        look = dict(s=np.clip(2000 / max(len(a), 1), 4, 22), zorder=2 + 1 / (1 + len(a)))  # small on top
        axes.scatter(b, a, color=tint, alpha=0.65, lw=0, label=label, **look)
        limits += [a.min(), a.max(), b.min(), b.max()] if len(a) else []
    low, high = min(limits, default=0.1), max(limits, default=1.0)
    margin = 1.25 if high / low > 2 else 1.6  # always room for a labelled tick
    low, high = low / margin, high * margin
    axes.plot([low, high], [low, high], color=style.GREY, ls="--", lw=1, zorder=0, label="equal")
    axes.set(xlim=(low, high), ylim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        style.plain_log(axis, subs=(1, 2, 5) if high / low < 300 else (1,))
    style.headline(figure, f"Posterior standard deviation of each weight: {name_a} against {name_b}")
    axes.set_xlabel(f"{name_b}: standard deviation (units of the weight)")
    axes.set_ylabel(f"{name_a}: standard deviation (units of the weight)")
    title = f"layer: median ratio {name_a} / {name_b}"
    legend = figure.legend(loc="outside right center", title=title, alignment="left", fontsize=9)
    for handle in legend.legend_handles[:-1]:
        handle.set(alpha=1, sizes=[36])
    return figure


@style.styled
def traces(values: Mapping[str, np.ndarray], ylabel: str) -> Figure:
    """Traces in small panels, one a quantity, a line a chain.

    Args:
      values: name of the quantity to its (C, D) draws.
      ylabel: what they are, with unit.
    """
    columns = 1 if len(values) < 4 else 2
    num_rows = -(-len(values) // columns)
    figure = style.canvas(9.5, 1.1 + 1.75 * num_rows)
    grid = figure.subplots(num_rows, columns, sharex=True, squeeze=False)
    panels, spare = grid.flat[: len(values)], grid.flat[len(values) :]
    num_chains = max(len(draws) for draws in values.values())
    for i, (axes, (name, draws)) in enumerate(zip(panels, values.items(), strict=True)):
        for chain, (line, tint) in enumerate(zip(draws, _tints(num_chains), strict=False), 1):
            dots = "." if len(line) < 30 else ""
            steps = np.arange(1, len(line) + 1)
            axes.plot(steps, line, lw=0.9, alpha=0.85, color=tint, marker=dots, label=f"chain {chain}")
        axes.set(title=name, ylabel="" if i % columns else ylabel)
        axes.margins(x=0.01)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if i + columns >= len(values):
            axes.set_xlabel("draw")
            axes.tick_params(labelbottom=True)
    for axes in spare:  # an empty place in the last row takes the labels of the panel above it
        axes.set_visible(False)
        grid[-2, -1].xaxis.set_in_layout(False)
        figure.get_layout_engine().set(w_pad=0.15)
    longest = max(panels, key=lambda axes: len(axes.lines))
    legend = figure.legend(handles=longest.lines, loc="outside upper right", ncols=min(num_chains, 8))
    for handle in legend.legend_handles:
        handle.set(linewidth=2)
    return figure


@style.styled
def rhat_histograms(rhat_function: np.ndarray, rhat_weight: np.ndarray) -> Figure:
    """How well the chains agree, on function values and on weights, against the usual limits 1.01 and 1.05.

    Args:
      rhat_function: (n,) R-hat of function values.
      rhat_weight: (m,) R-hat of single weights. In both, NaN is left out and counted in the title.
    """
    figure = style.canvas(8.2, 5.0)
    panels = figure.subplots(2, 1, sharex=True)
    given = {"function values": np.ravel(rhat_function), "weights": np.ravel(rhat_weight)}
    finite = np.concatenate([r[np.isfinite(r)] for r in given.values()])
    low, high = 1e-3, max(0.2, 1.1 * (finite.max(initial=1.0) - 1))
    for axes, (what, raw) in zip(panels, given.items(), strict=True):
        r = raw[~np.isnan(raw)]
        axes.hist(np.clip(r - 1, low, high), np.geomspace(low, high, 41), color="#8fb3cc", ec="white", lw=0.4)
        for limit, line in ((1.01, "--"), (1.05, ":")):
            axes.axvline(limit - 1, color="#AA4499", ls=line, lw=1.4, label=f"limit {limit}")
        middle = np.median(r) if len(r) else np.nan
        axes.axvline(np.clip(middle - 1, low, high), color="#222222", lw=1.6, label="median")
        found = (
            f"median {middle:.3f}, {100 * np.mean(r > 1.01):.0f} % above 1.01"
            if len(r)
            else "nothing to show"
        )
        missing = f", {len(raw) - len(r)} NaN left out" if len(raw) > len(r) else ""
        axes.set_title(f"R-hat of {what}: {found} (n = {len(r)}{missing})")
        axes.set_ylabel(f"number of\n{what}")
        axes.set_ylim(bottom=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
    ticks = [1.001, 1.002, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 30, 100]
    ticks = [tick for tick in ticks if tick - 1 <= high]
    panels[1].set(xscale="log", xlim=(low, high))
    panels[1].set_xlabel("R-hat (log scale of R-hat - 1; 1.001 and below in the first bin)")
    panels[1].set_xticks([tick - 1 for tick in ticks], [f"{tick:g}" for tick in ticks])
    panels[1].minorticks_off()
    figure.legend(handles=panels[0].lines, loc="outside upper right", ncols=3)
    return figure


@style.styled
def disagreement(
    images: np.ndarray,
    probs_a: np.ndarray,
    probs_b: np.ndarray,
    labels: np.ndarray,
    name_a: str,
    name_b: str,
    count: int = 8,
) -> Figure:
    """The test images on which two methods differ most in total variation (TV), with both predictions.

    Args:
      images: (T, H, W) or (T, H, W, 3) in [0, 1].
      probs_a, probs_b: (T, K) predicted probabilities.
      labels: (T,) true classes; the band behind the bars.
      count: how many to show at most.
    """
    distance = 0.5 * np.abs(probs_a - probs_b).sum(1)
    worst = np.argsort(-distance, kind="stable")[:count]
    columns, num_classes = min(4, len(worst)), probs_a.shape[1]
    num_rows = -(-len(worst) // columns)
    figure = style.canvas(max(2.4 * columns, 5.5), 0.9 + 3.1 * num_rows)
    grid = figure.subplots(2 * num_rows, columns, squeeze=False, height_ratios=(1.25, 1) * num_rows)
    first, second = _pair(name_a, name_b)
    for place in range(num_rows * columns):
        top, bottom = grid[2 * (place // columns) : 2 * (place // columns) + 2, place % columns]
        if place >= len(worst):
            top.remove()
            bottom.remove()
            continue
        i = worst[place]
        top.imshow(images[i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        top.set_title(f"true {labels[i]}, TV {distance[i]:.2f}", loc="center")
        top.set_axis_off()
        classes = np.arange(num_classes)
        handles = [
            bottom.bar(classes - 0.2, probs_a[i], 0.4, color=first, label=name_a),
            bottom.bar(classes + 0.2, probs_b[i], 0.4, color=second, label=name_b),
            bottom.axvspan(
                labels[i] - 0.5, labels[i] + 0.5, color="#e4e4e4", lw=0, zorder=0, label="true class"
            ),
        ]
        bottom.set_xticks(classes[:: -(-num_classes // 10)])
        bottom.set(
            ylim=(0, 1), yticks=(0, 0.5, 1), xlabel="class", ylabel="" if place % columns else "probability"
        )
        bottom.grid(False, axis="x")
    style.headline(figure, f"Test images on which {name_a} and {name_b} differ most")
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _point(record, key):
    """(value or None, ends of the interval or ())"""
    interval = record.get(f"{key}_interval") or ()
    return record.get(key), () if None in interval else tuple(interval)


def _known(value):
    return value is not None


def _pair(name_a, name_b):
    """The colours of two methods, told apart even where both names give the same."""
    first, second = style.colour(name_a), style.colour(name_b)
    return first, second if first != second else style.GREY


def _tints(count):
    """Ordered colours for layers and chains."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.8, count))
