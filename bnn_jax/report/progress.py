"""Live progress of long work: a bar on a terminal, else a line every tenth of the way and every minute."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN = {  # name in the info -> (label, format), in this order
    "elbo": ("ELBO", ".1f"),
    "log_joint": ("log joint", ".1f"),
    "nll": ("NLL", ".4f"),
    "kl": ("KL", ".1f"),
    "accept_prob": ("acceptance", ".2f"),
    "step_size": ("step size", ".2g"),
    "num_steps": ("leapfrogs", ".0f"),
}
MINUTE = 60.0  # seconds without a line, at most, where there is something to tell


def describe(info: Mapping[str, Any]) -> str:
    """The figures of one chunk in words; those of several chains are averaged."""
    shown = [(label, form, np.mean(info[name])) for name, (label, form) in SHOWN.items() if name in info]
    return "  ".join(f"{label} {value:{form}}" for label, form, value in shown)


@contextmanager
def track(console: Console, name: str, total: int) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """A context whose value is a `progress(done, info)` callback for the loops."""
    if not console.is_terminal:
        yield _lines(console, name, total)
        return
    columns = (
        TextColumn("[bold]{task.description:5}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, text="compiling")
        yield lambda done, info: bar.update(task, completed=done, text=describe(info))


def _lines(console, name, total):
    told = time.monotonic()
    printed = 0
    first = None  # what was done when, at the first report: a resumed run does not begin at 0

    def progress(done, info):
        nonlocal first, printed, told
        now = time.monotonic()
        first = first or (done, now)
        if done * 10 // total > printed * 10 // total or done >= total or now >= told + MINUTE:
            printed, told = done, now
            text = f"{name:5} {done:6}/{total}  {describe(info)}"
            if done > first[0]:
                text += f"  {(now - first[1]) * (total - done) / (done - first[0]):.0f} s left"
            console.print(text, highlight=False, soft_wrap=True)

    return progress
