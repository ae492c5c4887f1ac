"""Tables and sentences from a results dict: one set of rows for Markdown, the console and HTML.

A table is a list of rows of strings, the header first. Intervals are written `0.972 ± 0.014`, where the
second number reaches the farther end of the interval: an uneven one never looks narrower than it is.
"""

from collections.abc import Mapping
from itertools import zip_longest
from numbers import Real
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Columns of the first table and, of distances only, of the second; of classifications and of regressions.
_SCORES = {"accuracy": "accuracy ↑", "nll": "NLL, nats ↓", "brier": "Brier ↓", "ece": "ECE ↓"}
_DISTANCES = {"agreement": "agreement with {} ↑", "total_variation": "total variation to {} ↓"}
_MORE = {
    "symmetric_kl": "symmetric KL, nats ↓",
    "w2": "W2 of draws ↓",
    "entropy_gap": "entropy gap, nats → 0",
    "calibration_gap": "calibration gap → 0",
}
_SCORES_OF_TARGETS = {"rmse": "RMSE ↓", "nll": "NLL, nats ↓", "coverage_90": "90 % intervals hold → 0.9"}
_DISTANCES_OF_TARGETS = {"total_variation": "total variation to {} ↓", "w2": "W2 of means to {} ↓"}
_MORE_OF_TARGETS = {key: _MORE[key] for key in ("symmetric_kl", "entropy_gap")}
_TO_REFERENCE = {*_DISTANCES, *_MORE}
_MISSING = "-"


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The main table: one row a method, arrows pointing to the better direction.

    The reference has no distance to itself; its row shows the noise floor instead, marked as such. Without a
    reference there are no distances. A method with bad chains carries them in its name.
    """
    classes = results["data"]["num_classes"]
    columns = dict(_SCORES if classes else _SCORES_OF_TARGETS)
    if results.get("reference"):
        columns |= _DISTANCES if classes else _DISTANCES_OF_TARGETS
    titles = [title.format(results.get("reference")) for title in columns.values()]
    body = [
        [*_row(results, name, columns), _seconds(r.get("seconds"))] for name, r in results["methods"].items()
    ]
    return [["method", *titles, "seconds"], *body]


def distances(results: Mapping[str, Any]) -> list[list[str]]:
    """The second table: further distances to the reference, whose own row shows the noise floor."""
    columns = _MORE if results["data"]["num_classes"] else _MORE_OF_TARGETS
    return [["method", *columns.values()], *(_row(results, name, columns) for name in results["methods"])]


def weights(results: Mapping[str, Any]) -> list[list[str]]:
    """One row a layer and method: means and widths of the weights beside the reference's, and the floor."""
    record = results["weights"]
    rows_ = [["layer", "method", "means apart, in std ↓", "ratio of std → 1", "W2, in std ↓"]]
    keys = ("mean_difference", "std_ratio", "wasserstein_in_std")
    named = {**record["methods"], f"floor {results['reference']}": record["floor"]}
    for layer in next(iter(record["methods"].values()), {}):
        for name, layers in named.items():
            if layers:
                rows_.append([layer, name, *(_value(layers[layer], key) for key in keys)])
    return rows_


def chains(results: Mapping[str, Any]) -> list[list[str]]:
    """One row a chain of every method with diagnostics, a column for each value known by chain."""
    titles = {"status": "status", "acceptance": "acceptance", "step_size": "step size"}
    titles |= {"num_steps": "steps a draw", "moved": "moved"}
    known = {
        name: {key: record[key] for key in titles if isinstance(record.get(key), list | tuple)}
        for name, record in _diagnostics(results).items()
    }
    keys = [key for key in titles if any(key in lists for lists in known.values())]
    table = [["chain", *(titles[key] for key in keys)]]
    for name, lists in known.items():
        columns = [lists.get(key, ()) for key in keys]
        for chain, values in enumerate(zip_longest(*columns), 1):
            table.append([f"{name}: chain {chain}", *map(_number, values)])
    return table


