"""Distance to HMC against cost: one point a method, the picture of a comparison of many."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from bnn_jax import style

FAMILIES = {  # of methods, and the method whose look in other pictures is theirs here
    "modes and ensembles": "map",
    "Gaussian at a mode": "laplace",
    "variational": "vi",
    "chains on minibatches": "sgld",
    "chains on all data": "hmc",
}
NEAR, APART = 25, 9  # pixels between points whose numbers could meet, and between such numbers


class Point(NamedTuple):
    """A method on a problem."""

    name: str
    family: str  # of `FAMILIES`
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
    points = sorted(points, key=lambda p: p.distance)
    least = min(points[0].distance, floor) / 1.5
    axes.axhspan(least / 10, floor, color="#e4e4e4", lw=0, zorder=0)
    line = axes.axhline(floor, color="#555555", lw=1.2, ls="--", label="noise floor (HMC against HMC)")
    handles, families = [], {}
    for number, p in enumerate(points, 1):
        known = FAMILIES[p.family]
        look = dict(color=style.colour(known), marker=style.marker(known), ls="", mec="white", mew=0.8)
        low, high = max(p.interval[0], least), p.interval[1]
        axes.plot([p.cost, p.cost], [low, high], color=look["color"], lw=1.2, alpha=0.6)
        handles += axes.plot(p.cost, p.distance, ms=9, label=f"{number} {p.name}", **look)
        families[p.family] = handles[-1]
    axes.set(xscale="log", yscale="log", ylabel=ylabel)
    axes.set_xlabel("cost: gradients, in passes over the training data")
    axes.set_ylim(bottom=least)
    style.plain_log(axes.xaxis, subs=(1, 3))  # long numbers
    style.plain_log(axes.yaxis, subs=(1, 2, 5))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, alignment="left")
    shown = {name: families[name] for name in FAMILIES if name in families}
    axes.legend([*shown.values(), line], [*shown, line.get_label()], fontsize=8)
    figure.draw_without_rendering()  # the layout, from which pixels are known
    places = axes.transData.transform([(p.cost, p.distance) for p in points])
    for number, (p, place, y) in enumerate(zip(points, places, spread(places), strict=True), 1):
        up = (y - place[1]) * 72 / figure.dpi + 3
        axes.annotate(str(number), (p.cost, p.distance), (7, up), textcoords="offset points", fontsize=8)
    return figure


def spread(places: Sequence[tuple[float, float]]) -> list[float]:
    """Heights for numbers beside points (x, y), all in pixels: moved up as little as keeps those of points
    with nearly the same x apart."""
    heights: dict[int, float] = {}
    for i in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, y = places[i]
        for other in sorted(heights, key=heights.get):
            if abs(places[other][0] - x) < NEAR and abs(heights[other] - y) < APART:
                y = heights[other] + APART
        heights[i] = y
    return [heights[i] for i in range(len(places))]
