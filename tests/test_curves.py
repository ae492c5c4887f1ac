"""Pictures of curves: what is drawn, where, and that equal labels look the same."""

from itertools import pairwise

import numpy as np
import pytest

from bnn_jax.report import curves
from bnn_jax.report.curves import Line


def drawn(axes):
    return {line.get_label(): line for line in axes.lines}


def test_every_line_is_drawn_as_given():
    panels = {
        "a": {"vi": Line([1, 2], [3, 4], [2, 3], [4, 5])},
        "b": {"vi": Line([0], [1]), "map": Line([0], [2])},
    }
    figure = curves.curves(panels, "epoch", "score", "Headline")
    a, b = figure.axes
    assert [axes.get_title(loc="left") for axes in (a, b)] == ["a", "b"]
    np.testing.assert_array_equal(drawn(a)["vi"].get_xydata(), [[1, 3], [2, 4]])
    assert len(a.collections) == 1
    assert not b.collections
    assert drawn(a)["vi"].get_color() == drawn(b)["vi"].get_color()
    assert drawn(b)["vi"].get_linestyle() != drawn(b)["map"].get_linestyle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["vi", "map"]
    assert a.get_ylabel() == "score"
    assert [drawn(axes)["vi"].get_marker() for axes in (a, b)] == ["None", "o"]  # one point is no line
    assert figure._suptitle.get_text() == "Headline"


@pytest.mark.parametrize(("count", "shape"), [(1, 1), (4, 4), (5, 5), (6, 6)])
def test_a_grid_has_no_empty_panels_and_every_column_its_label(count, shape):
    figure = curves.curves({f"p{i}": {"x": Line([1], [1])} for i in range(count)}, "draws", "y", "")
    assert len(figure.axes) == shape
    assert sum(axes.get_xlabel() == "draws" for axes in figure.axes) == min(count, 4)
    assert not figure.legends  # one label says nothing


def test_ordered_labels_go_along_a_map_and_axes_may_be_logarithmic():
    lines = {f"{beta:g}": Line([1, 10], [0.1, 1]) for beta in (0, 1, 10)}
    (axes,) = curves.curves({"p": lines}, "x", "y", "", ordered=True, log_x=True, log_y=True).axes
    assert len({tuple(line.get_color()) for line in axes.lines}) == 3
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


@pytest.mark.parametrize("x", [[1, 10], [1, 100], [0.01, 3], [1, 2000]])
def test_numbers_along_a_logarithmic_axis_do_not_overlap(x):
    panels = {title: {"a": Line(x, [0.1, 1])} for title in "pqr"}
    figure = curves.curves(panels, "x", "y", "", log_x=True)
    figure.canvas.draw()
    low, high = figure.axes[0].get_xlim()
    ticks = [t for t in figure.axes[0].xaxis.get_major_ticks() if low <= t.get_loc() <= high]
    boxes = [tick.label1.get_window_extent() for tick in ticks]
    assert len(boxes) >= 3
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_histories_of_several_runs_are_one_line():
    """A run that stopped early counts as long as it went."""
    histories = [[{"nll": 1.0}, {"nll": 4.0}], [{"nll": 3.0}]]
    line = curves.over_runs(histories, "nll")
    for values, wanted in zip(line, ([1, 2], [2, 4], [1, 4], [3, 4]), strict=True):
        np.testing.assert_array_equal(values, wanted)


def test_a_wide_legend_takes_more_rows():
    """So that no label is cut at the border; a narrow one stands in one."""
    line = Line(np.arange(3.0), np.arange(3.0))
    for words, rows in (("net", 1), ("a network of several words", 2)):
        figure = curves.curves({"panel": {f"{words} {i}": line for i in range(4)}}, "x", "y", "headline")
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.width <= figure.bbox.width
        heights = {round(text.get_window_extent().y0) for text in legend.get_texts()}
        assert (len(heights) > 1) == (rows > 1)
