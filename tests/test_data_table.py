"""Tables: stored splits as stored, every cell where it belongs, and every bad cell by row and column."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bnn_jax import data
from bnn_jax.data import table
from bnn_jax.types import UserError

needs_data = pytest.mark.skipif(
    data.DATA_DIR not in os.environ, reason=f"raw data: set {data.DATA_DIR} to their folder"
)
PARTS = ("train", "val", "test")


def raw(found, part):
    """(features, target) in the units of the file."""
    scaling = found.scaling
    x = getattr(found, f"x_{part}") * np.float64(scaling.scale) + scaling.shift
    return x, getattr(found, f"y_{part}") * scaling.target_scale + scaling.target_shift


def sizes(found) -> list[int]:
    return [0 if getattr(found, f"y_{part}") is None else len(getattr(found, f"y_{part}")) for part in PARTS]


# .npz with stored splits

X = np.stack([np.arange(30.0), np.arange(30.0) ** 2], axis=1)
Y = np.arange(30.0) * 7 + 100
ORDER = np.stack([np.random.default_rng(fold).permutation(30) for fold in range(3)]).astype(np.int32)


def saved(path, **changed) -> Path:
    arrays = dict(x=X, y=Y, train_index=ORDER[:, :24], test_index=ORDER[:, 24:]) | changed
    np.savez(path / "toy.npz", **{name: array for name, array in arrays.items() if array is not None})
    return path / "toy.npz"


@pytest.mark.parametrize("fold", [None, 0, 2])
def test_a_stored_split_is_taken_row_by_row(tmp_path, fold):
    found = table.load(saved(tmp_path), fold=fold)
    for part, rows in (("train", ORDER[fold or 0, :24]), ("test", ORDER[fold or 0, 24:])):
        x, y = raw(found, part)
        np.testing.assert_allclose(x, X[rows], atol=1e-3)
        np.testing.assert_allclose(y, Y[rows], atol=1e-3)
        assert found.ids[part] == tuple(map(str, rows))
    assert (found.num_classes, found.x_val, found.class_names) == (0, None, ())
    assert found.description.endswith(f"24 train, 6 test; the parts it came with (fold {fold or 0})")
    assert found.y_train.mean() == pytest.approx(0, abs=1e-6)
    assert found.y_train.std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("options", [{"split": "given"}, {"ratios": (8, 1, 1)}, {"split": "given_test"}])
def test_a_validation_part_on_request(tmp_path, options):
    """24 / 9 = 2.7 of the training rows, none of the test rows."""
    found = table.load(saved(tmp_path), fold=1, **options)
    assert sizes(found) == [21, 3, 6]
    assert found.ids["test"] == tuple(map(str, ORDER[1, 24:]))
    assert sorted(map(int, found.ids["train"] + found.ids["val"])) == sorted(ORDER[1, :24])


def test_a_new_split_of_all_rows(tmp_path):
    for path in (saved(tmp_path), saved(tmp_path, train_index=None, test_index=None)):
        first, other = (table.load(path, seed=seed, split="random") for seed in (0, 1))
        assert sizes(first) == [24, 3, 3]
        assert sorted(int(row) for ids in first.ids.values() for row in ids) == [*range(30)]
        assert first.ids != other.ids
        for part in PARTS:
            rows = np.array(first.ids[part], int)
            np.testing.assert_allclose(raw(first, part)[1], Y[rows], atol=1e-3)
    assert table.load(path).ids == first.ids  # nothing stored: random by default


def test_equal_rows_are_never_torn_apart(tmp_path):
    path = saved(tmp_path, x=X // 2 * [[1, 0]], y=Y // 14, train_index=None, test_index=None)
    for seed in range(5):
        found = table.load(path, seed=seed, ratios=(1, 1, 1))
        where = Counter((float(y), part) for part in PARTS for y in raw(found, part)[1].round(3))
        assert set(where.values()) == {2}


def test_constant_columns_become_zeros(tmp_path):
    x = np.column_stack([X, np.full(30, 288.0), np.full(30, 0.1)])
    found = table.load(saved(tmp_path, x=x))
    np.testing.assert_allclose(found.x_train[:, 2:], 0, atol=1e-6)
    np.testing.assert_allclose(found.x_train[:, :2].std(axis=0), 1, atol=1e-6)


def test_small_differences_of_large_numbers_survive(tmp_path):
    """Numbers around 2^30, where float32 goes in steps of 64: standardised before they are rounded."""
    steps = np.random.default_rng(0).permutation(3000) * 1.0
    np.savez(tmp_path / "large.npz", x=(2.0**30 + steps)[:, None], y=steps)
    found = table.load(tmp_path / "large.npz")
    np.testing.assert_allclose(np.diff(found.x_train[:, 0]), np.diff(found.y_train), atol=1e-4)


BAD_ARRAYS = {
    "no x": (dict(x=None), {}, "not in table format: no array x"),
    "flat x": (dict(x=Y), {}, r"x must be \(N, F\) and y \(N,\), not \(30,\)"),
    "column y": (dict(y=Y[:, None]), {}, r"and \(30, 1\)"),
    "lengths": (dict(y=Y[:-1]), {}, r"\(29,\)"),
    "no features": (dict(x=X[:, :0]), {}, r"\(30, 0\)"),
    "text": (dict(x=X.astype(str)), {}, "x and y must hold numbers, not <U"),
    "objects": (dict(y=Y.astype(object)), {}, "holds pickled Python objects, which are never loaded"),
    "high fold": ({}, {"fold": 3}, r"has the folds 0\.\.2, not 3"),
    "negative fold": ({}, {"fold": -1}, r"has the folds 0\.\.2, not -1"),
    "no folds": (dict(test_index=None), {"fold": 0}, "has no stored splits"),
    "fold anew": ({}, {"fold": 0, "split": "random"}, "--fold chooses a stored split, but --split random"),
    "target": ({}, {"target": "y"}, "--target is for CSV files"),
    "row outside": (dict(test_index=ORDER[:, 24:] + 30), {}, r"names rows outside 0\.\.29"),
    "row twice": (dict(test_index=ORDER[:, :6]), {}, "fold 0 names a row twice"),
    "folds differ": (dict(test_index=ORDER[:2, 24:]), {}, "integers of one S"),
    "float rows": (dict(test_index=ORDER[:, 24:] / 2), {}, "integers of one S"),
    "empty test": (dict(test_index=ORDER[:, :0]), {}, "fold 0 has an empty part"),
    "nan": (
        dict(x=np.where(X == 9, np.nan, X)),
        {},
        r"row (3|9): NaN or infinite \(2 such rows\).*--skip-bad",
    ),
    "inf": (dict(y=np.where(Y == 100, np.inf, Y)), {}, "row 0: NaN or infinite: "),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_told_in_one_line(tmp_path, name):
    changes, options, message = BAD_ARRAYS[name]
    with pytest.raises(UserError, match=message) as error:
        table.load(saved(tmp_path, **changes), **options)
    assert "\n" not in str(error.value)


def test_rows_that_are_not_finite_are_left_out_on_request(tmp_path):
    found = table.load(saved(tmp_path, y=np.where(Y == 100, np.nan, Y)), skip_bad=True)
    assert [told.split("npz, ")[1] for told in found.left_out] == ["row 0: NaN or infinite"]
    rows = [row for ids in found.ids.values() for row in ids]
    assert sorted(map(int, rows)) == [*range(1, 30)]
    np.testing.assert_allclose(raw(found, "train")[1], Y[np.array(found.ids["train"], int)], atol=1e-3)


# CSV


def csv_lines(separator=",", number=30) -> list[str]:
    names = ["age", "height", "price"]
    return [separator.join(map(str, row)) for row in [names, *((i, i + 0.5, 100 - i) for i in range(number))]]


def written(path, lines, encoding="utf-8", end="\n") -> Path:
    (path / "toy.csv").write_text(end.join(lines) + end, encoding=encoding, newline="")
    return path / "toy.csv"


@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
@pytest.mark.parametrize("how", [{}, {"encoding": "utf-8-sig", "end": "\r\n"}])
def test_every_cell_is_where_it_belongs(tmp_path, separator, how):
    path = written(tmp_path, csv_lines(separator), **how)
    found = table.load(path)
    assert sizes(found) == [24, 3, 3]
    seen = []
    for part in PARTS:
        x, y = raw(found, part)
        i = np.array(found.ids[part], int) - 2  # the header is line 1
        np.testing.assert_allclose(x, np.stack([i, i + 0.5], axis=1), atol=1e-4)
        np.testing.assert_allclose(y, 100 - i, atol=1e-4)
        seen += i.tolist()
    assert sorted(seen) == [*range(30)]
    table.load(path, target="age")  # the first name is not spoilt by a mark of the encoding


def test_the_target_by_name(tmp_path):
    found = table.load(written(tmp_path, csv_lines()), target="height")
    i = np.array(found.ids["train"], int) - 2
    x, y = raw(found, "train")
    np.testing.assert_allclose(x, np.stack([i, 100 - i], axis=1), atol=1e-4)
    np.testing.assert_allclose(y, i + 0.5, atol=1e-4)


def test_quoted_names_with_spaces(tmp_path):
    """The form of the original wine-quality file."""
    lines = csv_lines(";")
    lines[0] = '"fixed acidity";"a; b";"quality"'
    assert sizes(table.load(written(tmp_path, lines), target="a; b")) == [24, 3, 3]


def test_blank_lines_and_quoted_line_breaks_keep_the_count_of_lines(tmp_path):
    lines = csv_lines()
    lines[0] = '"age\nin years",height,price'  # lines 1 and 2
    lines.insert(3, "")
    lines[6] = '"4\n",4.5,96'  # lines 8 and 9
    found = table.load(written(tmp_path, lines))
    expected = [3, 4, 6, 7, 8, *range(10, 35)]
    assert sorted(int(i) for ids in found.ids.values() for i in ids) == expected
    lines[7] = "x,1,2"
    with pytest.raises(UserError, match="row 10, column age in years: 'x' is no number"):
        table.load(written(tmp_path, lines))


ROWS = {  # what stands in line 5 -> what is said of it
    "text": ("three,3.5,97", "row 5, column age: 'three' is no number"),
    "nan": ("3,nan,97", "row 5, column height: nan is not finite"),
    "inf": ("3,3.5,-inf", "row 5, column price: -inf is not finite"),
    "empty": ("3, ,97", "row 5, column height: empty"),
    "missing": ("3,3.5,NA", "row 5, column price: 'NA' is no number"),
    "short": ("3,3.5", "row 5: 2 cells for 3 columns"),
    "long": ("3,3.5,97,1", "row 5: 4 cells for 3 columns"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_named_or_left_out(tmp_path, name):
    line, message = ROWS[name]
    lines = csv_lines()
    lines[4] = line
    path = written(tmp_path, lines)
    with pytest.raises(UserError) as error:
        table.load(path)
    assert str(error.value) == f"{path}, {message}: mend it, or pass --skip-bad to leave it out"
    found = table.load(path, skip_bad=True)
    assert found.left_out == (f"toy.csv, {message}",)
    assert sorted(int(i) for ids in found.ids.values() for i in ids) == [2, 3, 4, *range(6, 32)]


def test_several_bad_rows_are_counted(tmp_path):
    lines = csv_lines()
    lines[4], lines[9] = "3,,97", "x,8.5,92"
    with pytest.raises(UserError, match=r"row 5, column height: empty \(2 such rows\): mend"):
        table.load(written(tmp_path, lines))
    assert len(table.load(written(tmp_path, lines), skip_bad=True).left_out) == 2


def swapped(column, values) -> list[str]:
    rows = [line.split(",") for line in csv_lines()]
    for row, value in zip(rows, values, strict=False):
        row[column] = value
    return [",".join(row) for row in rows]


TEXT = ["kind", *("ab"[i % 2] for i in range(30))]
BAD_FILES = {
    "no target": (
        csv_lines(),
        {"target": "weight"},
        "no column weight for --target: choose from age, height",
    ),
    "underscores": (swapped(0, ["month", *["2020_05"] * 30]), {}, r"column month holds text \('2020_05'\)"),
    "text target": (swapped(2, TEXT), {}, r"target column kind holds text \('a'\).*not for classification"),
    "text column": (
        swapped(0, TEXT),
        {},
        r"column kind holds text \('a'\): encode it as numbers or remove it",
    ),
    "twice": (swapped(0, ["price"]), {}, "columns 1 and 3 are both named price"),
    "no name": (swapped(0, [""]), {}, "column 1 has no name"),
    "no header": (csv_lines()[1:], {}, "first line holds numbers only"),
    "one column": (["price", "1", "2", "3"], {}, "no comma, semicolon or tab"),
    "header only": (csv_lines()[:1], {}, "no rows with numbers"),
    "empty": ([""], {}, "is empty"),
    "late header": (["", *csv_lines()], {}, "first line is empty"),
    "fold": (csv_lines(), {"fold": 1}, "has no stored splits: --fold"),
    "open quote": ([*csv_lines(), '1,2,"3'], {}, "line 32: no readable CSV"),
    "given": (csv_lines(), {"split": "given"}, "needs data that come with parts"),
    "too few": (csv_lines()[:4], {}, "3 examples are too few|is empty"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_told_in_one_line(tmp_path, name):
    lines, options, message = BAD_FILES[name]
    for skip_bad in (False, True):
        with pytest.raises(UserError, match=message) as error:
            table.load(written(tmp_path, lines), skip_bad=skip_bad, **options)
        assert "\n" not in str(error.value)


def test_files_that_are_no_table(tmp_path):
    (tmp_path / "sheet.csv").write_bytes(b"PK\x03\x04\xff\xfe binary")
    for path, message in [
        (None, "needs --path FILE"),
        (tmp_path / "nowhere.csv", "no file"),
        (tmp_path / "nowhere.npz", "no file"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "sheet.csv", "is not UTF-8 text"),
        (written(tmp_path, csv_lines(), encoding="utf-16"), "is not UTF-8 text"),
    ]:
        with pytest.raises(UserError, match=message):
            table.load(path)
    lines = csv_lines()
    lines[4] = "3,,97"
    with pytest.raises(UserError, match=r"no rows with numbers; the first: .*row 2, column age: 'x' is no"):
        table.load(written(tmp_path, [lines[0], "x,1,2", "3,4,y"]), skip_bad=True)


# real data


@needs_data
@pytest.mark.parametrize("name", ["bostonHousing", "naval-propulsion-plant", "yacht"])
def test_uci_folds_are_the_stored_ones(name):
    path = Path(os.environ[data.DATA_DIR]) / "uci" / f"{name}.npz"
    with np.load(path) as file:
        stored = {key: file[key] for key in ("x", "y", "train_index", "test_index")}
    for fold in (0, 7):
        found = table.load(path, fold=fold)
        for part in ("train", "test"):
            rows = stored[f"{part}_index"][fold]
            assert found.ids[part] == tuple(map(str, rows))
            x, y = raw(found, part)
            np.testing.assert_allclose(y, stored["y"][rows], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(x, stored["x"][rows], rtol=1e-4, atol=1e-4)
    if name.startswith("naval"):
        np.testing.assert_allclose(found.x_train[:, [8, 11]], 0, atol=1e-6)  # constant in all rows
        assert (found.scaling.scale[[8, 11]] == 1).all()


@needs_data
def test_boston_is_the_same_as_csv_and_as_arrays():
    root = Path(os.environ[data.DATA_DIR]) / "uci"
    csv, npz = (
        table.load(root / name, split="random") for name in ("boston_housing.csv", "bostonHousing.npz")
    )

    def ordered(found, offset):
        x, y = (np.concatenate(arrays) for arrays in zip(*(raw(found, part) for part in PARTS), strict=True))
        rows = np.array([int(row) - offset for part in PARTS for row in found.ids[part]])
        return np.column_stack([x, y])[np.argsort(rows)]

    np.testing.assert_allclose(ordered(csv, 2), ordered(npz, 0), rtol=1e-4, atol=1e-4)
