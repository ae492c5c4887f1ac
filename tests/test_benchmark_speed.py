"""benchmarks/speed.py and the arithmetic of turns: exact sums, verdicts, and what the spread forbids."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from problems import load_script

from bnn_jax import runs, timing

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("quick_compile")


def test_turns_are_taken_in_turn():
    order, seen = [], []

    def contestant(name):
        return lambda: (order.append(name), float(len(order)))[1]

    found = timing.take_turns({"a": contestant("a"), "b": contestant("b")}, 3, progress=seen.append)
    assert "".join(order) == "ab" * 4  # the first does not count
    assert seen == [1, 2, 3]
    np.testing.assert_array_equal(found["a"], [3, 5, 7])
    np.testing.assert_array_equal(found["b"], [4, 6, 8])
    short = timing.take_turns({"a": contestant("a")}, 3, seconds=-1)
    assert len(short["a"]) == 1


@pytest.mark.parametrize(
    ("values", "side", "bar", "verdict"),
    [
        ([1.0, 1.1, 1.2], "at most", 1.2, "met"),
        ([1.0, 1.1, 1.2], "at most", 1.0, "not met"),
        ([1.0, 1.1, 1.2], "at most", 1.12, timing.HIDDEN),  # between the quartiles 1.05 and 1.15
        ([10, 11, 12], "at least", 10, "met"),
        ([10, 11, 12], "at least", 12, "not met"),
        ([1.0, 2.0, 3.0], "at most", 9, timing.HIDDEN),  # quartiles 1.5 and 2.5 of a median of 2
        ([1.6, 2.0, 2.58], "at least", 1, timing.HIDDEN),  # quartiles 1.8 and 2.29, more than 1.25 times that
        ([1.0, 1.0], "at most", 9, timing.FEW),
    ],
)
def test_verdicts(values, side, bar, verdict):
    found = timing.judged({"r": values, "s": values}, {"r": (side, bar), "other": (side, bar)})
    assert set(found) == {"r", "s"}
    assert found["r"] == {**timing.spread(values), "bar": f"{side} {bar:g}", "verdict": verdict}
    assert found["s"] == timing.spread(values)
    told = timing.hidden(found["r"]) or timing.number(found["r"])
    assert timing.ratio_table(found)[2] == f"| r | {told} | {side} {bar:g} | {verdict} |"


def test_spread():
    assert timing.spread([1, 2, 3, 4, 5]) == {"median": 3, "q25": 2, "q75": 4, "turns": 5}
    assert timing.number(timing.spread([1, 2, 3, 4, 5])) == "3 (2 to 4)"


def test_operations_of_a_convolution_are_counted_as_by_hand():
    """2 x outputs x inputs of a window: what the share of the peak rests on."""
    x, kernel = jnp.ones((2, 9, 9, 3)), jnp.ones((5, 5, 3, 4))
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = jax.jit(lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=numbers))
    flops = conv.lower(x, kernel).cost_analysis()["flops"]
    assert flops == pytest.approx(2 * (2 * 5 * 5 * 4) * (5 * 5 * 3), rel=0.02)


def test_ratios_and_shares_of_known_times(monkeypatch):
    """MAP takes 2 s for 6 operations, VI 3 s, a sample more 2 s, the machine 0.1 s an operation."""
    speed = load_script("speed", "benchmarks")

    def step(net, method, config, compute="float32", num_samples=1, strategy=None):
        seconds = 2.0 if method == "MAP" else 1.0 + 2.0 * num_samples
        return speed.Step(lambda: seconds, 6.0 if method == "MAP" else 9.0, 1_000_000 * num_samples)

    monkeypatch.setattr(speed, "step", step)
    monkeypatch.setattr(speed, "product", lambda dtype, config: lambda: 0.1)
    config = speed.Config(repeats=3, samples=(1, 8))
    steps, samples = speed.steps(config), speed.samples(config)
    ratio = steps["ratios"]["lenet, sampling / MAP"]
    assert (ratio["median"], ratio["bar"], ratio["verdict"]) == (1.5, "at most 1.1", "not met")
    assert steps["ratios"]["lenet, flipout / MAP, bfloat16"]["verdict"] == "met"
    assert steps["ratios"]["lenet, MAP, bfloat16 / float32"]["median"] == 1
    assert steps["share_of_peak"]["lenet, MAP"]["median"] == pytest.approx(0.3)
    assert steps["share_of_peak"]["lenet, sampling"]["median"] == pytest.approx(0.2)
    ratio = samples["ratios"]["unroll, S = 8 / unroll, S = 1"]
    assert (ratio["median"], ratio["bar"]) == (pytest.approx(17 / 3), "at most 8.4")
    pieces = {"milliseconds": {"whole": timing.spread([3])}, "shares": {"whole": timing.spread([1])}}
    where = {"device": "cpu", "num_cores": 1, "jax": "0"}
    text = speed.table({"steps": steps, "samples": samples, "pieces": pieces, "environment": where})
    assert "| lenet, MAP | 2e+03 (2e+03 to 2e+03) | 30% |" in text
    assert "| map, S = 8 | 1.7e+04 (1.7e+04 to 1.7e+04) | 5.67 | 8.0 |" in text
    assert "unroll, S = 8 / unroll, S = 1: at most 8.4, met." in text


def test_quick_form(tmp_path, capsys):
    speed = load_script("speed", "benchmarks")
    speed.main(speed.Config(out=tmp_path / "speed.json", quick=True))
    found = runs.read_json(tmp_path / "speed.json")
    assert set(found["steps"]["ratios"]) >= {"mlp, sampling / MAP", "mlp, flipout / MAP"}
    assert found["steps"]["ratios"]["mlp, sampling / MAP"]["bar"] == "at most 1.1"
    assert found["samples"]["megabytes"]["unroll, S = 2"] > 0
    assert found["pieces"]["shares"]["whole step"] == {"median": 1, "q25": 1, "q75": 1, "turns": 2}
    assert "| mlp, MAP, bfloat16 |" in capsys.readouterr().out


def test_quick_form_of_startup(tmp_path, monkeypatch, capsys):
    startup = load_script("startup", "benchmarks")
    startup.main(startup.Config(out=tmp_path / "startup.json", quick=True))
    found = runs.read_json(tmp_path / "startup.json")
    assert found["predict"]["compiled_again"] == 0
    assert set(found["start"]) == {"no cache"}
    assert found["compile"]["seconds"]["MAP"]["median"] > 0
    assert found["start"]["no cache"]["first step"]["cpu"]["median"] > 0
    assert "| no cache | import |" in capsys.readouterr().out


def test_a_child_that_fails_says_why(monkeypatch):
    startup = load_script("startup", "benchmarks")
    monkeypatch.setattr(startup, "CHILD", "raise ValueError('no such net')")
    with pytest.raises(RuntimeError, match="no such net"):
        startup.child({})


def test_differences_of_pairs():
    """By hand: 1, 2 and 3, whose mean has the standard error 1 / sqrt(3)."""
    precision = load_script("precision", "benchmarks")
    found = precision.difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found["mean"] == 2
    half = 4.302653 / 3**0.5  # Student's 97.5 % point with two degrees of freedom
    np.testing.assert_allclose(found["interval"], [2 - half, 2 + half], rtol=1e-6)
    assert precision.difference([1.0], [3.0]) == {"mean": -2, "interval": None}
    assert "| nll | -2.0000 | - |" in precision.sections({"nll": precision.difference([1.0], [3.0])})


def test_the_speed_up_of_chains():
    """Two chains in the seconds of one are twice as fast, in twice the seconds not at all."""
    chains = load_script("chains", "benchmarks")
    seconds = {"hmc, 1": np.array([1.0, 2.0]), "hmc, 2": np.array([1.0, 4.0])}
    found = chains.speed_ups(seconds, ("hmc",), 2)
    np.testing.assert_equal(found["hmc, 2 chains"], [2, 1])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")
def test_quick_form_of_chains(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "chains.py"),
        "--quick",
        "--out",
        str(tmp_path / "a.json"),
    ]
    cores = len(os.sched_getaffinity(0))
    done = subprocess.run(command, capture_output=True, text=True)
    if cores < 2:
        assert done.returncode == 2
        assert f"the {cores} cores" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = runs.read_json(tmp_path / "a.json")
    assert found["ratios"]["hmc, 2 chains"]["bar"] == "at least 1.7"
    assert set(found["milliseconds"]) == {"hmc, 1", "hmc, 2"}
