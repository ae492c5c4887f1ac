"""The two parts of the predictive entropy, row by row: of methods, or of groups of inputs.

Dots are examples, at most `MOST` drawn of each row; the bar spans the middle half of all, the circle is the
median.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from bnn_jax import style

MOST = 500


class Row(NamedTuple):
    """T examples."""

    name: str
    aleatoric: np.ndarray  # (T,) nats
    epistemic: np.ndarray  # (T,) nats
    colour: str
    wrong: bool = False  # crosses for dots


def split(
    aleatoric: Mapping[str, np.ndarray],
    epistemic: Mapping[str, np.ndarray],
    correct: Mapping[str, np.ndarray],
) -> Figure:
    """Right and wrong predictions of every method.

    Args:
        aleatoric, epistemic: method name to (T,) entropies in nats.
        correct: method name to (T,) whether the prediction is right.
    """
    rows, places = [], []
    for number, (name, hit) in enumerate(correct.items()):
        hit = np.asarray(hit, bool)
        for wrong, chosen in enumerate((hit, ~hit)):
            told = f"{name}, {('right', 'wrong')[wrong]} ({chosen.sum()})"
            rows.append(
                Row(told, aleatoric[name][chosen], epistemic[name][chosen], style.colour(name), bool(wrong))
            )
            places.append(2.5 * number + wrong)
    return _figure(
        rows, places, "method and prediction", "Entropy of right and of wrong predictions", "right"
    )


def groups(rows: Sequence[Row], headline: str) -> Figure:
    """Groups of inputs under one method, in the order given."""
    named = [row._replace(name=f"{row.name} ({len(row.aleatoric):,})") for row in rows]
    return _figure(named, range(len(rows)), "inputs", headline, "an example")


@style.styled
def _figure(rows, places, ylabel, headline, dot):
    figure = style.canvas(9.5, 2.1 + 0.35 * len(rows))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    random = np.random.default_rng(0)
    for row, y in zip(rows, places, strict=True):
        for axes, values in zip(panels, (row.aleatoric, row.epistemic), strict=True):
            if len(values):
                _strip(axes, np.maximum(values, 0), y, row, random)
    panels[0].set_yticks(places, [row.name for row in rows])
    panels[0].set_ylim(max(places) + 0.6, -0.6)
    panels[0].set_ylabel(ylabel)
    titles = ("Aleatoric: noise in the data", "Epistemic: doubt about the weights")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="entropy (nats, log scale; linear below 0.001)")
        axes.set_xscale("symlog", linthresh=1e-3, linscale=0.5)
        axes.set_xticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", "0.001", "0.01", "0.1", "1"])
        axes.set_xlim(left=-2e-4)
        axes.grid(False, axis="y")
    style.headline(figure, headline)
    panels[0].plot([], [], ls="", marker="o", ms=4, color=style.GREY, label=dot)
    if any(row.wrong for row in rows):
        panels[0].plot([], [], ls="", marker="x", ms=4, color=style.GREY, label="wrong")
    panels[0].plot([], [], lw=5, color=style.GREY, solid_capstyle="round", label="middle half")
    panels[0].plot([], [], ls="", marker="o", ms=6, color="white", mec=style.GREY, mew=1.5, label="median")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _strip(axes, values, y, row, random):
    drawn = values if len(values) <= MOST else random.choice(values, MOST, replace=False)
    height = y + random.uniform(-0.32, 0.32, len(drawn))
    shape = dict(marker="x", lw=1) if row.wrong else dict(marker="o", lw=0)
    axes.scatter(drawn, height, s=9, color=row.colour, alpha=0.35, **shape)
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    axes.plot([low, high], [y, y], color=row.colour, lw=5, solid_capstyle="round")
    axes.plot(median, y, marker="o", ms=6, color="white", mec=row.colour, mew=1.5)
