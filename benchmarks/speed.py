"""What the pieces of Bayesian training and prediction cost, beside the least that they could.

    python benchmarks/speed.py            one CPU core: about 20 minutes, half of it compilation
    python benchmarks/speed.py --quick    a minute, too small to trust
    python benchmarks/speed.py --out benchmarks/results/gpu/speed.json    on a GPU, not run yet

    steps      of MAP, VI with one weight sample, local reparameterisation and flipout, with the forward pass
               in float32 and bfloat16; on a GPU also of ResNet-20 and VGG16, and HMC's leapfrogs a second
    samples    a step of VI with S weight samples under every strategy, and the memory that it needs
    pieces     what a VI step of LeNet is made of, each piece compiled alone. Within the step pieces fuse, so
               that the shares do not add up to one
    peak       floating point operations a second of every step, beside those of a large matrix product

LeNet-5 for 28x28x1 inputs, batches of 128, Adam, random images, as only shapes matter. The contestants of
a subject take turns; ratios are taken within a turn. On CPU one core, and the time that it computed; else the
time on the wall. Operations are XLA's count of the MAP step (for a convolution 2 x outputs x inputs of a
window, the padding left out); what estimators, noise and KL add is not counted as use.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from bnn_jax import cli, estimators, models, objectives, ops, runs, timing, trees
from bnn_jax.infer import hmc
from bnn_jax.nets import lenet
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import fan_in
from bnn_jax.report.progress import track
from bnn_jax.types import Batch

METHODS = ("MAP", "sampling", "local_reparam", "flipout")
NETS = {
    "mlp": (8, 8, 1),
    "digits": (8, 8, 1),
    "lenet": (28, 28, 1),
    "resnet": (32, 32, 3),
    "vgg(dense=False)": (32, 32, 3),
}
ON_CPU = ("lenet",)
ON_GPU = ("lenet", "resnet", "vgg(dense=False)")
NUM_DATA = 50_000  # N of the objective
BARS = {"sampling / MAP": 1.1, "local_reparam / MAP": 2.1, "flipout / MAP": 2.1}


@dataclasses.dataclass(frozen=True)
class Config:
    repeats: int = 15  # turns of every contestant, at most
    seconds: float = 180.0  # of a subject, after which no turn starts; compilation does not count
    samples: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # S
    batch_size: int = 128  # examples a step
    count: int = 3  # calls timed together in a turn
    matrix: int = 2048  # side of the matrices of the product
    images: int = 10_000  # of HMC's full batch for ResNet-20, on a GPU
    out: Path = Path("benchmarks/results/speed.json")  # where the JSON goes
    quick: bool = False  # 2 turns, batches of 8, S = 1 and 2, a perceptron where it can stand for LeNet


class Step(NamedTuple):
    """A training step as a contestant."""

    turn: Callable[[], float]
    flops: float  # as XLA counts
    memory: int  # bytes beside arguments and results


def main(config: Config) -> None:
    """Measure, write the JSON, print the tables made from it."""
    jax.config.update("jax_compilation_cache_dir", None)
    if config.quick:
        config = dataclasses.replace(
            config, repeats=2, batch_size=8, count=1, samples=(1, 2), matrix=128, images=16
        )
    results = {
        "config": runs.as_config(config, leave_out=("out",)),
        "environment": runs.environment(),
        "steps": steps(config),
        "samples": samples(config),
        "pieces": pieces(config),
    }
    if jax.default_backend() != "cpu":
        results["leapfrogs"] = leapfrogs(config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, results)
    print(table(runs.read_json(config.out)))


def data(shape: tuple[int, ...], size: int) -> Batch:
    """Random images of ten classes."""
    keys = jax.random.split(jax.random.key(1))
    return Batch(jax.random.normal(keys[0], (size, *shape)), jax.random.randint(keys[1], (size,), 0, 10))


def step(
    net: str,
    method: str,
    config: Config,
    compute: str = "float32",
    num_samples: int = 1,
    strategy: str | None = None,
) -> Step:
    """One of `METHODS`, as `loop.stepper` takes its steps where convolutions are slow in loops."""
    key, batch = jax.random.key(0), data(NETS[net], config.batch_size)
    model = models.build(net, 10, compute=compute)
    how = {} if method == "MAP" else dict(estimator=method, num_samples=num_samples, strategy=strategy)
    name = "map" if method == "MAP" else "vi"
    algorithm = models.method(name, model, NUM_DATA, optimizer=optax.adam(1e-3), **how)

    def advance(state, batch, t):
        with ops.outside_loops():
            return algorithm.step(jax.random.fold_in(key, t), state, batch)

    state = jax.tree.map(partial(jnp.array, copy=True), algorithm.init(key, models.init(key, model, batch.x)))
    lowered = jax.jit(advance, donate_argnums=0).lower(state, batch, 0)
    compiled = lowered.compile()

    def run():
        nonlocal state
        state, info = compiled(state, batch, 0)
        return info

    flops = lowered.cost_analysis()["flops"]  # of the compiled one libraries' convolutions are left out
    return Step(timing.timed(run, config.count), flops, compiled.memory_analysis().temp_size_in_bytes)


def race(name: str, contestants: dict[str, Callable[[], float]], config: Config) -> dict[str, np.ndarray]:
    """The turns of one subject, with a progress bar."""
    with track(Console(stderr=True), name, config.repeats) as progress:
        return timing.take_turns(contestants, config.repeats, config.seconds, lambda done: progress(done, {}))


def product(dtype: Any, config: Config) -> Callable[[], float]:
    """A square matrix product."""
    size = config.matrix if jax.default_backend() == "cpu" else 4 * config.matrix
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    seconds = timing.timed(lambda: multiply(a, a))
    return lambda: seconds() / (2 * size**3)  # of one operation


def steps(config: Config) -> dict[str, Any]:
    """Ratios to MAP, bfloat16 to float32, and each step's share of the machine's peak."""
    nets = ("mlp",) if config.quick else ON_CPU if jax.default_backend() == "cpu" else ON_GPU
    every = [(net, compute, method) for net in nets for compute in models.DTYPES for method in METHODS]
    name = lambda net, compute, method: f"{net}, {method}" + (", bfloat16" if compute == "bfloat16" else "")
    built = {name(*how): step(how[0], how[2], config, how[1]) for how in every}
    peaks = {compute: f"operation, {compute}" for compute in models.DTYPES}
    contestants = {label: found.turn for label, found in built.items()}
    contestants |= {
        peaks[compute]: product(dtype or jnp.float32, config) for compute, dtype in models.DTYPES.items()
    }
    seconds = race("steps", contestants, config)
    ratios, bars, use = {}, {}, {}
    for net, compute, method in every:
        mine, plain = name(net, compute, method), name(net, compute, "MAP")
        use[mine] = built[plain].flops / seconds[mine] * seconds[peaks[compute]]
        if method != "MAP":
            label = mine.replace(method, f"{method} / MAP")
            ratios[label] = seconds[mine] / seconds[plain]
            bars[label] = ("at most", BARS[f"{method} / MAP"])
        if compute == "bfloat16":
            ratios[f"{net}, {method}, bfloat16 / float32"] = (
                seconds[mine] / seconds[name(net, "float32", method)]
            )
    return {
        "milliseconds": timing.milliseconds({label: seconds[label] for label in built}),
        "flops": {label: found.flops for label, found in built.items()},
        "share_of_peak": {label: timing.spread(values) for label, values in use.items()},
        "peak_gflops": {c: timing.spread(1e-9 / seconds[p]) for c, p in peaks.items()},
        "ratios": timing.judged(ratios, bars),
    }


def samples(config: Config) -> dict[str, Any]:
    """Cost and memory of S weight samples under every strategy."""
    net = "mlp" if config.quick else "lenet"
    built = {
        (strategy, count): step(net, "sampling", config, num_samples=count, strategy=strategy)
        for strategy in (*estimators.STRATEGIES, "map(4)")
        for count in config.samples
    }
    label = lambda strategy, count: f"{strategy}, S = {count}"
    seconds = race("samples", {label(*how): found.turn for how, found in built.items()}, config)
    base = label(estimators.preferred_strategy(), config.samples[0])
    ratios = {f"{label(*how)} / {base}": seconds[label(*how)] / seconds[base] for how in built}
    bar = f"{label(estimators.preferred_strategy(), 8)} / {base}"
    return {
        "preferred": estimators.preferred_strategy(),
        "milliseconds": timing.milliseconds(seconds),
        "megabytes": {label(*how): found.memory / 1e6 for how, found in built.items()},
        "ratios": timing.judged(ratios, {bar: ("at most", 8.4)}),
    }


def pieces(config: Config) -> dict[str, Any]:
    """The parts of a LeNet step, each compiled alone."""
    key, batch = jax.random.key(0), data(NETS["lenet"], config.batch_size)
    params = lenet.build(10).init(key, batch.x)["params"]
    family, prior, optimizer = mean_field.build(), fan_in.build(), optax.adam(1e-3)
    phi = family.init(params)
    kernels = [params[name]["kernel"] for name in ("Conv_0", "Conv_1")]
    inner = jax.random.normal(key, (config.batch_size, 14, 14, 6))
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolve(kernels, inner):
        with ops.outside_loops():  # as the step does
            first = ops.conv_general_dilated(batch.x, kernels[0], (1, 1), "SAME", dimension_numbers=numbers)
            second = ops.conv_general_dilated(inner, kernels[1], (1, 1), "VALID", dimension_numbers=numbers)
        return first, second

    outputs = jax.tree.map(jnp.ones_like, convolve(kernels, inner))
    pool = lambda maps: jax.tree.map(lambda h: ops.max_pool(jax.nn.relu(h)), maps)
    pooled = jax.tree.map(jnp.ones_like, pool(outputs))
    jitted = {
        "convolutions, forward": (convolve, kernels, inner),
        "convolutions, gradients": (lambda k, h, g: jax.vjp(convolve, k, h)[1](g), kernels, inner, outputs),
        "ReLU and pooling, forward": (pool, outputs),
        "ReLU and pooling, gradients": (lambda h, g: jax.vjp(pool, h)[1](g), outputs, pooled),
        "random numbers": (lambda key: trees.normal_like(key, params), key),
        "KL, gradients": (lambda phi: jax.value_and_grad(family.kl)(phi, prior), phi),
        "optimiser": (optimizer.update, phi, optimizer.init(phi)),
    }  # fmt: skip
    contestants = {
        name: timing.timed(partial(jax.jit(f), *given), config.count) for name, (f, *given) in jitted.items()
    }
    contestants["whole step"] = step("lenet", "sampling", config).turn
    seconds = race("pieces", contestants, config)
    shares = {name: timing.spread(values / seconds["whole step"]) for name, values in seconds.items()}
    return {"milliseconds": timing.milliseconds(seconds), "shares": shares}


def leapfrogs(config: Config) -> dict[str, Any]:
    """Of HMC, a second, for the digits net and ResNet-20 on full batches."""
    size, contestants, length = 0.001, {}, 8
    for net, images in (("digits", 1297), ("resnet", config.images)):
        key, batch, model = jax.random.key(0), data(NETS[net], images), models.build(net, 10)
        log_joint = objectives.log_joint(model.apply, model.prior, model.likelihood, images)
        algorithm = hmc.build(
            log_joint, model.prior.scale, 0, trajectory_length=(length - 0.5) * size, step_size=size
        )
        state = algorithm.init(key, models.init(key, model, batch.x))
        run = partial(jax.jit(algorithm.step), key, state, batch)
        contestants[f"{net}, {images} images"] = timing.timed(run)
    seconds = race("leapfrogs", contestants, config)
    return {name: timing.spread(length / values) for name, values in seconds.items()}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    at = results["environment"]
    done, many, parts = (results[name] for name in ("steps", "samples", "pieces"))
    lines = ["| step | ms, median (quartiles) | share of the peak |", "|---|---|---|"]
    for name, found in done["milliseconds"].items():
        lines.append(f"| {name} | {timing.number(found)} | {done['share_of_peak'][name]['median']:.0%} |")
    lines += ["", *timing.ratio_table(done["ratios"]), ""]
    lines += ["| samples | ms, median (quartiles) | times the first | MB |", "|---|---|---|---|"]
    ratios = {name.partition(" / ")[0]: found for name, found in many["ratios"].items()}
    for name, found in many["milliseconds"].items():
        ratio = timing.hidden(ratios[name]) or f"{ratios[name]['median']:.3g}"
        lines.append(f"| {name} | {timing.number(found)} | {ratio} | {many['megabytes'][name]:.1f} |")
    bars = [(name, found) for name, found in many["ratios"].items() if "bar" in found]
    lines += ["", *(f"{name}: {found['bar']}, {found['verdict']}." for name, found in bars), ""]
    lines += [
        "| piece of a VI step, compiled alone | ms, median (quartiles) | of the step |",
        "|---|---|---|",
    ]
    for name, found in parts["milliseconds"].items():
        lines.append(f"| {name} | {timing.number(found)} | {parts['shares'][name]['median']:.0%} |")
    rates = [
        f"{name}: {timing.number(found)} leapfrogs a second."
        for name, found in results.get("leapfrogs", {}).items()
    ]
    peaks = ", ".join(f"{c} {s['median']:.3g}" for c, s in done["peak_gflops"].items())
    return "\n".join(
        [
            *lines,
            "",
            *rates,
            f"Peak, by a matrix product, in GFLOP/s: {peaks}. Default strategy: {many['preferred']}.",
            f"{at['device']}, {at['num_cores']} core(s), jax {at['jax']}.",
        ]
    )


if __name__ == "__main__":
    timing.pin()
    cli.run(main, Config, __doc__)
