"""A report as one HTML file: pictures inside, no script, no link to anywhere, light and dark.

Everything passed in is plain text and is escaped; nothing is read as markup.
"""

import base64
import io
import struct
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from bnn_jax import files

_DPI = 200  # pixels an inch of a picture
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing from outside, no script
_SCALE = 2  # pixels of a picture shown as one CSS pixel


class Section(NamedTuple):
    """One section of a report, shown in the order of its fields. Only the heading is required."""

    heading: str
    text: str = ""  # paragraphs, separated by empty lines
    figures: Sequence[tuple[str, Figure | bytes]] = ()  # (caption, figure or PNG at 200 dots an inch)
    table: Sequence[Sequence[str]] | None = None  # rows, the header first
    notes: Sequence[str] = ()  # a list below the table


def write(path: str | Path, title: str, lead: str, sections: Sequence[Section | tuple]) -> None:
    """Write the report.

    Args:
      path: the file to write; missing folders are made.
      title: heading of the page.
      lead: what the page shows, in a sentence or two.
      sections: `Section`s, or plain tuples in the same order of fields.
    """
    sections = [Section(*section) for section in sections]
    entries = "\n".join(
        f'<li><a href="#s{i}">{escape(section.heading)}</a></li>' for i, section in enumerate(sections, 1)
    )
    contents = f'<nav aria-label="Contents"><ol>\n{entries}\n</ol></nav>' if len(sections) > 2 else ""
    body = "\n".join(_section(i, section) for i, section in enumerate(sections, 1))
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<div class="lead">{_paragraphs(lead)}</div>
{contents}
</header>
<main>
{body}
</main>
</body>
</html>
"""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as file:
        file.write(page)


def _section(number, section):
    parts = [f'<section id="s{number}">', f"<h2>{escape(section.heading)}</h2>", _paragraphs(section.text)]
    parts += [_picture(caption, figure) for caption, figure in section.figures]
    if section.table:
        parts.append(_table(section.table))
    if section.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in section.notes) + "</ul>")
    return "\n".join([*filter(None, parts), "</section>"])


def _paragraphs(text):
    return "\n".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _picture(caption, figure):
    data = figure if isinstance(figure, bytes) else _png(figure)
    width = struct.unpack(">I", data[16:20])[0] // _SCALE  # the PNG header
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    caption = escape(caption)
    image = f'<img width="{width}" alt="{caption}" src="{source}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _table(rows):
    header, *body = rows
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>' for row in body
    )
    kind = "pairs" if len(header) == 2 else "numbers"
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _cell(text):
    return f"<td>{escape(text).replace(' ± ', '&nbsp;±&nbsp;')}</td>"  # an interval stays on one line


_CSS = """
:root { color-scheme: light dark; --text: #1c2128; --soft: #57606a; --line: #d5dae0; --back: #ffffff;
  --panel: #f5f7f9; --link: #0b62b0; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e7eb; --soft: #9aa4af; --line: #383f47;
  --back: #15191e; --panel: #1e242b; --link: #7cb8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 66rem; color: var(--text);
  background: var(--back); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { margin: 0 0 .6rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 0 0 .6rem; font-size: 1.3rem; }
p, li, figcaption { max-width: 46rem; overflow-wrap: anywhere; }
.lead { font-size: 1.1rem; color: var(--soft); }
a { color: var(--link); }
nav ol { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 1rem 0 0; padding: 0; list-style: none; }
section { margin-top: 2rem; padding-top: 1.6rem; border-top: 1px solid var(--line); }
figure { margin: 1.4rem 0; }
img { display: block; max-width: 100%; height: auto; padding: .6rem; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; }
figcaption { margin-top: .5rem; font-size: .9rem; color: var(--soft); }
.scroll { margin: 1.2rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .65rem; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 600; }
tbody tr:nth-child(odd) { background: var(--panel); }
.numbers td { text-align: right; }
.numbers tbody th { min-width: 7.5rem; }
.numbers thead th:not(:first-child) { text-align: right; }
.pairs td { overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; }
  .scroll { overflow: visible; } }
"""
