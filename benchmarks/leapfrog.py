"""What a leapfrog of our HMC costs, beside the bare gradient and beside plain NumPyro.

    python benchmarks/leapfrog.py            2 CPU cores: about 3 minutes
    python benchmarks/leapfrog.py --quick    half a minute, too few repeats to trust

The digits net with the fan-in prior and the full batch of 1,297 images, on one device in one process:

    gradient    the jitted gradient of the log joint, outside any loop
    ours        a step of `infer.hmc` of exactly L leapfrogs, for two L: the slope, and the time of a step / L
    chain       draws of the larger L as `chains.collect` takes them for every command line
    numpyro     a step of `numpyro.infer.HMC` of the smaller L on a NumPyro model of the same net, with
                `nn.Conv` and `nn.max_pool`, the same prior and likelihood; compared with our step of
                that L, whose extra gradient a step (see `bnn_jax.hamiltonian`) counts against us

The contestants take turns, so that a change of the machine's speed meets all of them; every ratio is taken
within a turn. Medians and quartiles over turns.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import random_flax_module
from numpyro.infer import HMC
from rich.console import Console

from bnn_jax import chains, cli, objectives, ops, runs, timing, trees
from bnn_jax.data import digits as digits_data
from bnn_jax.infer import hmc
from bnn_jax.likelihoods import categorical
from bnn_jax.nets import digits
from bnn_jax.priors import fan_in
from bnn_jax.report.progress import track
from bnn_jax.types import Algorithm, Batch, Key, Params

STEP_SIZE = 0.002  # in prior widths; small, so that no trajectory diverges
BARS = {
    "ours / gradient": ("at most", 1.25),
    "chain / gradient": ("at most", 1.25),
    "numpyro / ours": ("at least", 10.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    repeats: int = 30  # turns of every contestant, at most
    seconds: float = 120.0  # no turn starts later; compilation does not count
    short: int = 8  # leapfrogs of the shorter trajectory, and of NumPyro's
    long: int = 40  # leapfrogs of the longer trajectory
    gradients: int = 10  # gradients timed together in a turn
    draws: int = 2  # of the chain, timed together in a turn
    out: Path = Path("benchmarks/results/leapfrog.json")  # where the JSON goes
    quick: bool = False  # 3 turns


class NativeDigits(nn.Module):
    """The digits net as anybody would write it."""

    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (8, 16):
            x = nn.max_pool(nn.swish(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(self.num_outputs)(x.reshape(x.shape[0], -1))


def model(x: jax.Array, y: jax.Array, num_outputs: int) -> None:
    """The NumPyro model: the prior of `fan_in` and a categorical likelihood."""

    def prior(name, shape):
        leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
        scale = (2.0 / trees.fan_in(leaf)) ** 0.5 if len(shape) > 1 else 1.0
        return dist.Normal(0.0, scale).expand(shape).to_event(len(shape))

    net = random_flax_module("net", NativeDigits(num_outputs), prior, input_shape=(1, *x.shape[1:]))
    numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


def gradient(log_joint: Callable, params: Params, batch: Batch, count: int) -> Callable[[], float]:
    """Seconds of one gradient, timed over `count` in a row."""
    grad = jax.jit(jax.grad(log_joint))

    def turn():
        start = time.perf_counter()
        for _ in range(count):
            result = grad(params, batch)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / count

    return turn


def ours(
    log_joint: Callable, scale: Callable, key: Key, params: Params, batch: Batch, num_steps: int
) -> Callable:
    """Seconds of one step of `num_steps` leapfrogs."""
    algorithm = sampler(log_joint, scale, num_steps)
    step, state = jax.jit(algorithm.step), algorithm.init(key, params)

    def turn():
        start = time.perf_counter()
        _, info = jax.block_until_ready(step(key, state, batch))
        seconds = time.perf_counter() - start
        check(int(info["num_steps"]), num_steps)
        return seconds

    return turn


def sampler(log_joint: Callable, scale: Callable, num_steps: int) -> Algorithm:
    """HMC of `num_steps` leapfrogs a step."""
    length = (num_steps - 0.5) * STEP_SIZE  # their number is rounded up
    return hmc.build(log_joint, scale, num_warmup=0, trajectory_length=length, step_size=STEP_SIZE)


def chain(
    log_joint: Callable,
    scale: Callable,
    key: Key,
    params: Params,
    batch: Batch,
    num_steps: int,
    draws: int,
    turns: int,
) -> Callable[[], float]:
    """Seconds of `num_steps` leapfrogs of a chain; at most so many turns."""
    starts = jax.tree.map(lambda a: a[None], params)
    size = dict(num_warmup=0, num_draws=draws * turns, block_size=draws)
    blocks = chains.collect(key, sampler(log_joint, scale, num_steps), starts, batch, **size)

    def turn():
        start = time.perf_counter()
        block = next(blocks)
        jax.block_until_ready(block.draws)
        seconds = time.perf_counter() - start
        for number in block.trace["num_steps"].ravel():
            check(int(number), num_steps)
        return seconds / draws

    return turn


def plain_numpyro(
    log_joint: Callable, key: Key, params: Params, batch: Batch, num_outputs: int, num_steps: int
) -> Callable[[], float]:
    """Seconds of one step of `num_steps` leapfrogs."""
    kernel = HMC(
        model,
        step_size=STEP_SIZE / 10,  # in weights, where the narrowest prior is a tenth wide
        num_steps=num_steps,
        trajectory_length=None,
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    names = [f"net/{name.replace('/', '.')}" for name in trees.leaf_names(params)]
    starts = dict(zip(names, jax.tree.leaves(params), strict=True))
    arguments = (batch.x, batch.y, num_outputs)
    state = kernel.init(key, num_warmup=0, init_params=starts, model_args=arguments, model_kwargs={})
    # The model is ours: the same density at the same weights.
    np.testing.assert_allclose(state.potential_energy, -log_joint(params, batch), rtol=1e-4)
    step = jax.jit(lambda state, x, y: kernel.sample(state, (x, y, num_outputs), {}))

    def turn():
        start = time.perf_counter()
        after = jax.block_until_ready(step(state, batch.x, batch.y))
        seconds = time.perf_counter() - start
        check(int(after.num_steps), num_steps)
        return seconds

    return turn


def check(found: int, wanted: int) -> None:
    if found != wanted:
        raise RuntimeError(f"a trajectory had {found} leapfrogs instead of {wanted}")


def main(config: Config) -> None:
    """Measure, write the JSON, print the table made from it."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", None)
    measured = measure(config)
    results = {
        "config": runs.as_config(config, leave_out=("out",)),
        "environment": runs.environment(),
        **summarise(measured, config),
        "turns": {name: seconds.tolist() for name, seconds in measured.items()},
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, results)
    print(table(runs.read_json(config.out)))


