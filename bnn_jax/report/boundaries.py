"""The decisions of several classifiers over the plane of two features, side by side.

Shading is P(class 1 | x), the line is where a classifier changes its mind. Colours are safe for colour-blind
eyes, and no meaning rests on colour alone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from bnn_jax import style
from bnn_jax.types import UserError

_COLOURS, _MARKERS, _DARK = ("#0072B2", "#D55E00"), "o^", "#222222"
_PALE = ("#8ec3e6", "#ffffff", "#f2b48a")  # the same hues, for points to stand out
_SHADES = LinearSegmentedColormap.from_list("classes", _PALE)
_STEPS, _MOST, _MARGIN = 241, 400, 0.12  # points of the grid a side, examples drawn, margin a side


@style.styled
def boundaries(panels: Mapping[str, Callable], x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> Figure:
    """One panel a classifier: its posterior shaded, its boundary, and the examples of the two classes.

    Args:
        panels: title to the function (n, 2) -> (n,) of probabilities of class 1, or decisions in [0, 1].
        x: (N, 2) examples, which set the limits of the axes; of more than 400 as many are drawn, at random.
        y: (N,) of 0 and 1.
        names: of the two classes.

    Raises:
        UserError: no panel, examples not of that form, or a function that returns something else.
    """
    x, y = np.asarray(x, float), np.asarray(y)
    if x.ndim != 2 or x.shape[1] != 2 or not x.size or y.shape != x.shape[:1]:
        raise UserError(f"boundaries need x (N, 2) and y (N,), not {x.shape} and {y.shape}")
    if not panels or len(names) != 2 or not np.isin(y, (0, 1)).all():
        raise UserError("boundaries need one panel or more, two names, and y of 0 and 1")
    drawn = np.random.default_rng(0).permutation(len(x))[:_MOST]
    columns = min(len(panels), 2 if len(panels) == 4 else 3)
    num_rows = -(-len(panels) // columns)
    low, high = x.min(axis=0), x.max(axis=0)
    wide = _MARGIN * np.where(high > low, high - low, 1)
    ticks = np.linspace(low - wide, high + wide, _STEPS).T
    points = np.stack(np.meshgrid(*ticks), axis=-1).reshape(-1, 2)
    figure = style.canvas(max(1.4 + 2.7 * columns, 5.4), 1.5 + 2.6 * num_rows, "Decision boundaries")
    grid = figure.subplots(num_rows, columns, sharex=True, sharey=True, squeeze=False)
    for i, (axes, (title, function)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        shade = _shade(axes, ticks, _values(title, function, points))
        handles = _examples(axes, x[drawn], y[drawn], names)
        axes.set(title=style.shorten(title, 30), ylabel="" if i % columns else "feature 2")
        axes.grid(False)
        axes.locator_params(nbins=4)
        if i + columns >= len(panels):
            axes.set_xlabel("feature 1")
            axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    label = f"probability of {style.shorten(names[1], 24)}"
    figure.colorbar(shade, ax=grid, label=label, ticks=np.linspace(0, 1, 6), aspect=12 * num_rows)
    handles += grid[0, 0].plot([], [], color=_DARK, lw=1.6, label="boundary")
    figure.legend(handles=handles, loc="outside lower center", ncols=3, markerscale=1.6)
    return figure


def _values(title, function, points):
    """(_STEPS, _STEPS) values of a panel's function, checked."""
    values = np.asarray(function(points), float)
    if values.shape != (len(points),) or not ((values >= 0) & (values <= 1)).all():
        raise UserError(f"boundaries: {title} must return (n,) values in [0, 1] for (n, 2) points")
    return values.reshape(_STEPS, _STEPS)


def _shade(axes, ticks, values):
    """Ten shades, and a line at one half where both sides of it occur."""
    shade = axes.contourf(*ticks, values, np.linspace(0, 1, 11), cmap=_SHADES)
    if values.min() < 0.5 < values.max():
        axes.contour(*ticks, values, [0.5], colors=_DARK, linewidths=1.6)
    return shade


def _examples(axes, x, y, names):
    """The points of both classes, for the legend."""
    look = dict(s=20, ec="white", lw=0.5, zorder=3)
    return [
        axes.scatter(
            *x[y == k].T, color=_COLOURS[k], marker=_MARKERS[k], label=style.shorten(name, 24), **look
        )
        for k, name in enumerate(names)
    ]
