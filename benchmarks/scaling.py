"""What the compiled programs do on 1, 2, 4 and 8 devices, and what a step costs on many.

    python benchmarks/scaling.py            2 CPU cores: about 10 minutes, nearly all compilation
    python benchmarks/scaling.py --quick    a perceptron on 1 and 4 devices

Each number of devices is a process of its own, as JAX fixes it when it starts. The programs are those that
users run, `loop.stepper` and `chains.collect`, on random images, as only shapes matter:

    VI                    a step of flipout VI, its batch split over the devices
    VI, S samples         the same with S weight samples; and with S split too, on 2 x n/2 devices
    HMC, 8 chains         spread over the devices; they share nothing
    HMC, data split       one chain on all devices; and two chains on 2 x n/2 devices

What XLA made of them is read from its dump of the optimised programs. Every collective is counted, with its
bytes a device and whether it lies within the loop over leapfrogs. A combined all-reduce of all gradient
tensors is one, also where the loss, a scalar, rides in it. XLA decides on collectives before it generates
code, so that code is generated with few optimisations, to compile sooner. Results are compared with one
device by max |a - b| / (1 + |b|). Fake devices share the cores of one machine: their times say nothing about
real ones.

`cost` is the model behind the second table. Nothing here has run on several accelerators.
"""

import dataclasses
import itertools
import math
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnn_jax import chains, cli, estimators, loop, models, objectives, parts, runs, sharding, timing, trees
from bnn_jax.types import Batch

SAMPLES = 4
QUICK = ("VI", "VI, 4 samples", "HMC, 2 chains, 2 x n/2")
TOLERANCE = 1e-5
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
OPERATION = re.compile(rf"= (?P<shape>\(.*?\)|\S+) (?P<kind>{KINDS})(?:-start)?\((?P<rest>.*)")
TENSOR = re.compile(r"\b([a-z]+)(\d+)\[([\d,]*)\]")
DUMP = "--xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_(run|init).*"  # a step; a chain's start
FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Config:
    devices: tuple[int, ...] = (1, 2, 4, 8)  # how many; the first is what the others are compared with
    repeats: int = 5  # timed calls of every program
    out: Path = Path("benchmarks/results/scaling.json")  # where the JSON goes
    quick: bool = False  # a small perceptron on 1 and 4 devices, three programs


def main(config: Config) -> None:
    """Measure, write the JSON, print the tables made from it."""
    if config.quick:
        config = dataclasses.replace(config, devices=(1, 4), repeats=2)
    found = {}
    for count in config.devices:
        print(f"{count} devices ...", flush=True)
        found[count] = in_process(count, config.repeats, config.quick)
    one = found[config.devices[0]]
    results = {
        "config": runs.as_config(config, leave_out=("out",)),
        "environment": runs.environment(),
        "num_weights": one["num_weights"],
        "programs": [
            judge(name, count, one["num_weights"], found[count]["cases"][name], first)
            for name, first in one["cases"].items()
            for count in config.devices
        ],
        "costs": costs(),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, results)
    print(table(runs.read_json(config.out)))


def in_process(count: int, repeats: int, quick: bool) -> dict[str, Any]:
    """`measure` in a new process with `count` devices."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as dump:
        before = os.environ.get("XLA_FLAGS")
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={dump} {DUMP}"  # for the child alone
        try:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                return pool.submit(measure, count, repeats, quick, Path(dump)).result()
        finally:
            del os.environ["XLA_FLAGS"]
            if before is not None:
                os.environ["XLA_FLAGS"] = before


def measure(count: int, repeats: int, quick: bool, dump: Path) -> dict[str, Any]:
    """Every program on `count` devices: its collectives, its first result, seconds of the calls after it."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_disable_most_optimizations", True)  # of code generation alone
    model = models.build("mlp(hidden=(8,))" if quick else "lenet", 10)
    side, batch_size = (8, 32) if quick else (28, 128)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * batch_size, side, side, 1)).astype(np.float32)
    data = Batch(x, rng.integers(10, size=len(x)).astype(np.int32))
    pair = split(count)
    programs = {
        "VI": vi(model, data, batch_size, 1, (1, count)),
        f"VI, {SAMPLES} samples": vi(model, data, batch_size, SAMPLES, (1, count)),
        f"VI, {SAMPLES} samples, 2 x n/2": vi(model, data, batch_size, SAMPLES, pair),
        "HMC, 8 chains": hmc(model, data, 8, (count, 1), repeats),
        "HMC, data split": hmc(model, data, 1, (1, count), repeats),
        "HMC, 2 chains, 2 x n/2": hmc(model, data, 2, pair, repeats),
    }
    if quick:
        programs = {name: programs[name] for name in QUICK}
    cases, seen = {}, set()
    for name, program in programs.items():
        result = next(program)
        texts = {path: path.read_text() for path in dump.glob("*after_optimizations.txt") if path not in seen}
        seen |= set(texts)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            next(program)
            seconds.append(time.perf_counter() - start)
        found = [one for text in texts.values() for one in collectives(text)]
        cases[name] = {"collectives": found, "result": result, "seconds": seconds}
    params = models.shapes(model, data.x)
    return {"num_weights": trees.size(params), "cases": cases}


