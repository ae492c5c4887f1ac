"""The report on data before training: counts, warnings and example pictures, from `inspection.summarise`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bnn_jax import inspection, style
from bnn_jax.report import html
from bnn_jax.splits import PARTS

_SHOWN = 6  # pictures of a class in a part
_FEW = 4  # up to so many classes the pictures stand in two lines and are large
_MOST = 30  # classes drawn
_LONGEST = 22  # letters of a class name in the picture
_BETWEEN = 0.16  # inches between parts
_LEFT_OUT = 50  # lines of what was left out


def write(
    out: Path,
    summary: Mapping[str, Any],
    images: Mapping[str, Mapping[str, np.ndarray]],
    left_out: Sequence[str],
) -> None:
    """Write `data.html` and, if there are images, `data_examples.png` to the folder `out`.

    Args:
        summary: as `inspection.summarise` returns it.
        images: part -> class name -> (n, H, W) or (n, H, W, 3) in [0, 1]; the first six of each are shown.
            {} for data that are no images.
        left_out: a line for everything that was found and not used, as files and why.
    """
    out = Path(out)
    told = inspection.warnings(summary)
    sections = [
        html.Section("Counts", _counts_text(summary), table=_counts(summary)),
        html.Section(
            "To know before training", "" if told else "Nothing found that needs a warning.", notes=told
        ),
    ]
    if any(len(pictures) for classes in images.values() for pictures in classes.values()):
        style.save(examples(summary, images), out / "data_examples.png")
        caption = f"Up to {_SHOWN} examples of each class in each part, before any augmentation."
        num_classes = len(_names(summary, images))
        if num_classes > _MOST:
            caption += f" The first {_MOST} of {num_classes:,} classes."
        sections.append(html.Section("Examples", "", [(caption, (out / "data_examples.png").read_bytes())]))
    text = "Copies agree in every byte. Near copies, such as neighbouring slices of a patient, are not found."
    sections.append(html.Section("Copies", text, table=_copies(summary)))
    if left_out:
        more = [f"... and {len(left_out) - _LEFT_OUT:,} more."] if len(left_out) > _LEFT_OUT else []
        text = f"{len(left_out):,} found and not used."
        sections.append(html.Section("Left out", text, notes=[*left_out[:_LEFT_OUT], *more]))
    html.write(out / "data.html", "The data", _lead(summary), sections)


def console(summary: Mapping[str, Any]) -> Group:
    """The counts and the warnings to print with rich; a table fits 80 columns."""
    header, *body = _counts(summary)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for i, title in enumerate(header):
        table.add_column(Text(title), justify="right" if i else "left", max_width=None if i else 24)
    for row in body:
        table.add_row(*map(Text, row))
    parts = [Text(_lead(summary)), Padding(table, (1, 0, 0, 0))]
    told = inspection.warnings(summary)
    if told:
        lines = Table.grid(padding=(0, 1))
        for sentence in told:
            lines.add_row("-", Text(sentence, style="bold red"))
        parts.append(Padding(lines, (1, 0, 0, 0)))
    return Group(*parts)


@style.styled
def examples(summary: Mapping[str, Any], images: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Example pictures, a row a class and a column a part; the numbers count all examples, shown or not.

    Args: as of `write`.
    """
    parts = [part for part in PARTS if images.get(part)]
    names = _names(summary, images)[:_MOST]
    lines = 2 if len(names) <= _FEW else 1
    across = _SHOWN // lines
    tile = 9.0 / (across * max(len(parts), 2))  # inches
    ratio = max(np.shape(p)[1] / np.shape(p)[2] for part in parts for p in images[part].values() if len(p))
    margin = 0.3 + 0.1 * max(map(len, map(_short, names)))
    figure = style.canvas(
        margin + (tile * across + _BETWEEN) * len(parts), 0.4 + (tile * ratio * lines + 0.34) * len(names)
    )
    figure.get_layout_engine().set(w_pad=_BETWEEN / 2)
    style.headline(figure, "Examples of every class, with the number of examples")
    grid = figure.subplots(len(names), len(parts), squeeze=False)
    for row, name in zip(grid, names, strict=True):
        for axes, part in zip(row, parts, strict=True):
            pictures = np.asarray(images[part].get(name, ()))[:_SHOWN]
            _cell(axes, pictures, across, lines)
            axes.set_title(_cell_title(summary, part, name), fontsize=9, color="#444444", loc="left")
        row[0].set_ylabel(_short(name), rotation=0, ha="right", va="center", fontweight="bold")
    return figure


