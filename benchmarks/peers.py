"""Mean-field VI of LeNet-5 beside other libraries: training and prediction, in CPU time of one thread.

    python benchmarks/peers.py --peers-python VENV/bin/python     15 minutes of one CPU core
    python benchmarks/peers.py --quick                            a turn of few steps, no number to trust
    python benchmarks/peers.py --peers-python VENV/bin/python --device gpu --steps 1000 --draws 300 \\
        --out benchmarks/results/gpu/peers.json                   on a GPU, not run yet

LeNet 6-16-120-84-10 (`bnn_jax/nets/lenet.py`), 6,000 images of 28x28 noisy patterns, batches of 128, Adam
1e-3 (IVON is its own optimiser), one draw of the weights a step, loss: mean cross-entropy + KL / N, prior
N(0, 1), every posterior standard deviation 0.05 at the start. Measured, each contestant in a process of its
own on one core, with one thread that computes:

    train      steps per CPU second
    predict    CPU seconds for the mean prediction of 30 draws for 1,000 images
    start      CPU seconds from the imports until the first step is done: building and compiling
    KL         the KL term that a library adds to its loss, by the closed form at the same posterior: 1 if
               it is right; where it is estimated from draws, the mean of 30

The contestants take turns, ratios are taken within a turn, and what their spread hides is not told:
`timing`. Other work on the machine changes CPU time little, by shared caches and clock rates. All keep the
memory that they free, as `cli.keep_memory` has it for our scripts: it spares the others, too, the system's
work. On a GPU seconds are those of the wall, all data are on it from the start, and what `torch.compile`
makes of three contestants runs beside them; there are no bars. Whole turns are kept on Ctrl-C.
"deterministic" is the plain network with the same optimiser; 30 passes of it stand for draws. A peer that
is not installed or fails is listed as such. The PyTorch libraries may have an environment of their own:

    python -m venv VENV
    VENV/bin/pip install torch==2.14.1 torchvision==0.29.1
    VENV/bin/pip install torch==2.14.1 ivon-opt==0.1.3 bayesian-torch==0.5.0 blitz-bayesian-pytorch==0.2.8 \\
        posteriors==0.1.3 torchopt==0.7.3 "torch-uncertainty[cpu]==0.13.0"

torch comes first, for CPU in its CPU build if there is the choice and torchvision then from the same
place: a library alone may bring another. `torch.compile` wants a C++ compiler. NumPyro is there, BlackJAX
is the extra `blackjax`. `peer_worker.py` runs a contestant of `peers_jax.py` or `peers_torch.py`.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console

from bnn_jax import cli, runs, timing
from bnn_jax.types import UserError

HERE = Path(__file__).parent
OURS = ("ours", "ours, flipout")
JAX = (*OURS, "flax, deterministic", "numpyro", "blackjax")
EAGER = ("ivon-opt", "bayesian-torch", "bayesian-torch, flipout")
TORCH = ("torch, deterministic", *EAGER, "blitz", "posteriors", "torch-uncertainty")
COMPILED = ("torch, deterministic, compiled", "ivon-opt, compiled", "bayesian-torch, compiled")
FASTEST = (*EAGER, *COMPILED[1:])
PEERS = (*FASTEST, "blitz", "posteriors", "torch-uncertainty", "numpyro", "blackjax")  # the Bayesian ones
RATIOS = {  # name: what is measured, of whom, by the fastest of whom
    "train: ours / fastest of ivon-opt and bayesian-torch": ("train", "ours", FASTEST),
    "train: ours / numpyro": ("train", "ours", ("numpyro",)),
    "train: ours / blackjax": ("train", "ours", ("blackjax",)),
    "predict: ours faster than the fastest peer by": ("predict", "ours", PEERS),
    "train: ours / flax, deterministic": ("train", "ours", ("flax, deterministic",)),
    "train: ours, flipout / bayesian-torch, flipout": (
        "train",
        "ours, flipout",
        ("bayesian-torch, flipout",),
    ),
}
BARS = {  # on CPU
    "train: ours / fastest of ivon-opt and bayesian-torch": ("at least", 1.0),
    "train: ours / numpyro": ("at least", 1.8),
    "train: ours / blackjax": ("at least", 1.8),
    "predict: ours faster than the fastest peer by": ("at least", 1.5),
}
# As `cli.keep_memory`, for every library alike.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62), "MALLOC_ARENA_MAX": "1"}


@dataclasses.dataclass(frozen=True)
class Config:
    peers_python: Path = Path(sys.executable)  # interpreter of the PyTorch libraries
    turns: int = 10  # of every contestant, at most
    seconds: float = 3600.0  # of wall time after which no turn starts
    steps: int = 30  # training steps of a turn
    draws: int = 30  # posterior draws of a prediction
    images: int = 1000  # test images of a prediction
    num_train: int = 6000  # N
    batch_size: int = 128
    learning_rate: float = 1e-3
    std: float = 0.05  # of every weight's posterior at the start
    only: tuple[str, ...] = ()  # contestants; default all, compiled ones on a GPU alone
    device: Literal["cpu", "gpu"] = "cpu"  # where all of them compute
    out: Path = Path("benchmarks/results/peers.json")  # where the JSON goes
    quick: bool = False  # 1 turn of 2 steps and 2 draws for 100 images


class Worker(NamedTuple):
    """A contestant's process."""

    process: subprocess.Popen
    errors: Any  # file of its standard error


