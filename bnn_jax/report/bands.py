"""Predictions of a regression in the order of their targets, with the band that should hold 95 % of them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from bnn_jax import style


class Band(NamedTuple):
    """What a method predicts for T examples."""

    mean: np.ndarray  # (T,)
    low: np.ndarray  # (T,) ends of the interval
    high: np.ndarray


@style.styled
def bands(panels: Mapping[str, Band], y: np.ndarray, ylabel: str, headline: str) -> Figure:
    """One panel a method, examples sorted by their target; those outside of their interval are marked.

    Args:
        panels: title -> prediction.
        y: (T,) targets.
    """
    order = np.argsort(y, kind="stable")
    place = np.arange(len(order))
    figure = style.canvas(3.1 * len(panels) + 0.8, 3.7, headline)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, band) in zip(grid, panels.items(), strict=True):
        mean, low, high, true = (np.asarray(a)[order] for a in (*band, y))
        out = (true < low) | (true > high)
        tint = style.colour(title.split(",")[0])
        axes.fill_between(place, low, high, color=tint, alpha=0.2, lw=0, label="95 % interval")
        axes.plot(place, mean, color=tint, lw=1.2, label="mean")
        axes.plot(place[~out], true[~out], ".", color="#222222", ms=3, label="target, inside")
        axes.plot(place[out], true[out], "x", color="#D55E00", ms=5, mew=1.4, label="target, outside")
        axes.set(title=f"{title}: {100 * np.mean(~out):.0f} % inside", xlabel="test examples by target")
    grid[0].set_ylabel(ylabel)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
