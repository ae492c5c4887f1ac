"""Distance to HMC against cost: one point a method, the picture of a comparison of many."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from bnn_jax import style


class Point(NamedTuple):
    """A method on a problem."""

    name: str
    cost: float  # passes over the training data, forwards and backwards
    distance: float
    interval: tuple[float, float]


@style.styled
def against_distance(points: Sequence[Point], floor: float, ylabel: str, headline: str) -> Figure:
    """Every method's distance with its interval over its cost, on logarithmic axes; below the line nothing
    can be told from HMC.

    Args:
        floor: the distance between HMC's own chains.
    """
    figure = style.canvas(9.2, 5.6, headline)
    axes = figure.subplots()
    least = min(min(p.distance for p in points), floor) / 1.5
    axes.axhspan(least / 10, floor, color="#e4e4e4", lw=0, zorder=0)
    axes.axhline(floor, color="#555555", lw=1.2, ls="--", label="noise floor (HMC against HMC)")
    for number, p in enumerate(sorted(points, key=lambda p: p.distance), 1):
        look = dict(color=style.colour(p.name), marker=style.marker(p.name))
        low, high = max(p.interval[0], least), p.interval[1]
        axes.plot([p.cost, p.cost], [low, high], color=look["color"], lw=1.2, alpha=0.6)
        axes.plot(p.cost, p.distance, ms=9, mec="white", mew=0.8, ls="", label=f"{number} {p.name}", **look)
        axes.annotate(str(number), (p.cost, p.distance), (7, 5), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", ylabel=ylabel)
    axes.set_xlabel("cost: gradients, in passes over the training data")
    axes.set_ylim(bottom=least)
    for axis in (axes.xaxis, axes.yaxis):
        style.plain_log(axis, subs=(1, 2, 5))
    figure.legend(loc="outside right upper", fontsize=8, alignment="left")
    return figure