def main(config: Config) -> None:
    """Measure, write the JSON after every turn, print the table made from it."""
    if config.quick:
        config = dataclasses.replace(config, turns=1, steps=2, draws=2, images=100)
    for name in ("turns", "steps", "draws", "images"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(config, name)}")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # all share a GPU, this process too
    if config.device == "gpu" and jax.default_backend() != "gpu":
        raise UserError("--device gpu: JAX finds no GPU here")
    about = {
        "config": runs.as_config(config, leave_out=("out", "peers_python")),
        "environment": runs.environment(),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(measured: dict[str, dict[str, Any]]) -> None:
        turns = {name: found["turns"] for name, found in measured.items() if "turns" in found}
        runs.write_json(config.out, {**about, **summarise(measured, config), "turns": turns})

    keep(measure(commands(config), config, keep))
    print(table(runs.read_json(config.out)))


def commands(config: Config) -> dict[str, list[str]]:
    """What starts each contestant.

    Raises:
        UserError: no such contestant, or no interpreter.
    """
    every = (*JAX, *TORCH, *COMPILED)
    if unknown := set(config.only) - {*every}:
        raise UserError(f"no contestant {min(unknown)!r}: choose from {'; '.join(every)}")
    if not config.peers_python.exists():
        raise UserError(f"no interpreter at --peers-python {config.peers_python}")
    wanted = config.only or (every if config.device == "gpu" else (*JAX, *TORCH))

    def start(name: str) -> list[str]:
        jax_one, torch_one = (sys.executable, "peers_jax.py"), (config.peers_python, "peers_torch.py")
        python, file = jax_one if name in JAX else torch_one
        return [str(python), str(HERE / "peer_worker.py"), str(HERE / file), name, config.device]

    return {name: start(name) for name in every if name in wanted}


def measure(
    how: Mapping[str, Sequence[str]], config: Config, keep: Callable[[dict[str, dict[str, Any]]], None]
) -> dict[str, dict[str, Any]]:
    """What every contestant told: `note` alone if it is missing or failed, else `start` and `turns` (seconds
    of each turn), `kl`, `closed_form`, `accuracy` and `versions`. `keep` gets it after every whole turn."""
    console = Console(stderr=True, highlight=False)
    setting = dict(num_test=config.images, std=config.std)
    setting |= {name: getattr(config, name) for name in ("num_train", "batch_size", "learning_rate")}
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(running(command)) for name, command in how.items()}

        def asked(name: str, **command: Any) -> dict[str, Any]:
            answer = ask(workers[name], command)
            if note := wrong(answer):
                found[name] = {"note": note}
                del workers[name]
                console.print(f"{name}: {note}", markup=False)
            return answer

        for name in how:
            answer = asked(name, do="start", setting=setting)
            if name in workers:
                found[name] = {"start": answer["seconds"], "versions": answer["versions"]}
                found[name]["turns"] = {"train": [], "predict": []}
                console.print(f"{name}: first step after {answer['seconds']:.1f} s", markup=False)
        for name in list(workers):
            answer = asked(name, do="kl")
            if name in workers:
                found[name] |= {"kl": answer["kl"], "closed_form": answer["closed_form"]}
        end = time.monotonic() + config.seconds
        for turn in range(config.turns + 1):  # the first is not counted: a prediction compiles
            if turn > 1 and time.monotonic() > end:
                break
            for name in list(workers):
                steps = asked(name, do="train", count=config.steps)
                draws = asked(name, do="predict", count=config.draws) if name in workers else {}
                if name in workers:
                    found[name]["accuracy"] = draws["accuracy"]
                    if turn:
                        found[name]["turns"]["train"].append(steps["seconds"])
                        found[name]["turns"]["predict"].append(draws["seconds"])
            console.print(f"turn {turn} of {config.turns}" if turn else "a turn that is not counted")
            if turn:
                keep(found)
    return found


