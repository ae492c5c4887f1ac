"""Times beside each other: contestants in turns, ratios within a turn, and what the spread leaves of them.

On a machine that others use, seconds of one program after those of another compare the machine with itself.
So contestants take turns, and every ratio is taken within a turn. Medians and quartiles over turns; a ratio
of fewer than `FEWEST` turns, or whose upper quartile is more than `WIDEST` times the lower, is not told,
and a bar between the quartiles is neither met nor missed.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

WIDEST = 1.25
FEWEST = 3
HIDDEN = "the spread hides it"
FEW = "too few turns"


def pin() -> None:
    """Leave this process one core, and so one thread, where the system can. Before JAX starts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def clock() -> float:
    """Seconds: on CPU those that this process computed, whatever else runs there; else of the wall."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def timed(f: Callable, count: int = 1) -> Callable[[], float]:
    """A contestant: seconds of one call of `f`, the mean of `count` in a row, its last result waited for."""

    def turn():
        start = clock()
        for _ in range(count):
            result = f()
        jax.block_until_ready(result)
        return (clock() - start) / count

    return turn


def take_turns(
    contestants: Mapping[str, Callable[[], float]],
    repeats: int,
    seconds: float = float("inf"),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Name -> (turns,) what each contestant returned, its own time in seconds say.

    All are called once before, which compiles and does not count.

    Args:
        repeats: turns, at most.
        seconds: after which no turn begins, but for the first.
        progress: called with the number of turns done.
    """
    for run in contestants.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    for turn in range(repeats):
        if turn and time.perf_counter() > end:
            break
        for name, run in contestants.items():
            found[name].append(run())
        progress(turn + 1)
    return {name: np.array(values) for name, values in found.items()}


def spread(values: Any) -> dict[str, float]:
    """Median and quartiles of (turns,), and their number."""
    low, median, high = np.quantile(np.asarray(values), [0.25, 0.5, 0.75])
    return {"median": float(median), "q25": float(low), "q75": float(high), "turns": len(values)}


def milliseconds(seconds: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Name -> the spread of (turns,) seconds, in milliseconds."""
    return {name: spread(1e3 * np.asarray(values)) for name, values in seconds.items()}


def judge(found: Mapping[str, float], side: str, bar: float) -> str:
    """ "met", "not met", or why nothing can be said, for a ratio's spread.

    Args:
        side: "at most" or "at least".
    """
    if why := hidden(found):
        return why
    if found["q25"] < bar < found["q75"]:
        return HIDDEN
    return "met" if (found["median"] <= bar if side == "at most" else found["median"] >= bar) else "not met"


def hidden(found: Mapping[str, float]) -> str:
    """Why the median of a spread is not to be told; empty if it is."""
    if found["turns"] < FEWEST:
        return FEW
    return HIDDEN if found["q75"] > WIDEST * found["q25"] else ""


def judged(ratios: Mapping[str, Any], bars: Mapping[str, tuple[str, float]]) -> dict[str, dict[str, Any]]:
    """Name -> the spread of a ratio (turns,), and where it has a bar, that and the verdict."""
    found: dict[str, dict[str, Any]] = {name: dict(spread(values)) for name, values in ratios.items()}
    for name, (side, bar) in bars.items():
        if name in found:
            found[name] |= {"bar": f"{side} {bar:g}", "verdict": judge(found[name], side, bar)}
    return found


def number(found: Mapping[str, float]) -> str:
    """A spread in words."""
    return f"{found['median']:.3g} ({found['q25']:.3g} to {found['q75']:.3g})"


def ratio_table(ratios: Mapping[str, Mapping[str, Any]], head: str = "ratio") -> Sequence[str]:
    """Lines of Markdown for what `judged` returns."""
    lines = [f"| {head} | median (quartiles) | bar | verdict |", "|---|---|---|---|"]
    for name, found in ratios.items():
        told = hidden(found) or number(found)
        lines.append(f"| {name} | {told} | {found.get('bar', '')} | {found.get('verdict', '')} |")
    return lines
