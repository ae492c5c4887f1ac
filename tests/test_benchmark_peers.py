"""benchmarks/peers.py: workers that answer, fail or are not there, and exact arithmetic of what they tell."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from problems import load_script

from bnn_jax import timing
from bnn_jax.types import UserError

peers = load_script("peers", "benchmarks")
worker = load_script("peer_worker", "benchmarks")

FAKE = """
import {module}


def build(problem):
    import numpy as np
    steps = 0

    def train(count):
        nonlocal steps
        steps += count
        if steps > {limit}:
            raise RuntimeError("no more steps\\nsecond line")
        print("noise of a library")

    probs = np.eye(10)[problem.y_test]
    half = [np.full(3, 0.5)]
    return train, lambda count: probs, lambda: (2.0, [np.zeros(3)], half)

CONTESTANTS = {{"fake": (("{module}",), build)}}
"""


@pytest.fixture
def fake(tmp_path):
    """(module, limit) -> the command of a worker that needs the module and fails beyond `limit` steps."""

    def make(module="json", limit=10**9):
        path = tmp_path / f"{module}{limit}.py"
        path.write_text(FAKE.format(module=module, limit=limit))
        return [sys.executable, str(peers.HERE / "peer_worker.py"), str(path), "fake", "cpu"]

    return make


def test_workers_answer_fail_or_are_not_there(fake):
    config = dataclasses.replace(peers.Config(), turns=2, steps=3, draws=2, images=20, num_train=200)
    dies = [sys.executable, "-c", "import sys; sys.exit('out of memory')"]
    how = {
        "good": fake(),
        "missing": fake("no_such_module"),
        "first step": fake(limit=0),
        "later": fake(limit=5),
        "dead": dies,
    }
    kept = []
    found = peers.measure(how, config, lambda found: kept.append(len(found["good"]["turns"]["predict"])))
    assert kept == [1, 2]
    assert found["missing"] == {"note": "not installed (no module no_such_module)"}
    assert found["first step"] == {"note": "failed: RuntimeError: no more steps"}
    assert found["later"] == {"note": "failed: RuntimeError: no more steps"}
    assert found["dead"] == {"note": "failed: ended with 1: out of memory"}
    assert len(found["good"]["turns"]["train"]) == len(found["good"]["turns"]["predict"]) == 2
    assert found["good"]["accuracy"] == 1
    summary = peers.summarise(found, config)
    exact = 3 * (np.log(2) + 0.125 - 0.5)  # of N(0, 1/4) beside N(0, 1)
    assert summary["contestants"]["good"]["kl_ratio"] == pytest.approx(2 / exact)
    assert summary["contestants"]["dead"] == found["dead"]
    assert summary["ratios"] == {}
    json.dumps(summary, allow_nan=False)


def told(train, predict, **more):
    """What a contestant told."""
    turns = {"train": train, "predict": predict}
    plain = {"start": 1.0, "kl": None, "closed_form": None, "accuracy": 0.5, "versions": {}}
    return {"turns": turns, **plain, **more}


def test_summary():
    measured = {
        "ours": told([1.0, 2.0, 2.0], [1.0, 1.0, 1.0], kl=3.0, closed_form=4.0, versions={"a": "1"}),
        "ivon-opt": told([2.0, 2.0, 4.0], [2.0, 2.0, 2.0], versions={"b": "2"}),
        "bayesian-torch": told([4.0, 1.0, 8.0], [3.0, 1.2, 1.5]),
        "blackjax": told([2.0, 4.0, 4.0], [4.0, 4.0, 4.0]),
        "numpyro": {"note": "not installed (no module numpyro)"},
    }
    config = dataclasses.replace(peers.Config(), steps=30)
    summary = peers.summarise(measured, config)
    ours = summary["contestants"]["ours"]
    assert ours["steps_per_second"] == {"median": 15, "q25": 15, "q75": 22.5, "turns": 3}
    assert ours["predict_seconds"] == {"median": 1, "q25": 1, "q75": 1, "turns": 3}
    assert ours["kl_ratio"] == 0.75
    assert summary["num_turns"] == 3
    assert summary["versions"] == {"a": "1", "b": "2"}
    first, blackjax, predict = summary["ratios"].values()  # what is not there has no ratio
    # within turns, of the fastest by its median, ivon-opt: 1 / (1/2), (1/2) / (1/2), (1/2) / (1/4)
    of = {"turns": 3, "q75": 2, "median": 2}
    assert first == {**of, "q25": 1.5, "bar": "at least 1", "verdict": timing.HIDDEN}
    assert blackjax == {**of, "q25": 2, "bar": "at least 1.8", "verdict": "met"}
    # bayesian-torch's 3, 1.2 and 1.5
    assert (predict["median"], predict["q75"], predict["verdict"]) == (1.5, 2.25, timing.HIDDEN)
    results = {
        **summary,
        "config": {"draws": 30, "images": 1000, "device": "cpu"},
        "environment": {"python": "3.11"},
    }
    lines = peers.table(results).splitlines()
    assert lines[2] == "| ours | 15 (15 to 22.5) | 1 (1 to 1) | 1 | 0.75 |"
    assert lines[6] == "| numpyro | not installed (no module numpyro) | - | - | - |"
    ivon, other = (line for line in lines if line.startswith("| train:"))
    assert ivon.endswith(f"| {timing.HIDDEN} | at least 1 | {timing.HIDDEN} |")
    assert other == "| train: ours / blackjax | 2 (2 to 2) | at least 1.8 | met |"
    assert lines[-1] == "3 turns on one core; Python 3.11; a 1, b 2."


def test_a_gpu_has_no_bars_and_compiled_peers():
    assert set(peers.commands(peers.Config(device="gpu"))) - set(peers.commands(peers.Config())) == {
        "torch, deterministic, compiled",
        "ivon-opt, compiled",
        "bayesian-torch, compiled",
    }
    measured = {"ours": told([1.0] * 3, [1.0] * 3), "ivon-opt, compiled": told([2.0] * 3, [3.0] * 3)}
    summary = peers.summarise(measured, peers.Config(device="gpu"))
    assert [(found["median"], found.get("bar")) for found in summary["ratios"].values()] == [
        (2, None),
        (3, None),
    ]
    about = {"config": {"draws": 30, "images": 1000, "device": "gpu"}, "environment": {"python": "3.11"}}
    about["environment"]["device"] = "a GPU"
    lines = peers.table({**summary, **about}).splitlines()
    assert (
        lines[0]
        == "| | train: steps per s | predict: 30 draws x 1,000 images, s | start: s | KL / closed form |"
    )
    assert lines[-1].startswith("3 turns on a GPU; ")


def test_closed_form():
    means, stds = [np.array([[0.0, 1.0]]), np.array([2.0])], [np.array([[1.0, 1.0]]), np.array([0.5])]
    assert worker.closed_form(means, stds) == pytest.approx(0.5 + 2 - 0.375 + np.log(2))


def test_the_data_are_the_same_in_every_process():
    setting = dict(num_train=30, num_test=20, batch_size=8, learning_rate=1e-3, std=0.05, device="cpu")
    one, two = worker.problem(**setting), worker.problem(**setting)
    np.testing.assert_array_equal(one.x, two.x)
    assert (one.x.shape, one.x.dtype, one.y_test.shape) == ((30, 28, 28, 1), np.float32, (20,))


def test_predictions_that_are_none():
    with pytest.raises(ValueError, match="are not probabilities of 2 images"):
        worker.accuracy(np.ones((2, 10)), np.zeros(2, int))


@pytest.mark.usefixtures("quick_compile")
def test_ours():
    """A few steps and draws; its KL is the closed form."""
    setting = dict(num_train=300, num_test=10, batch_size=16, learning_rate=1e-3, std=0.05)
    commands = [{"do": "start", "setting": setting}, {"do": "kl"}]
    commands += [{"do": "train", "count": 2}, {"do": "predict", "count": 2}]
    answers = []
    lines = io.StringIO("\n".join(map(json.dumps, commands)))
    worker.serve(str(peers.HERE / "peers_jax.py"), "ours", "cpu", lines, answers.append)
    first, kl, steps, draws = answers
    assert set(first["versions"]) == {"bnn_jax", "jax"}
    assert kl["kl"] == pytest.approx(kl["closed_form"], rel=1e-5)
    assert min(first["seconds"], steps["seconds"], draws["seconds"]) > 0
    assert 0 <= draws["accuracy"] <= 1


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="no contestant 'gpytorch': choose from ours; ours, flipout"):
        peers.main(peers.Config(only=("gpytorch",)))
    with pytest.raises(UserError, match="no interpreter at --peers-python"):
        peers.main(peers.Config(peers_python=tmp_path / "python"))
    with pytest.raises(UserError, match="--device gpu: JAX finds no GPU here"):
        peers.main(peers.Config(device="gpu"))
    with pytest.raises(UserError, match="--turns must be at least 1, not 0"):
        peers.main(peers.Config(turns=0))
