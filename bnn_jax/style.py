"""The house style of every picture: fonts, colours, markers, canvas and PNG.

Figures are built without pyplot and without global state: the style is set around each function and undone
after it. A method keeps one colour and one marker in every picture (`colour`, `marker`); things that are not
methods (layers, chains) take theirs from a sequential map. All colours are safe for colour-blind eyes.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # names are shown as they are
}
_COLOURS = {  # Okabe and Ito, then Tol's muted set; black for the usual reference
    "hmc": "#222222",
    "map": "#D55E00",
    "vi": "#0072B2",
    "swag": "#009E73",
    "dropout": "#E69F00",
    "laplace": "#CC79A7",
    "sgld": "#56B4E9",
    "ensemble": "#882255",
    "nuts": "#777777",
    "sghmc": "#332288",
}
_SPARE = ("#117733", "#AA4499", "#44AA99", "#999933", "#661100", "#DDCC77", "#6699CC")
_MARKERS = "oDs^vP<X>p"
GREY = "#9a9a9a"


def colour(name: str) -> str:
    """The colour of a method: fixed for known names, derived from the name for others."""
    return _COLOURS.get(name.lower()) or _SPARE[zlib.crc32(name.lower().encode()) % len(_SPARE)]


def marker(name: str) -> str:
    """The marker of a method, as `colour`."""
    known = list(_COLOURS)
    name = name.lower()
    return _MARKERS[known.index(name) if name in known else zlib.crc32(name.encode()) % len(_MARKERS)]


def save(figure: Figure, path: str | Path, dpi: int = 200) -> None:
    """Write a PNG; the same figure gives the same bytes. Missing folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None})


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Build and lay out the figure under the house style, leaving the caller's as it was."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        with matplotlib.rc_context(_STYLE):
            figure = function(*args, **kwargs)
            for text in figure.findobj(Text):
                text.set_text(drawable(text.get_text()))
            figure.draw_without_rendering()  # ticks are made on the first draw: make them in this style
        return figure

    return wrapper


def drawable(text: str) -> str:
    """`text` as Matplotlib can draw it: bytes of a file's name that are no UTF-8 become a sign for that."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def canvas(width: float, height: float, text: str = "") -> Figure:
    """An empty figure of that size in inches, laid out by itself, with its headline on the left."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if text:
        headline(figure, text)
    return figure


def headline(figure: Figure, text: str) -> None:
    """A headline on the left."""
    figure.suptitle(text, x=0.01, ha="left")


def plain_log(axis, subs: Sequence[int] = (1,)) -> None:
    """Ticks of a log axis as plain numbers."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def shorten(text: str, length: int) -> str:
    """`text`, if need be with its middle left out, of at most `length` characters."""
    text = str(text)
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[half - length + 1 :]}"
