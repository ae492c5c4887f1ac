"""How long a script takes before its first step, and what a prediction costs beside its forward passes.

    python benchmarks/startup.py            one CPU core: about 12 minutes
    python benchmarks/startup.py --quick    a minute, too few repeats to trust

    start      fresh processes: the imports of `scripts/train.py`, then the first step of flipout VI on
               LeNet-5, nearly all of it compilation. Without compiled programs on disk; while they are
               written (cold); and with them (warm)
    compile    the step of LeNet-5 by method, traced and compiled again and again, beside plain Flax and Adam
    predict    the predictive distribution of 10 draws beside 10 forward passes of the mean, both of 1,024
               images in the same blocks and with their results on the host; programs compiled, and memory
               taken, for 1,000 draws after 10

Seconds are told as they passed and as they were computed, which a busy machine tells apart; bars of the start
are judged by the latter. Images are random, as only shapes matter.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from bnn_jax import cli, models, ops, predict, runs, timing
from bnn_jax.nets import lenet
from bnn_jax.report.progress import track
from bnn_jax.types import Batch

ROOT = Path(__file__).parent.parent
NONE = "no cache"
BARS = {"import": 2.0, "first step": 6.0}  # seconds, without compiled programs on disk
PLAIN = "Flax, deterministic"
ESTIMATORS = ("sampling", "local_reparam", "flipout")
CHILD = """
import json, time
marks = [(time.perf_counter(), time.process_time())]
mark = lambda: marks.append((time.perf_counter(), time.process_time()))
import bnn_jax
from bnn_jax import cli
from bnn_jax.commands import train
mark()
import jax, optax
from bnn_jax import models, ops
from bnn_jax.types import Batch
key = jax.random.key(0)
batch = Batch(jax.random.normal(key, (128, 28, 28, 1)), jax.random.randint(key, (128,), 0, 10))
model = models.build("lenet", 10)
algorithm = models.method("vi", model, 50_000, optimizer=optax.adam(1e-3))
state = algorithm.init(key, models.init(key, model, batch.x))
jax.block_until_ready((state, batch))
mark()
def step(key, state, batch):
    with ops.outside_loops():
        return algorithm.step(key, state, batch)
jax.block_until_ready(jax.jit(step)(key, state, batch))
mark()
names = ("import", "model and data", "first step")
print(json.dumps({name: {"wall": b[0] - a[0], "cpu": b[1] - a[1]} for name, a, b in zip(names, marks, marks[1:])}))
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Config:
    repeats: int = 5  # processes of each kind, and turns of the predictions
    out: Path = Path("benchmarks/results/startup.json")  # where the JSON goes
    quick: bool = False  # one process, one method compiled beside the plain network


def main(config: Config) -> None:
    """Measure, write the JSON, print the table made from it."""
    jax.config.update("jax_compilation_cache_dir", None)
    results = {
        "config": runs.as_config(config, leave_out=("out",)),
        "environment": runs.environment(),
        "predict": predictive(config),
        "start": start(config),
        "compile": compiling(config),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, results)
    print(table(runs.read_json(config.out)))