def measure(config: Config) -> dict[str, np.ndarray]:
    """Seconds of every contestant in every turn."""
    data = digits_data.load()
    batch = Batch(jnp.asarray(data.x_train), jnp.asarray(data.y_train))
    net, prior, num_data = digits.build(data.num_classes), fan_in.build(), len(data.x_train)
    log_joint = objectives.log_joint(ops.apply_fn(net), prior, categorical.build(), num_data)
    key = jax.random.key(0)
    params = net.init(key, batch.x[:1])["params"]
    trajectory = lambda steps: ours(log_joint, prior.scale, key, params, batch, steps)
    contestants = {
        "gradient": gradient(log_joint, params, batch, config.gradients),
        "short": trajectory(config.short),
        "long": trajectory(config.long),
        "chain": chain(
            log_joint, prior.scale, key, params, batch, config.long, config.draws, config.repeats + 1
        ),
        "numpyro": plain_numpyro(log_joint, key, params, batch, data.num_classes, config.short),
    }
    repeats = 3 if config.quick else config.repeats
    with track(Console(), "turns", repeats) as progress:
        return timing.take_turns(contestants, repeats, config.seconds, lambda done: progress(done, {}))


def summarise(seconds: dict[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Milliseconds a leapfrog (or gradient), and ratios within a turn, with quartiles."""
    slope = (seconds["long"] - seconds["short"]) / (config.long - config.short)
    whole = seconds["long"] / config.long
    drawn = seconds["chain"] / config.long
    one = {
        "gradient": seconds["gradient"],
        "ours, slope": slope,
        f"ours, step of {config.short} / {config.short}": seconds["short"] / config.short,
        f"ours, step of {config.long} / {config.long}": whole,
        f"chain, draw of {config.long} / {config.long}": drawn,
        f"numpyro, step of {config.short} / {config.short}": seconds["numpyro"] / config.short,
    }
    ratios = {
        "ours / gradient": slope / seconds["gradient"],
        f"ours, step of {config.long} / {config.long} / gradient": whole / seconds["gradient"],
        "chain / gradient": drawn / seconds["gradient"],
        "numpyro / ours": seconds["numpyro"] / seconds["short"],
    }
    return {
        "num_turns": len(slope),
        "milliseconds": timing.milliseconds(one),
        "ratios": timing.judged(ratios, BARS),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    environment = results["environment"]
    lines = ["| one leapfrog | ms, median (quartiles) |", "|---|---|"]
    lines += [f"| {name} | {timing.number(found)} |" for name, found in results["milliseconds"].items()]
    lines += ["", *timing.ratio_table(results["ratios"])]
    about = f"{environment['platform']}, {environment['num_cores']} cores, jax {environment['jax']}"
    return "\n".join(
        [*lines, "", f"{results['num_turns']} turns; {about}, numpyro {environment['numpyro']}."]
    )


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
