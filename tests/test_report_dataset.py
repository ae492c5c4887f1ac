"""The data report: tables word for word, a page with and without pictures, pictures in the right places."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from bnn_jax import inspection
from bnn_jax.report import dataset

pytestmark = pytest.mark.filterwarnings("error")

PART = np.repeat(["train", "val", "test"], [12, 4, 8])


@pytest.fixture
def summary():
    """Two classes, 24 colour images of 4x5; the last test image is a copy of the first training image."""
    x = np.arange(24 * 60, dtype=np.float32).reshape(24, 4, 5, 3) / 1440
    x[-1] = x[0]
    return inspection.summarise(x, np.arange(24) % 2, PART, class_names=["[well]", "<ill>"])


@pytest.fixture
def regression():
    x = np.arange(72.0).reshape(24, 3) % 24
    return inspection.summarise(x, np.arange(24.0), PART)


def pictures(number=6, shape=(4, 5), value=0.5):
    return np.full((number, *shape), value)


def printed(renderable, width=80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_counts_exactly(summary, regression):
    assert dataset._counts(summary) == [
        ["class", "train", "val", "test"],
        ["0 [well]", "6 (50.0 %)", "2 (50.0 %)", "4 (50.0 %)"],
        ["1 <ill>", "6 (50.0 %)", "2 (50.0 %)", "4 (50.0 %)"],
        ["all", "12", "4", "8"],
    ]
    assert dataset._counts(regression) == [
        ["target", "examples", "mean", "std", "min", "max"],
        ["train", "12", "5.5", "3.452", "0", "11"],
        ["val", "4", "13.5", "1.118", "12", "15"],
        ["test", "8", "19.5", "2.291", "16", "23"],
    ]


def test_an_empty_part_is_left_out_or_has_no_statistics():
    x, part = np.arange(4.0)[:, None], ["train", "train", "test", "test"]
    found = dataset._counts(inspection.summarise(x, np.array([0, 1, 0, 1]), part))
    assert found[0] == ["class", "train", "test"]
    found = dataset._counts(inspection.summarise(x, np.arange(4.0), part))
    assert found[2] == ["val", "0", "-", "-", "-", "-"]


def test_copies_exactly(summary):
    assert dataset._copies(summary) == [
        ["where", "examples", "sets of equal ones", "such as"],
        ["twice or more in train", "0 extra", "0", ""],
        ["twice or more in val", "0 extra", "0", ""],
        ["twice or more in test", "0 extra", "0", ""],
        ["in train and test", "1 of test", "1", "23"],
        ["equal, but with another label", "2", "1", "0, 23"],
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_console_shows_counts_and_every_warning(summary, regression, width):
    text = printed(dataset.console(summary), width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert words.startswith("24 examples, each 4 x 5 x 3, values from 0 to 0.9576.")
    assert "0 [well] 6 (50.0 %) 2 (50.0 %) 4 (50.0 %)" in words
    for sentence in inspection.warnings(summary):
        assert sentence in words
    assert "train 12 5.5 3.452 0 11" in " ".join(printed(dataset.console(regression), width).split())


def test_page_with_pictures(summary, tmp_path):
    images = {part: {"<ill>": pictures(), "[well]": pictures(shape=(4, 5, 3))} for part in ("train", "test")}
    dataset.write(tmp_path / "new", summary, images, ["a.txt: no <image>"])
    page = (tmp_path / "new" / "data.html").read_text(encoding="utf-8")
    assert (tmp_path / "new" / "data_examples.png").read_bytes()[:4] == b"\x89PNG"
    assert page.count('src="data:image/png;base64,') == 1
    assert not re.search(r"https?://|<script|<ill>", page)
    assert "<li>a.txt: no &lt;image&gt;</li>" in page
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Counts", "To know before training", "Examples", "Copies", "Left out"]
    assert "<li>test shares 1 of its 8 examples with train" in page


@pytest.mark.parametrize("images", [{}, {"train": {}}, {"train": {"0": np.zeros((0, 4, 4))}}])
def test_page_of_a_table(regression, tmp_path, images):
    dataset.write(tmp_path, regression, images, [])
    assert [path.name for path in tmp_path.iterdir()] == ["data.html"]
    page = (tmp_path / "data.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Counts", "To know before training", "Copies"]
    assert "<img" not in page


def test_nothing_to_warn_of_is_said_and_a_long_list_is_cut(tmp_path):
    x = np.arange(8.0).reshape(4, 2)
    summary = inspection.summarise(x, np.arange(4) % 2, ["train", "train", "test", "test"])
    dataset.write(tmp_path, summary, {}, [f"file {i}" for i in range(1053)])
    page = (tmp_path / "data.html").read_text(encoding="utf-8")
    assert "Nothing found that needs a warning." in page
    assert "1,053 found and not used." in page
    assert "<li>file 49</li><li>... and 1,003 more.</li>" in page


def test_pictures_stand_by_part_and_class(summary):
    """Rows in the order of labels, columns in the order of parts, whatever the order of the dicts."""
    images = {
        "test": {"<ill>": pictures(2, value=0.1), "[well]": pictures(9, value=0.2)},
        "train": {"<ill>": pictures(6, value=0.3)},
    }
    figure = dataset.examples(summary, images)
    assert [axes.get_title("left") for axes in figure.axes] == ["train: 6", "test: 4"] * 2
    assert [axes.get_ylabel() for axes in figure.axes] == ["[well]", "", "<ill>", ""]
    none, well, ill, few = figure.axes
    assert [text.get_text() for text in none.texts] == ["none"]
    for axes, value, number in ((well, 0.2, 6), (ill, 0.3, 6), (few, 0.1, 2)):
        (shown,) = axes.images
        sheet = np.asarray(shown.get_array())
        assert sheet.shape == (2 * 4 + 1, 3 * 5 + 2, 3)  # two lines of three, one pixel between them
        assert np.isclose(sheet, value).all(-1).sum() == number * 4 * 5
        assert (sheet == 1).all(-1).sum() == sheet.shape[0] * sheet.shape[1] - number * 4 * 5


def test_reading_order_of_pictures(summary):
    images = {"train": {"<ill>": np.arange(6)[:, None, None] / 10 * np.ones((6, 4, 5))}}
    (axes,) = dataset.examples(summary, images).axes
    sheet = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(sheet[[0, 0, 0, 5, 5, 5], [0, 6, 12] * 2, 0], np.arange(6) / 10)


def test_many_classes_stand_in_one_line_each_and_are_cut(tmp_path):
    names = [f"class number {k}" for k in range(40)] + ["a name of more than thirty letters"]
    labels = np.tile(np.arange(41), 2)
    x = np.arange(82.0)[:, None, None]
    summary = inspection.summarise(x, labels, ["train"] * 41 + ["test"] * 41, class_names=names)
    images = {"train": {name: pictures(1, (3, 3)) for name in names}}
    figure = dataset.examples(summary, images)
    assert len(figure.axes) == 30
    assert figure.axes[0].images[0].get_array().shape[:2] == (3, 6 * 3 + 5)
    dataset.write(tmp_path, summary, images, [])
    assert "The first 30 of 41 classes." in (tmp_path / "data.html").read_text(encoding="utf-8")
    last = {"train": {names[-1]: pictures(1)}}
    assert dataset.examples(summary, last).axes[0].get_ylabel() == "a name of more than t…"


def test_the_same_data_give_the_same_bytes(summary, tmp_path):
    images = {"train": {"<ill>": pictures(3)}}
    for name in ("a", "b"):
        dataset.write(tmp_path / name, summary, images, [])
    for file in ("data.html", "data_examples.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