def child(extra: dict[str, str]) -> dict[str, Any]:
    """Seconds of each part in a fresh process, with further environment variables."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "PYTHONPATH": paths, **extra},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"a process failed: {run.stderr.strip().splitlines()[-1]}")
    return json.loads(run.stdout.splitlines()[-1])


def start(config: Config) -> dict[str, Any]:
    """Kind of start -> part -> spreads of its seconds."""
    found: dict[str, list] = {kind: [] for kind in ((NONE,) if config.quick else (NONE, "cold", "warm"))}
    repeats = 1 if config.quick else config.repeats
    with track(Console(stderr=True), "start", repeats) as progress:
        for i in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                here = {"JAX_COMPILATION_CACHE_DIR": folder}
                for kind, rows in found.items():
                    rows.append(child({"JAX_ENABLE_COMPILATION_CACHE": "false"} if kind == NONE else here))
            progress(i + 1, {})
    return {
        kind: {
            part: {clock: timing.spread([row[part][clock] for row in rows]) for clock in ("wall", "cpu")}
            for part in rows[0]
        }
        for kind, rows in found.items()
    }


def compiling(config: Config) -> dict[str, Any]:
    """Tracing and compiling a training step, by method, and beside that of the plain network."""
    key = jax.random.key(0)
    batch = Batch(jax.random.normal(key, (128, 28, 28, 1)), jnp.arange(128) % 10)
    model, optimizer = models.build("lenet", 10), optax.adam(1e-3)
    net, params = lenet.build(10), models.init(key, model, batch.x)

    def plain(key, state, batch):
        params, moments = state
        score = optax.losses.softmax_cross_entropy_with_integer_labels
        loss = lambda params: score(net.apply({"params": params}, batch.x), batch.y).mean()
        value, slope = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(slope, moments)
        return (optax.apply_updates(params, updates), moments), value

    def contestant(step, state):
        def turn():
            jax.clear_caches()
            start = timing.clock()
            jax.jit(step).lower(key, state, batch).compile()
            return timing.clock() - start

        return turn

    def ours(name, **how):
        algorithm = models.method(name, model, 50_000, optimizer=optimizer, **how)

        def step(key, state, batch):
            with ops.outside_loops():
                return algorithm.step(key, state, batch)

        return contestant(step, algorithm.init(key, params))

    contestants = {PLAIN: contestant(plain, (params, optimizer.init(params))), "MAP": ours("map")}
    if not config.quick:
        contestants |= {name: ours("vi", estimator=name) for name in ESTIMATORS}
    repeats = 1 if config.quick else timing.FEWEST
    with track(Console(stderr=True), "compile", repeats) as progress:
        seconds = timing.take_turns(contestants, repeats, progress=lambda done: progress(done, {}))
    ratios = {f"{name} / {PLAIN}": found / seconds[PLAIN] for name, found in seconds.items() if name != PLAIN}
    return {
        "seconds": {name: timing.spread(found) for name, found in seconds.items()},
        "ratios": timing.judged(ratios, {}),
    }


def predictive(config: Config) -> dict[str, Any]:
    """Beside as many forward passes of the mean weights; compilations; memory of 1,000 draws after 10."""
    key, size, draws = jax.random.key(0), 32 if config.quick else 1024, 10
    model = models.build("lenet", 10)
    x = np.asarray(jax.random.normal(key, (size, 28, 28, 1)))
    algorithm = models.method("vi", model, 50_000, optimizer=optax.adam(1e-3))
    state = algorithm.init(key, models.init(key, model, x))
    found = predict.build(model.apply, model.likelihood, predict.sampled(algorithm), size)
    compiled: list[str] = []
    listen = lambda name, *rest, **more: (
        compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    jax.monitoring.register_event_duration_secs_listener(listen)
    number, peak = [], []
    for count in (draws, 2 * draws if config.quick else 1000):
        found((key, state), x, count)
        number.append(len(compiled))
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    jax.monitoring.unregister_event_duration_listener(listen)

    @jax.jit
    def forward(params, x):
        with ops.outside_loops():
            return model.apply(params, x)

    on_cpu = jax.default_backend() == "cpu"
    blocks = predict.equal_parts(x, predict.BLOCK) if on_cpu else [x]

    def passes():
        placed = jax.device_put(blocks)
        return jax.device_get([[forward(state.phi.mean, block) for block in placed] for _ in range(draws)])

    contestants = {
        "forward passes": passes,
        "predictive": lambda: found((key, state), x, draws).mean,
    }
    repeats = 2 if config.quick else 5 * config.repeats
    with track(Console(stderr=True), "predict", repeats) as progress:
        contestants = {name: timing.timed(f) for name, f in contestants.items()}
        seconds = timing.take_turns(contestants, repeats, progress=lambda done: progress(done, {}))
    ratios = {"predictive / its forward passes": seconds["predictive"] / seconds["forward passes"]}
    return {
        "milliseconds": timing.milliseconds(seconds),
        "compiled_again": number[1] - number[0],
        "megabytes_more": (peak[1] - peak[0]) / 1024,
        "ratios": timing.judged(ratios, dict.fromkeys(ratios, ("at most", 1.05))),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    at, predicted, compiled = (results[name] for name in ("environment", "predict", "compile"))
    lines = [
        "| programs on disk | part | s of computing | s on the wall | bar | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for kind, parts in results["start"].items():
        for part, found in parts.items():
            bar = BARS.get(part) if kind == NONE else None
            judged = f"at most {bar:g} | {timing.judge(found['cpu'], 'at most', bar)}" if bar else " | "
            seconds = " | ".join(timing.number(found[clock]) for clock in ("cpu", "wall"))
            lines.append(f"| {kind} | {part} | {seconds} | {judged} |")
    lines += [
        "",
        "| a step of LeNet-5, compiled | s of computing | times the plain network |",
        "|---|---|---|",
    ]
    ratios = {name.partition(" / ")[0]: found for name, found in compiled["ratios"].items()}
    for name, found in compiled["seconds"].items():
        times = (timing.hidden(ratios[name]) or timing.number(ratios[name])) if name in ratios else ""
        lines.append(f"| {name} | {timing.number(found)} | {times} |")
    more = (
        f"{predicted['compiled_again']} programs compiled and {predicted['megabytes_more']:.1f} MB of memory"
    )
    return "\n".join(
        [
            *lines,
            "",
            *timing.ratio_table(predicted["ratios"]),
            "",
            f"{more} more for 1,000 draws than for 10.",
            f"{at['device']}, {at['num_cores']} core(s), jax {at['jax']}.",
        ]
    )


if __name__ == "__main__":
    timing.pin()
    cli.run(main, Config, __doc__)
