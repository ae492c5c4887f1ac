"""Progress where there is no terminal."""

import io

from rich.console import Console

from bnn_jax.report import progress


def lines_of(monkeypatch, seconds_a_step, total=100, every=1):
    """The steps that a line was printed for."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=200)
    with progress.track(console, "hmc", total) as report:
        for done in range(every, total + 1, every):
            clock[0] += every * seconds_a_step
            report(done, {"accept_prob": 0.5})
    return [int(line.split()[1].split("/")[0]) for line in console.file.getvalue().splitlines()]


def test_a_line_every_tenth_of_the_way(monkeypatch):
    assert lines_of(monkeypatch, 0.1) == list(range(10, 101, 10))
    assert lines_of(monkeypatch, 0.1, every=40) == [40, 80]


def test_long_steps_are_told_every_minute(monkeypatch):
    assert lines_of(monkeypatch, 25.0, total=40) == sorted([*range(3, 41, 4), *range(4, 41, 4)])
    assert lines_of(monkeypatch, 300.0, total=30) == list(range(1, 31))