def settings(mapping: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """A nested dict (the configuration, the environment) as rows of setting and value, with dotted names."""
    table = [] if prefix else [["setting", "value"]]
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            table += settings(value, f"{prefix}{key}.")
        else:
            table.append([f"{prefix}{key}", _number(value)])
    return table


def notes(results: Mapping[str, Any]) -> list[str]:
    """The sentences under the main table: bad chains first, then remarks, floor, diagnostics, intervals."""
    remarks = [
        f"{name}: {record['note'].rstrip('.')}."
        for name, record in results["methods"].items()
        if record.get("note")
    ]
    return [*_bad_chains(results), *remarks, _floor(results), *_convergence(results), *_intervals(results)]


def markdown(results: Mapping[str, Any]) -> str:
    """The main table and its notes as GitHub Markdown."""
    header, *body = ([cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows(results))
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [f"| {' | '.join(row)} |" for row in (header, rule, *body)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(results)), ""])


def console(results: Mapping[str, Any]) -> Group:
    """The main table and its notes to print with rich; two lines a cell, so that it fits 80 columns."""
    header, *body = rows(results)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for i, title in enumerate(header):
        table.add_column(
            Text(title), justify="right" if i else "left", max_width=11 if i else 24, overflow="fold"
        )
    for row in body:
        table.add_row(*(Text(cell.replace(" ± ", "\n± ")) for cell in row))
    bad = _bad_chains(results)
    lines = Table.grid(padding=(0, 1))
    for note in notes(results):
        lines.add_row("-", Text(note, style="bold red" if note in bad else ""))
    return Group(table, Padding(lines, (1, 0, 0, 0)))


def _row(results, name, columns):
    record, prefix = results["methods"][name], ""
    if name == results.get("reference"):
        record, prefix = {**record, **(results.get("floor") or {})}, "floor "
    cells = []
    for key in columns:
        cell = _value(record, key)
        cells.append(prefix + cell if key in _TO_REFERENCE and cell != _MISSING else cell)
    bad = [f"chain {chain} {status}" for chain, status in _bad(_diagnostics(results).get(name, {}))]
    return [f"{name} ({', '.join(bad)})" if bad else name, *cells]


def _bad_chains(results):
    return [
        f"{name}: chain {chain} {status}, left out."
        for name, record in _diagnostics(results).items()
        for chain, status in _bad(record)
    ]


def _bad(record):
    """(chain counted from 1, status) of every chain that is not ok."""
    return [(i, status) for i, status in enumerate(record.get("status") or [], 1) if status != "ok"]


def _floor(results):
    name, floor = results.get("reference"), results.get("floor") or {}
    if name is None:
        return "No reference, so no distances: it takes a sound chain of hmc or nuts."
    variation, agreement = _value(floor, "total_variation"), _value(floor, "agreement")
    if variation == agreement == _MISSING:
        return f"No noise floor: it takes two good chains of {name}."
    agreeing = "" if agreement == _MISSING else f", agreement {agreement}"
    sentence = f"Floor, {name} chain against chain: total variation {variation}{agreeing}."
    others = {other: record for other, record in results["methods"].items() if other != name}
    methods = {other: record.get("total_variation") for other, record in others.items()}
    level = floor.get("total_variation")
    units = [
        f"{other} {value / level:.1f}" for other, value in methods.items() if value is not None and level
    ]
    return f"{sentence} Total variation in units of the floor: {', '.join(units)}." if units else sentence


def _convergence(results):
    words = {
        "rhat_function_median": "R-hat of function values: median {}",
        "rhat_function_q95": "95 % below {}",
        "rhat_weight_median": "R-hat of weights: median {}",
        "ess_function_min": "smallest effective sample size of function values {}",
        "ess_tail_function_min": "of their tails {}",
        "acceptance": "acceptance {}",
        "divergences": "divergences {}",
    }
    for name, record in _diagnostics(results).items():
        known = {key: record[key] for key in words if isinstance(record.get(key), Real)}
        if known:
            yield f"{name}: {'; '.join(words[key].format(_number(value)) for key, value in known.items())}."


def _intervals(results):
    if any(" ± " in cell for row in rows(results)[1:] for cell in row):
        yield f"± reaches the farther end of the {results.get('interval', 'bootstrap interval')}."


def _value(record, key):
    value, interval = record.get(key), record.get(f"{key}_interval")
    if value is None:
        return _MISSING
    if interval is None or None in interval:
        return f"{value:.3f}"
    return f"{value:.3f} ± {max(abs(end - value) for end in interval):.3f}"


def _number(value):
    if value is None:
        return _MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _seconds(value):
    return _MISSING if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _diagnostics(results):
    return {name: record or {} for name, record in (results.get("diagnostics") or {}).items()}