@contextlib.contextmanager
def running(command: Sequence[str]):
    """A worker, ended at the end. It does not see Ctrl-C: the end of its input is what it waits for."""
    with tempfile.TemporaryFile("w+") as errors:
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        environment = {**os.environ, **KEPT}
        process = subprocess.Popen(command, **pipes, env=environment, start_new_session=True)
        try:
            yield Worker(process, errors)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def ask(worker: Worker, command: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's answer; an error if it has died."""
    try:
        print(json.dumps(command), file=worker.process.stdin, flush=True)
        line = worker.process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if line:
        return json.loads(line)
    code = worker.process.wait()
    worker.errors.seek(0)
    last = (worker.errors.read().strip().splitlines() or ["no message"])[-1]
    return {"error": f"ended with {code}: {last}"}


def wrong(answer: Mapping[str, Any]) -> str:
    """Why there are no numbers, in one line; empty if there are."""
    if "missing" in answer:
        return f"not installed (no module {answer['missing']})"
    return f"failed: {answer['error']}" if "error" in answer else ""


def summarise(measured: Mapping[str, Mapping[str, Any]], config: Config) -> dict[str, Any]:
    """Medians and quartiles over turns, ratios within a turn, and whether they pass their bars."""
    rows, versions, speeds = {}, {}, {"train": {}, "predict": {}}
    for name, found in measured.items():
        if "note" in found:
            rows[name] = {"note": found["note"]}
            continue
        seconds = {what: np.array(values) for what, values in found["turns"].items()}
        versions |= found["versions"]
        speeds["train"][name] = config.steps / seconds["train"]
        speeds["predict"][name] = 1 / seconds["predict"]
        rows[name] = {
            "steps_per_second": timing.spread(speeds["train"][name]),
            "predict_seconds": timing.spread(seconds["predict"]),
            "start_seconds": found["start"],
            "kl_ratio": None if found["kl"] is None else found["kl"] / found["closed_form"],
            "accuracy": found["accuracy"],
        }
    num_turns = max((len(values) for values in speeds["train"].values()), default=0)
    return {
        "num_turns": num_turns,
        "contestants": rows,
        "ratios": timing.judged(ratios(speeds), BARS if config.device == "cpu" else {}),
        "versions": versions,
    }


def ratios(speeds: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`RATIOS` within a turn. The fastest is so by its median: the best of several in each turn would be the
    luckiest, and none of them."""
    found = {}
    for label, (what, one, others) in RATIOS.items():
        there = [speeds[what][name] for name in others if name in speeds[what]]
        if one in speeds[what] and there:
            found[label] = speeds[what][one] / max(there, key=np.median)
    return found


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    config, environment = results["config"], results["environment"]
    s = "CPU s" if config["device"] == "cpu" else "s"
    predicted = f"{config['draws']} draws x {config['images']:,} images"
    lines = [
        f"| | train: steps per {s} | predict: {predicted}, {s} | start: {s} | KL / closed form |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["contestants"].items():
        if "note" in row:
            note = row["note"].replace("|", "/").replace("<", "&lt;")
            lines.append(f"| {name} | {note} | - | - | - |")
            continue
        kl = "-" if row["kl_ratio"] is None else f"{row['kl_ratio']:.3g}"
        cells = (timing.number(row["steps_per_second"]), timing.number(row["predict_seconds"]))
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {row['start_seconds']:.3g} | {kl} |")
    lines += ["", *timing.ratio_table(results["ratios"])]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    where = "one core" if config["device"] == "cpu" else environment["device"]
    about = f"{results['num_turns']} turns on {where}; Python {environment['python']}"
    return "\n".join([*lines, "", f"{about}; {versions}."])


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
