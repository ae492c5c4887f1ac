"""Progress where there is no terminal."""

import io

from rich.console import Console

from bnn_jax.report import progress


def lines_of(monkeypatch, seconds_a_step, total=100, every=1, begun=0):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=200)
    with progress.track(console, "hmc", total) as report:
        for done in range(begun + every, total + 1, every):
            clock[0] += every * seconds_a_step
            report(done, {"accept_prob": 0.5})
    return console.file.getvalue().splitlines()


def steps_of(*args, **kwargs):
    """The steps that a line was printed for."""
    return [int(line.split()[1].split("/")[0]) for line in lines_of(*args, **kwargs)]


def test_a_line_every_tenth_of_the_way(monkeypatch):
    assert steps_of(monkeypatch, 0.1) == list(range(10, 101, 10))
    assert steps_of(monkeypatch, 0.1, every=40) == [40, 80]


def test_long_steps_are_told_every_minute(monkeypatch):
    assert steps_of(monkeypatch, 25.0, total=40) == sorted([*range(3, 41, 4), *range(4, 41, 4)])
    assert steps_of(monkeypatch, 300.0, total=30) == list(range(1, 31))


def test_a_resumed_run_counts_the_time_of_its_own_steps(monkeypatch):
    first, *others = lines_of(monkeypatch, 2.0, every=10, begun=60)
    assert first.endswith("acceptance 0.50")  # one report tells nothing about the pace
    assert [line.split("  ")[-1] for line in others] == ["40 s left", "20 s left", "0 s left"]
