"""The picture of decision boundaries: what is drawn, where, and that nothing overlaps."""

import io
import itertools

import matplotlib
import numpy as np
import pytest
from scipy.special import expit
from sklearn.datasets import make_moons

from bnn_jax import classic
from bnn_jax.report.boundaries import boundaries
from bnn_jax.types import UserError

NAMES = ["healthy", "ill"]
X, Y = make_moons(100, noise=0.2, random_state=0)


def line(points):
    """A posterior whose boundary is x_1 - 2 x_2 = 0.3."""
    return expit(4 * (points[:, 0] - 2 * points[:, 1] - 0.3))


def parts(figure):
    """(visible panels, the colour bar's axes)"""
    *panels, bar = figure.axes
    return [axes for axes in panels if axes.get_visible()], bar


def contour(axes):
    """(m, 2) vertices of the boundary, or None."""
    found = [c for c in axes.collections if isinstance(c, matplotlib.contour.QuadContourSet) and not c.filled]
    return np.concatenate([path.vertices for path in found[0].get_paths()]) if found else None


def scatters(axes):
    """The points of class 0 and of class 1."""
    return [c for c in axes.collections if isinstance(c, matplotlib.collections.PathCollection)]


def test_the_boundary_is_where_the_probability_is_one_half():
    (axes,), bar = parts(boundaries({"a line": line}, X, Y, NAMES))
    vertices = contour(axes)
    assert len(vertices) > 20
    np.testing.assert_allclose(vertices @ [1, -2], 0.3, atol=2e-3)
    assert axes.get_title(loc="left") == "a line"
    assert bar.get_ylabel() == "probability of ill"
    assert bar.get_ylim() == (0, 1)


def test_points_markers_and_legend():
    figure = boundaries({"a": line, "b": line}, X, Y, NAMES)
    for axes in parts(figure)[0]:
        zero, one = scatters(axes)
        for drawn, own in ((zero, Y == 0), (one, Y == 1)):
            shown, expected = (np.unique(points, axis=0) for points in (drawn.get_offsets(), X[own]))
            np.testing.assert_array_equal(shown, expected)
        assert len(zero.get_paths()[0].vertices) != len(one.get_paths()[0].vertices)  # told without colour
        assert axes.get_xlim()[0] < X.min(0)[0]
        assert axes.get_ylim()[1] > X.max(0)[1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*NAMES, "boundary"]


def test_the_shade_is_the_value_of_the_function():
    """Class 1 in warm shades: red over blue where it is probable, the other way where it is not."""
    (axes,), _ = parts(boundaries({"a": lambda p: np.full(len(p), 0.95)}, X, Y, NAMES))
    shades = next(c for c in axes.collections if isinstance(c, matplotlib.contour.QuadContourSet))
    (red, _, blue, _), (red_0, _, blue_0, _) = shades.cmap(0.95), shades.cmap(0.05)
    assert red > blue
    assert blue_0 > red_0
    assert contour(axes) is None  # never changes its mind


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6])
def test_every_number_of_panels_is_readable(count):
    """No title or tick label meets another, every lowest panel of a column has numbers and a name."""
    figure = boundaries({f"{i}: a rather long name of a method": line for i in range(count)}, X, Y, NAMES)
    panels, bar = parts(figure)
    assert len(panels) == count
    figure.draw_without_rendering()
    texts = [figure._suptitle, *figure.legends[0].get_texts(), bar.yaxis.label]
    for axes in panels:
        texts += [axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    assert len(boxes) > 8 + 3 * count
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    lowest = {axes.get_subplotspec().colspan.start: axes for axes in panels}  # the last of each column
    for axes in lowest.values():
        assert axes.get_xlabel() == "feature 1"
        assert axes.xaxis.get_major_ticks()[0].label1.get_visible()


def test_the_six_classic_ones():
    panels = {}
    for name in classic.NAMES:
        fitted = classic.fit(name, X, Y)
        hard = lambda p, f=fitted: f.decide(p).astype(float)
        panels[name] = (lambda p, f=fitted: f.probs(p)[:, 1]) if fitted.probs else hard
    before = dict(matplotlib.rcParams)
    figure = boundaries(panels, X, Y, NAMES)
    assert dict(matplotlib.rcParams) == before
    found = {axes.get_title(loc="left"): contour(axes) for axes in parts(figure)[0]}
    residual = {}
    for name, vertices in found.items():  # all boundaries are lines but one
        centred = vertices - vertices.mean(0)
        residual[name] = np.linalg.svd(centred)[1][1] / np.sqrt(len(centred))
    assert residual.pop("gaussian") > 0.05
    assert max(residual.values()) < 0.01


def test_awkward_examples():
    """One class only, one point, very many of which some are drawn: pictures without a warning."""
    for x, y in ((X[Y == 1], Y[Y == 1]), (X[:1], Y[:1]), (np.tile(X, (9, 1)), np.sort(np.tile(Y, 9)))):
        figure = boundaries({"a": line}, x, y, NAMES)
        figure.savefig(io.BytesIO(), dpi=40)
    (axes,), _ = parts(figure)
    shown = [len(points.get_offsets()) for points in scatters(axes)]
    assert sum(shown) == 400
    assert min(shown) > 150


@pytest.mark.parametrize(
    ("panels", "x", "y", "names", "message"),
    [
        ({"a": line}, X[:, :1], Y, NAMES, r"need x \(N, 2\) and y \(N,\), not \(100, 1\) and \(100,\)"),
        ({"a": line}, X, Y[:3], NAMES, r"not \(100, 2\) and \(3,\)"),
        ({"a": line}, X[:0], Y[:0], NAMES, r"not \(0, 2\)"),
        ({"a": line}, X, Y + 1, NAMES, "y of 0 and 1"),
        ({"a": line}, X, Y, ["x"], "two names"),
        ({}, X, Y, NAMES, "one panel or more"),
        ({"mine": lambda p: p[:, 0]}, X, Y, NAMES, r"mine must return \(n,\) values in \[0, 1\]"),
        ({"mine": lambda p: np.full((len(p), 2), 0.5)}, X, Y, NAMES, r"mine must return \(n,\) values"),
        ({"mine": lambda p: np.full(len(p), np.nan)}, X, Y, NAMES, r"mine must return \(n,\) values"),
    ],
)
def test_mistakes_are_told_in_one_line(panels, x, y, names, message):
    with pytest.raises(UserError, match=message) as error:
        boundaries(panels, x, y, names)
    assert "\n" not in str(error.value)
