"""Two chains on two cores beside one chain on one: what `chains.collect` makes of a second core.

    python benchmarks/chains.py            2 CPU cores: about 7 minutes
    python benchmarks/chains.py --quick    half a minute, too few turns to trust

HMC of fixed steps and NUTS of fixed depth on the digits net, full batch of 1,297 images. Each contestant is a
process of its own, pinned to as many cores as it has chains, one device a chain. They take turns; a turn is a
block of draws, by the clock on the wall, as a chain that waits for another computes nothing. The speed-up is
chains times the seconds of one chain by the seconds of all, within a turn: 1 if chains queue up, their number
if they do not disturb each other.
"""

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from bnn_jax import chains, cli, models, runs, timing
from bnn_jax.data import digits
from bnn_jax.report.progress import track
from bnn_jax.types import Batch, UserError

BARS = {"hmc, 2 chains": ("at least", 1.7), "nuts, 2 chains": ("at least", 1.7)}
METHODS = {
    "hmc": dict(trajectory_length=0.2, step_size=0.01),
    "nuts": dict(max_tree_depth=5, step_size=0.01),
}


@dataclasses.dataclass(frozen=True)
class Config:
    chains: int = 2  # of the larger contestant; as many cores
    repeats: int = 15  # turns of every contestant
    draws: int = 10  # of every chain, a turn
    out: Path = Path("benchmarks/results/chains.json")  # where the JSON goes
    quick: bool = False  # HMC alone, 2 turns of 2 draws


def main(config: Config) -> None:
    """Measure, write the JSON, print the table made from it."""
    if config.quick:
        config = dataclasses.replace(config, repeats=2, draws=2)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not 2 <= config.chains <= len(cores):
        raise UserError(
            f"--chains must lie between 2 and the {len(cores)} cores that a process can be pinned to"
        )
    methods = ("hmc",) if config.quick else tuple(METHODS)
    seconds = measure(methods, config, cores)
    results = {
        "config": runs.as_config(config, leave_out=("out",)),
        "environment": runs.environment(),
        "milliseconds": timing.milliseconds({name: found / config.draws for name, found in seconds.items()}),
        "ratios": timing.judged(speed_ups(seconds, methods, config.chains), BARS),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, results)
    print(table(runs.read_json(config.out)))


def speed_ups(seconds: dict[str, np.ndarray], methods: Sequence[str], number: int) -> dict[str, np.ndarray]:
    """Of so many chains, turn by turn."""
    return {
        f"{method}, {number} chains": number * seconds[f"{method}, 1"] / seconds[f"{method}, {number}"]
        for method in methods
    }


def measure(methods: Sequence[str], config: Config, cores: list[int]) -> dict[str, np.ndarray]:
    """Seconds of every contestant's block in every turn."""
    contestants = {}
    with ExitStack() as stack:
        for method in methods:
            for number in (1, config.chains):
                given = (method, number, cores[-number:], config.draws, config.repeats + 1)
                contestants[f"{method}, {number}"] = stack.enter_context(contestant(given))
        with track(Console(stderr=True), "turns", config.repeats) as progress:
            return timing.take_turns(contestants, config.repeats, progress=lambda done: progress(done, {}))


@contextmanager
def contestant(given: tuple) -> Iterator[Callable[[], float]]:
    """Seconds of the next block of `serve`, in a process that lives as long as the context."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, *given), daemon=True)
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for us, who end the process
    process.start()
    signal.signal(signal.SIGINT, ours)
    there.close()  # here: if the process dies, `recv` says so

    def turn() -> float:
        here.send(True)
        return here.recv()

    try:
        yield turn
    finally:
        process.kill()
        process.join()


def serve(pipe: Connection, method: str, number: int, cores: list[int], draws: int, blocks: int) -> None:
    """Sample a block whenever asked, and tell the seconds."""
    os.sched_setaffinity(0, cores)  # before JAX starts its threads
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", number)
    found = sampled(method, number, draws, blocks)
    while pipe.recv():
        begin = time.perf_counter()
        jax.block_until_ready(next(found).draws)
        pipe.send(time.perf_counter() - begin)


def sampled(method: str, number: int, draws: int, blocks: int) -> Iterator[Any]:
    """Blocks of draws of so many chains."""
    data = digits.load()
    model = models.build("digits", data.num_classes)
    settings = dict(num_warmup=0, **METHODS[method])
    algorithm = models.method(method, model, len(data.x_train), **settings)
    keys = jax.random.split(jax.random.key(0), number)
    starts = models.init(keys, model, data.x_train)
    batch = Batch(data.x_train, data.y_train)
    how = dict(num_warmup=0, num_draws=draws * blocks, block_size=draws)
    return chains.collect(jax.random.key(1), algorithm, starts, batch, **how)


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    at = results["environment"]
    lines = ["| method, chains | ms a draw of each, median (quartiles) |", "|---|---|"]
    lines += [f"| {name} | {timing.number(found)} |" for name, found in results["milliseconds"].items()]
    lines += ["", *timing.ratio_table(results["ratios"], "speed-up"), ""]
    return "\n".join(
        [*lines, f"{results['config']['repeats']} turns; {at['num_cores']} cores, jax {at['jax']}."]
    )


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