def _names(summary, images):
    """The classes with pictures, in the order of their labels."""
    found = list(dict.fromkeys(name for classes in images.values() for name in classes))
    known = [name for name in summary["class_names"] if name in found]
    return known + [name for name in found if name not in known]


def _cell(axes, pictures, across, lines):
    """The pictures side by side, in reading order, as one image: far faster than an axes each."""
    axes.set(xticks=(), yticks=())
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if len(pictures) == 0:
        axes.text(0.5, 0.5, "none", ha="center", va="center", color="#777777", transform=axes.transAxes)
        return
    height, width = pictures.shape[1:3]
    gap = max(1, width // 28)
    sheet = np.ones((lines * (height + gap) - gap, across * (width + gap) - gap, 3))
    for i, picture in enumerate(pictures):
        top, left = i // across * (height + gap), i % across * (width + gap)
        colours = picture[..., None] if picture.ndim == 2 else picture
        sheet[top : top + height, left : left + width] = np.clip(colours, 0, 1)
    axes.imshow(sheet)


def _cell_title(summary, part, name):
    if name not in summary["class_names"]:
        return part
    return f"{part}: {summary['parts'][part]['classes'][summary['class_names'].index(name)]:,}"


def _short(name):
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _lead(summary):
    shape = " x ".join(map(str, summary["input_shape"])) or "one number"
    low, high = summary["value_range"]
    span = "no finite values" if low is None else f"values from {low:.4g} to {high:.4g}"
    return f"{summary['num_examples']:,} examples, each {shape}, {span}."


def _counts_text(summary):
    if summary["task"] == "regression":
        return "The target in each part, in its own unit."
    return "Examples of each class in each part, and their share of the part."


def _counts(summary):
    """Rows of strings, the header first: classes by parts, or for a regression parts by statistics."""
    parts = summary["parts"]
    if summary["task"] == "regression":
        keys = ("mean", "std", "min", "max")
        return [
            ["target", "examples", *keys],
            *(
                [
                    p,
                    f"{found['count']:,}",
                    *(f"{found['target'][k]:.4g}" if found["target"] else "-" for k in keys),
                ]
                for p, found in parts.items()
            ),
        ]
    used = [p for p in parts if parts[p]["count"]]
    table = [["class", *used]]
    for k, name in enumerate(summary["class_names"]):
        counts = [(parts[p]["classes"][k], parts[p]["count"]) for p in used]
        title = name if name == str(k) else f"{k} {name}"
        table.append([title, *(f"{n:,} ({100 * n / total:.1f} %)" for n, total in counts)])
    return [*table, ["all", *(f"{parts[p]['count']:,}" for p in used)]]


def _copies(summary):
    """Rows of strings, the header first: what is equal to what, how many, and which."""
    found = summary["duplicates"]
    table = [["where", "examples", "sets of equal ones", "such as"]]
    for part, entry in found["within"].items():
        table.append([f"twice or more in {part}", f"{entry['copies']:,} extra", f"{entry['sets']:,}", ""])
    for pair, entry in found["across"].items():
        first, second = pair.split("/")
        told = f"{entry['examples']:,} of {second}"
        table.append([f"in {first} and {second}", told, f"{entry['sets']:,}", ", ".join(entry["ids"])])
    entry = found["conflicting"]
    what = "label" if summary["task"] == "classification" else "target"
    name = f"equal, but with another {what}"
    return [*table, [name, f"{entry['examples']:,}", f"{entry['sets']:,}", ", ".join(entry["ids"])]]