def vi(
    model: models.Model, data: Batch, batch_size: int, num_samples: int, shape: tuple
) -> Iterator[np.ndarray]:
    """The variational parameters after every two steps."""
    mesh = sharding.make_mesh(*shape)
    strategy = sharding.over_samples(mesh) if shape[0] > 1 else None
    family = parts.find("posterior", "mean_field")()
    through = estimators.build("flipout", model.module, family, num_samples, strategy)
    elbo = objectives.elbo(through, family, model.prior, model.likelihood, len(data.x))
    method = parts.find("method", "vi")(elbo, family, len(data.x), optax.sgd(1e-3))
    key = jax.random.key(1)
    state = loop.start(key, method, models.init(jax.random.key(0), model, data.x))
    advance = loop.stepper(key, method, data, batch_size=batch_size, chunk_size=2, mesh=mesh)
    for first in itertools.count(0, 2):
        state, _ = advance(state, first, first + 2)
        yield flat(state.phi)


def hmc(
    model: models.Model, data: Batch, num_chains: int, shape: tuple, repeats: int
) -> Iterator[np.ndarray]:
    """Two draws of every chain at a time."""
    log_joint = objectives.log_joint(model.apply, model.prior, model.likelihood, len(data.x))
    method = parts.find("method", "hmc")(
        log_joint, model.prior.scale, 0, trajectory_length=0.01, step_size=0.002
    )
    keys = jax.random.split(jax.random.key(0), num_chains)
    starts = models.init(keys, model, data.x)
    for block in chains.collect(
        jax.random.key(2),
        method,
        starts,
        data,
        num_warmup=0,
        num_draws=2 * (repeats + 1),
        block_size=2,
        mesh=sharding.make_mesh(*shape),
    ):
        yield flat(block.draws)


def flat(tree: Any) -> np.ndarray:
    """All leaves as one vector."""
    return np.concatenate([np.asarray(a).ravel() for a in jax.tree.leaves(tree)])


def collectives(text: str) -> list[dict[str, Any]]:
    """The collectives of an optimised program."""
    found = []
    for line in text.splitlines():
        match = OPERATION.search(line)
        if match is None:
            continue
        sizes = [
            (int(bits), math.prod(map(int, filter(None, dims.split(",")))))
            for _, bits, dims in TENSOR.findall(re.sub(r"/\*.*?\*/", "", match["shape"]))
        ]
        name = re.search(r'op_name="([^"]*)"', match["rest"])
        found.append(
            {
                "kind": match["kind"],
                "tensors": sum(size > 1 for _, size in sizes),
                "scalars": sum(size == 1 for _, size in sizes),
                "bytes": sum(bits * size for bits, size in sizes) // 8,
                "loops": name[1].count("while/body") if name else 0,  # that surround it
            }
        )
    return found


