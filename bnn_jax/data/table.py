"""Tables for regression: a CSV file with a header, or an .npz file with stored splits.

.npz: `x` (N, F), `y` (N,), and where there are stored splits `train_index` (S, n) and `test_index` (S, m) row
numbers, as of the UCI benchmark (Hernandez-Lobato & Adams, arXiv:1502.05336). CSV: UTF-8, a comma, semicolon
or tab between cells, one line of column names, below it numbers with a decimal point; all columns but the
target are features.

Rows of equal features and target never lie in two drawn parts.
"""

import csv
from pathlib import Path

import numpy as np

from bnn_jax.data import assemble, partition, read_npz
from bnn_jax.splits import content_hash
from bnn_jax.types import Dataset, UserError

SAMPLE = 20  # lines from which the delimiter is told


def load(
    path: Path | None = None,
    seed: int = 0,
    target: str | None = None,
    fold: int | None = None,
    split: str | None = None,
    ratios: tuple[float, float, float] | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """The table at `path`, told by its suffix, in float64 until it is standardised.

    Stored splits: number `fold`, from 0, by default the first; they have no validation part unless `split` or
    `ratios` ask for one, drawn from the training rows. Otherwise all parts are drawn, 8:1:1 by default.

    Args:
        target: the column of a CSV file to predict; default: the last.
        skip_bad: leave out rows with cells that are no finite numbers, and list them, instead of stopping.

    An id is the row's number: of the arrays from 0, of a CSV file the line as an editor shows it.

    Raises:
        UserError: no path, no such file, another format; a row or a column that cannot be read, by number and
            name; no such target or fold; a target of text; a split that cannot be drawn.
    """
    if path is None:
        raise UserError("the data set table needs --path FILE.csv or FILE.npz")
    path = Path(path)
    if path.suffix.lower() == ".npz":
        x, y, rows, given, bad = _read_npz(path, target, fold, split)
    elif fold is not None:
        raise UserError(f"{path} has no stored splits: --fold is for .npz files that have some")
    else:
        x, y, rows, bad = _read_csv(path, target)
        given = None
    if bad and not skip_bad:
        more = f" ({len(bad)} such rows)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}: mend it, or pass --skip-bad to leave it out")
    if len(y) == 0:
        raise UserError(f"{path}: no rows with numbers" + (f"; the first: {bad[0]}" if bad else ""))
    parts, how = partition(
        x,
        y,
        rows,
        given=given,
        split=split,
        ratios=ratios,
        duplicates=content_hash(np.column_stack([x, y])),
        stratify=False,
        seed=seed,
    )
    which = "" if given is None or split == "random" else f" (fold {fold or 0})"
    return assemble(
        path.stem,
        **parts,
        num_classes=0,
        left_out=[told.replace(str(path), path.name, 1) for told in bad],
        description=f"table {path.name}, {x.shape[1]} features, standardised: {how}{which}",
    )


def _read_npz(path, target, fold, split):
    """(x, y, row numbers, part or None of each, what is bad), in the order of the stored split if any."""
    if target is not None:
        raise UserError(f"{path}: the target of an .npz file is its array y; --target is for CSV files")
    stored = ("train_index", "test_index")
    arrays = read_npz(path, ("x", "y"), stored, "table")
    x, y = arrays["x"], arrays["y"]
    if x.ndim != 2 or y.shape != x.shape[:1] or x.shape[1] == 0:
        raise UserError(f"{path}: x must be (N, F) and y (N,), not {x.shape} and {y.shape}")
    if x.dtype.kind not in "uif" or y.dtype.kind not in "uif":
        raise UserError(f"{path}: x and y must hold numbers, not {x.dtype} and {y.dtype}")
    x, y = x.astype(np.float64), y.astype(np.float64)
    rows, given = np.arange(len(y)), None
    if all(name in arrays for name in stored):
        number, index = fold or 0, [arrays[name] for name in stored]
        if any(i.ndim != 2 or i.dtype.kind not in "ui" for i in index) or len(index[0]) != len(index[1]):
            raise UserError(f"{path}: train_index and test_index must be (S, n) integers of one S")
        if not 0 <= number < len(index[0]):
            raise UserError(f"{path} has the folds 0..{len(index[0]) - 1}, not {number}")
        train, test = (i[number].astype(np.int64) for i in index)
        picked = np.concatenate([train, test])
        if picked.size and (picked.min() < 0 or picked.max() >= len(y)):
            raise UserError(f"{path}: fold {number} names rows outside 0..{len(y) - 1}")
        if len(np.unique(picked)) < len(picked):
            raise UserError(f"{path}: fold {number} names a row twice")
        if len(train) == 0 or len(test) == 0:
            raise UserError(f"{path}: fold {number} has an empty part")
        if split != "random":
            rows, given = picked, np.repeat(["train", "test"], [len(train), len(test)])
    elif fold is not None:
        raise UserError(f"{path} has no stored splits (train_index, test_index): leave --fold out")
    if fold is not None and split == "random":
        raise UserError("--fold chooses a stored split, but --split random draws a new one: leave one out")
    good = np.isfinite(x[rows]).all(axis=1) & np.isfinite(y[rows])
    bad = [f"{path}, row {row}: NaN or infinite" for row in rows[~good]]
    rows = rows[good]
    return x[rows], y[rows], rows, given if given is None else given[good], bad


