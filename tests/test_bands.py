"""The picture of sorted predictions: order, marks, share inside."""

import numpy as np

from bnn_jax.report import bands


def test_examples_are_sorted_and_those_outside_are_marked():
    y = np.array([3.0, 1.0, 2.0, 4.0])
    band = bands.Band(y + 0.1, y - 1, y + 1)
    late = band._replace(low=np.array([2.0, 1.5, 1.0, 3.0]))
    figure = bands.bands({"vi": band, "hmc": late}, y, "price", "Sorted")
    first, second = figure.axes
    assert first.get_title(loc="left") == "vi: 100 % inside"
    assert second.get_title(loc="left") == "hmc: 75 % inside"
    lines = {line.get_label(): line.get_xydata() for line in second.lines}
    np.testing.assert_allclose(lines["mean"], [[0, 1.1], [1, 2.1], [2, 3.1], [3, 4.1]])
    np.testing.assert_allclose(lines["target, outside"], [[0, 1]])
    np.testing.assert_allclose(lines["target, inside"], [[1, 2], [2, 3], [3, 4]])
    assert first.get_ylabel() == "price"