def judge(
    name: str, count: int, num_weights: int, case: dict[str, Any], one: dict[str, Any]
) -> dict[str, Any]:
    """A row of the results: counts, bytes, agreement with one device, and times as a ratio to its."""
    found = case["collectives"]
    reduced = [c for c in found if c["kind"] == "all-reduce"]
    innermost = max((c["loops"] for c in reduced), default=0)
    a, b = case["result"], one["result"]
    mine, first = timing.spread(case["seconds"]), timing.spread(one["seconds"])
    apart = case is not one and (mine["q25"] > first["q75"] or mine["q75"] < first["q25"])
    return {
        "program": name,
        "devices": count,
        "gradient_all_reduces": sum(c["tensors"] > 0 for c in reduced),
        "a_leapfrog": sum(c["tensors"] > 0 and c["loops"] == innermost for c in reduced)
        if "HMC" in name
        else None,
        "scalar_all_reduces": sum(c["tensors"] == 0 for c in reduced),
        "others": {kind: sum(c["kind"] == kind for c in found) for kind in KINDS.split("|")[1:]},
        "bytes": max((c["bytes"] for c in reduced), default=0),
        "model": reduced_bytes(name, count, num_weights),
        "collectives": found,
        "difference": float(np.max(np.abs(a - b) / (1 + np.abs(b)))),
        "equal": bool(np.all(np.abs(a - b) <= TOLERANCE * (1 + np.abs(b)))),
        "seconds": mine,
        "ratio": mine["median"] / first["median"]
        if apart
        else None,  # None: quartiles overlap, or one device
    }


def reduced_bytes(name: str, count: int, num_weights: int) -> int | None:
    """What `cost` says that an all-reduce of a program carries; None for VI with split samples, which it
    leaves out."""
    if "VI" in name:
        number = SAMPLES if "samples" in name else 1
        return None if "2 x" in name else cost("vi", num_weights, (1, count), 1, number)["bytes"]
    meshes = {"HMC, 8 chains": (count, 1), "HMC, data split": (1, count)}
    return cost("hmc", num_weights, meshes.get(name, split(count)), 1)["bytes"]