def _read_csv(path, target):
    """(x, y, line numbers, what is bad)."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            dialect = _dialect(path, "".join(line for line, _ in zip(file, range(SAMPLE), strict=False)))
            file.seek(0)
            reader = csv.reader(file, strict=True, **dialect)
            header = [" ".join(name.split()) for name in next(reader)]
            column = _check_header(path, header, target)
            records, line = [], reader.line_num
            for record in reader:  # a quoted cell may span lines: a record begins after the last one's end
                if record:
                    records.append((line + 1, record))
                line = reader.line_num
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no readable CSV: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    _check_text(path, header, column, [record for _, record in records])
    values, lines, bad = [], [], []
    for line, record in records:
        reason = _fault(record, header)
        if reason:
            bad.append(f"{path}, row {line}{reason}")
        else:
            values.append([float(cell) for cell in record])
            lines.append(line)
    table = np.array(values, np.float64).reshape(-1, len(header))
    return np.delete(table, column, axis=1), table[:, column], np.array(lines, int), bad


def _dialect(path, sample):
    if not sample.strip():
        raise UserError(f"{path} is empty")
    header = sample.strip().splitlines()[0]
    for text in (sample, header):  # rows of unequal length confuse it: then the names alone must do
        try:
            found = csv.Sniffer().sniff(text, delimiters=",;\t")
            return {"delimiter": found.delimiter, "skipinitialspace": found.skipinitialspace}
        except csv.Error:
            continue
    raise UserError(f"{path}: no comma, semicolon or tab separates columns; two are needed at least")


def _check_header(path, header, target):
    """The position of the target among the column names."""
    if not header:
        raise UserError(f"{path}: the first line is empty; put the names of the columns there")
    if all(_number(name) is not None for name in header):
        raise UserError(f"{path}: the first line holds numbers only; put the names of the columns there")
    for position, name in enumerate(header, 1):
        if not name:
            raise UserError(f"{path}: column {position} has no name; name it in the first line or remove it")
        if header.index(name) + 1 < position:
            raise UserError(f"{path}: columns {header.index(name) + 1} and {position} are both named {name}")
    if len(header) < 2:
        raise UserError(f"{path} has the column {header[0]} only; a table needs a feature and a target")
    if target is None:
        return len(header) - 1
    if target not in header:
        raise UserError(f"{path} has no column {target} for --target: choose from {', '.join(header)}")
    return header.index(target)


def _check_text(path, header, column, records):
    """No column may hold text alone: that is a mistake in the choice of columns, not in rows."""
    whole = [record for record in records if len(record) == len(header)]
    for position, name in enumerate(header):
        cells = [record[position].strip() for record in whole]
        text = next((cell for cell in cells if cell), None)
        if text is None or any(_number(cell) is not None for cell in cells):
            continue
        if position == column:
            raise UserError(
                f"{path}: the target column {name} holds text ({text!r}); tables are read for regression, "
                "not for classification: choose a column of numbers by --target"
            )
        raise UserError(f"{path}: column {name} holds text ({text!r}): encode it as numbers or remove it")


def _fault(record, header):
    """What is wrong with a row, or ''."""
    if len(record) != len(header):
        return f": {len(record)} cells for {len(header)} columns"
    for name, cell in zip(header, record, strict=True):
        value = _number(cell)
        if not cell.strip():
            return f", column {name}: empty"
        if value is None:
            return f", column {name}: {cell.strip()!r} is no number"
        if not np.isfinite(value):
            return f", column {name}: {cell.strip()} is not finite"
    return ""


def _number(cell):
    try:
        return None if "_" in cell else float(cell)  # 2020_05 is a number in Python alone
    except ValueError:
        return None
