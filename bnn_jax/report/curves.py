"""Curves over epochs, draws or settings: a grid of small panels with common lines, each with its spread."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bnn_jax import style

MOST_ACROSS = 4  # panels in a row


class Line(NamedTuple):
    """One curve: y over x, and a band around it where there is one."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def over_runs(histories: Sequence[Sequence[Mapping[str, float]]], name: str) -> Line:
    """A column of the histories of several runs by epoch, one row an epoch: mean, lowest and highest of the
    runs that were still going."""
    longest = max(len(history) for history in histories)
    y = np.full((len(histories), longest), np.nan)
    for run, history in zip(y, histories, strict=True):
        run[: len(history)] = [row[name] for row in history]
    mean, low, high = (f(y, axis=0) for f in (np.nanmean, np.nanmin, np.nanmax))
    return Line(np.arange(1, longest + 1), mean, low, high)


@style.styled
def curves(
    panels: Mapping[str, Mapping[str, Line]],
    xlabel: str,
    ylabel: str,
    headline: str,
    *,
    ordered: bool = False,
    log_x: bool = False,
    log_y: bool = False,
    share_y: bool = False,
) -> Figure:
    """One panel a title, one line a label; equal labels look the same everywhere.

    Args:
        panels: title -> label -> line; every panel may lack some of the labels.
        ordered: the labels are values of one quantity in their order: coloured along a sequential map.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    looks = _looks(labels, ordered)
    across = min(len(panels), MOST_ACROSS)
    down = math.ceil(len(panels) / across)
    figure = style.canvas(max(3.0 * across + 0.6, 5.2), 2.5 * down + 1.1, headline)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=share_y)
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        for label, line in lines.items():
            x, y = np.asarray(line.x, float), np.asarray(line.y, float)
            dot = "o" if len(x) == 1 else None  # a line of one point shows nothing
            axes.plot(x, y, label=label, lw=1.6, marker=dot, **looks[label])
            if line.low is not None:
                axes.fill_between(x, line.low, line.high, color=looks[label]["color"], alpha=0.15, lw=0)
        axes.set_title(style.shorten(title, 34))
        if log_x:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            style.plain_log(axes.xaxis, (1, 2, 5) if high / low < 200 else (1, 3))
        if log_y:
            axes.set_yscale("log")
            style.plain_log(axes.yaxis, (1, 2, 5))
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    last = len(panels) - (down - 1) * across
    for column in range(across):
        lowest = grid[down - 1 if column < last else down - 2, column]
        lowest.set_xlabel(xlabel)
        lowest.tick_params(labelbottom=True)
    handles = {h.get_label(): h for axes in figure.axes for h in axes.lines}
    if len(labels) > 1:
        _legend(figure, [handles[label] for label in labels])
    return figure


def _legend(figure, handles):
    """Below the panels, in as many columns as the figure is wide enough for."""
    for columns in range(6, 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            return
        legend.remove()


def _looks(labels, ordered):
    """label -> colour, and a line style of its own among equal colours."""
    if ordered:
        tints = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, len(labels)))
        return {label: dict(color=tint) for label, tint in zip(labels, tints, strict=True)}
    dashes = ("-", "--", "-.", ":")
    return {label: dict(color=style.colour(label), ls=dashes[i % 4]) for i, label in enumerate(labels)}