def split(count: int) -> tuple[int, int]:
    """2 x n/2 devices; on one, one."""
    return (min(count, 2), max(count // 2, 1))


def cost(
    method: str,
    num_weights: int,
    mesh: tuple[int, int],
    num_examples: int,
    number: int = 1,
    leapfrogs: int = 1,
) -> dict[str, Any]:
    """What a step of VI (mean field, flipout, Adam) or of HMC costs one device of a mesh, all in float32.

    Args:
        mesh: devices along "sample", over which chains are spread, and "data"; VI has one along "sample".
        num_examples: of a batch of VI; of the whole data for HMC.
        number: weight samples S of VI; chains of HMC on one place of the sample axis.
        leapfrogs: of a trajectory.

    Returns:
        gradients: examples whose gradient the device takes, once a weight sample or leapfrog.
        state: bytes of parameters and optimiser, or of positions: what stays on the device between steps.
        working: bytes of gradients, momenta and weight draws beside it. Activations are not in it.
        draw: bytes that one draw of all chains adds to the disk.
        all_reduces: a step.
        bytes: that each of them carries.
        traffic: bytes that the device sends in a step, by a ring: 2 (n - 1) / n of what is reduced.
    """
    across, shards = mesh
    if method == "vi":
        times, gradients, draw = 1, num_examples / shards * number, 0
        state = 6 * num_weights  # mean and width, and Adam's two moments of both
        working = (2 + 4 * number) * num_weights  # the gradient; a sample's draw, perturbation and gradients
        payload = 2 * number * num_weights + 1  # every sample's gradient, before they are added; the loss
    else:
        times = leapfrogs + 1  # one gradient beside the trajectory's
        gradients, draw = num_examples / shards * number * times, across * number * num_weights
        state, working = number * num_weights, 2 * number * num_weights
        payload = number * (num_weights + 1)
    if shards == 1:
        times, payload = 0, 0
    return {
        "gradients": gradients,
        "state": FLOAT * state,
        "working": FLOAT * working,
        "draw": FLOAT * draw,
        "all_reduces": times,
        "bytes": FLOAT * payload,
        "traffic": times * FLOAT * payload * 2 * (shards - 1) / shards,
    }


RESNET_50 = 25_600_000  # weights: He et al., arXiv:1512.03385, without batch normalisation's
LEAPFROGS = 100  # of a trajectory, assumed
CASES = (  # method, net, data, examples a step, mesh, weight samples or chains a place
    ("vi", "LeNet", "MNIST", 128, (1, 8), 1),
    ("vi", "ResNet-20", "CIFAR-10", 128, (1, 8), 1),
    ("vi", "ResNet-50", "ImageNet", 1024, (1, 8), 1),
    ("vi", "ResNet-50", "ImageNet", 1024, (1, 64), 1),
    ("vi", "ResNet-50", "ImageNet", 1024, (1, 8), 8),
    ("vi", "ResNet-50", "ImageNet", 1024, (1, 64), 8),
    ("hmc", "LeNet", "MNIST", 60_000, (64, 1), 1),
    ("hmc", "LeNet", "MNIST", 60_000, (8, 8), 1),
    ("hmc", "ResNet-20", "CIFAR-10", 50_000, (64, 1), 1),
    ("hmc", "ResNet-20", "CIFAR-10", 50_000, (8, 8), 1),
    ("hmc", "ResNet-20", "CIFAR-10", 50_000, (1, 64), 1),
    ("hmc", "ResNet-50", "ImageNet", 1_281_167, (1, 64), 1),
)


def costs() -> list[dict[str, Any]]:
    """`cost` of every case, the numbers of weights taken from the nets themselves where we have them."""
    sizes = {
        "LeNet": count_weights("lenet", (28, 28, 1)),
        "ResNet-20": count_weights("resnet", (32, 32, 3)),
        "ResNet-50": RESNET_50,
    }
    rows = []
    for method, net, data, examples, mesh, number in CASES:
        found = cost(method, sizes[net], mesh, examples, number, LEAPFROGS if method == "hmc" else 1)
        what = f"VI, S = {number}" if method == "vi" else f"HMC, {mesh[0] * number} chains"
        about = {"net": f"{net}, {data}", "examples": examples, "mesh": list(mesh), "num_weights": sizes[net]}
        rows.append({"method": what, **about, **found})
    return rows


def count_weights(net: str, shape: tuple[int, ...]) -> int:
    """Weights of one of our nets with ten outputs."""
    model = models.build(net, 10)
    params = models.shapes(model, jnp.zeros((1, *shape)))
    return trees.size(params)


def table(results: dict[str, Any]) -> str:
    """The programs that were compiled, as Markdown."""
    lines = [
        "| program | devices | gradient all-reduces | a leapfrog | of scalars alone | other collectives "
        "| bytes each | by the model | largest difference | time / one device |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["programs"]:
        others = ", ".join(f"{n} {kind}" for kind, n in row["others"].items() if n) or "none"
        a_leapfrog = "" if row["a_leapfrog"] is None else row["a_leapfrog"]
        model = "" if row["model"] is None else f"{row['model']:,}"
        alone = row["devices"] == results["config"]["devices"][0]
        ratio = "" if alone else "hidden by the spread" if row["ratio"] is None else f"{row['ratio']:.2g}"
        lines.append(
            f"| {row['program']} | {row['devices']} | {row['gradient_all_reduces']} | {a_leapfrog} "
            f"| {row['scalar_all_reduces']} | {others} | {row['bytes']:,} | {model} "
            f"| {row['difference']:.1e} | {ratio} |"
        )
    environment = results["environment"]
    about = f"{results['num_weights']:,} weights; fake devices on {environment['num_cores']} CPU cores"
    return "\n".join([*lines, "", f"{about}, jax {environment['jax']}."])


def cost_table(results: dict[str, Any]) -> str:
    """The model, as Markdown."""
    lines = [
        "| method | net, data | devices | example gradients | state | working | a draw of all chains "
        "| all-reduces | bytes each | sent |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["costs"]:
        mesh = " x ".join(map(str, row["mesh"]))
        sizes = [in_words(row[name]) for name in ("state", "working", "draw")]
        lines.append(
            f"| {row['method']} | {row['net']} | {mesh} | {row['gradients']:,.0f} | {' | '.join(sizes)} "
            f"| {row['all_reduces']} | {in_words(row['bytes'])} | {in_words(row['traffic'])} |"
        )
    return "\n".join(lines)


def in_words(size: float) -> str:
    """Bytes with a decimal prefix."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B" if size else "none"


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
