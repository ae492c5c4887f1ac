"""One network, prior, likelihood and split under several inference methods, and how far each is from HMC.

    python scripts/compare.py                      digits, 2 CPU cores: about 3 minutes
    python scripts/compare.py --quick              the same in half a minute, too short to trust
    python scripts/compare.py --from RUN           table and report of a finished run, nothing sampled

MAP is trained first, once a chain: chains and variational means start there. The run folder keeps every
step's result; the same command continues an interrupted run and repeats the table of a finished one.
"""

import dataclasses
import math
import time
import zlib
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from bnn_jax import (
    checkpoint,
    cli,
    compare,
    diagnostics,
    draws,
    ensemble,
    estimators,
    inference_data,
    loop,
    objectives,
    ops,
    parts,
    predict,
    runs,
    trees,
)
from bnn_jax.report import comparison, tables
from bnn_jax.report.progress import track
from bnn_jax.types import Algorithm, Batch, Dataset, Params, UserError


@dataclasses.dataclass(frozen=True)
class Config:
    dataset: str = "digits"  # data set, by name (bnn_jax/data)
    path: Path | None = None  # file or folder of a data set that does not come with the package
    net: str = "digits"  # network, by name (bnn_jax/nets)
    methods: tuple[str, ...] = ("map", "vi", "hmc")  # methods, by name (bnn_jax/infer)
    prior: str = "fan_in"  # prior, by name (bnn_jax/priors)
    seed: int = 0  # of the split, the starts and all random numbers
    out: Path | None = None  # run folder; default runs/compare-DATASET-NET-seedSEED
    quick: bool = False  # short settings that show everything and prove nothing
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None  # finished run to report on again
    batch_size: int = 128  # examples a step of MAP and VI
    map_steps: int = 1500
    map_learning_rate: float = 1e-2  # Adam, cosine decay to 0
    vi_steps: int = 5000
    vi_learning_rate: float = 5e-3  # Adam, cosine decay to 0
    beta_warmup: int = 500  # steps over which the KL weight rises from 0 to 1
    posterior: str = "mean_field"  # variational family, by name (bnn_jax/posteriors)
    estimator: str = "flipout"  # sampling, antithetic, local_reparam or flipout
    num_samples: int = 1  # weight samples a step of VI
    kl: str = "closed_form"  # closed_form (Gaussian priors) or monte_carlo
    vi_draws: int = 200  # draws of the variational posterior that are compared
    num_chains: int = 2  # each starts at a MAP solution of its own, on a device of its own
    num_warmup: int = 60  # steps that adapt the step size, a multiple of block_size
    num_draws: int = 160  # draws a chain, a multiple of block_size
    thin: int = 1  # steps a draw
    block_size: int = 20  # draws a chain between two writes to disk
    trajectory_length: float = math.pi / 4  # of HMC, in prior widths
    max_tree_depth: int = 8  # of NUTS: at most 2^depth leapfrog steps a draw
    num_bootstrap: int = 200  # replicates behind every interval


QUICK = dict(
    map_steps=200, vi_steps=400, beta_warmup=50, vi_draws=20, num_warmup=20, num_draws=20, block_size=10,
    trajectory_length=0.1, max_tree_depth=3, num_bootstrap=50,
)  # fmt: skip
REFERENCES = ("hmc", "nuts")  # the first of these that runs is what the others are compared with


class Model(NamedTuple):
    """One network, prior and likelihood on one data set, and the methods that run on them."""

    apply: Any
    likelihood: Any
    starts: Params  # initial parameters, one a chain: leaves (C, ...)
    methods: dict[str, Algorithm]


class Fitted(NamedTuple):
    """A method's draws on the host: leaves (C, D, ...)."""

    draws: Params
    trace: dict[str, np.ndarray]  # name -> (C, D), empty for a method without chains
    seconds: float


def main(config: Config) -> int:
    """Run, print the table, write the folder. Exit code 1 if the reference has no sound chain."""
    console = Console()
    config, out = settle(config)
    data = parts.find("data set", config.dataset)(config.path, config.seed)
    model = build(config, data)
    runs.claim(out, "compare", runs.as_config(config, leave_out=("out", "source")))
    console.print(
        f"{data.name}: N = {len(data.x_train)} training and {len(data.x_test)} test examples; {config.net}: "
        f"{trees.size(model.starts) // config.num_chains} weights; prior {config.prior}; "
        f"VI: {config.estimator}, KL {config.kl}, beta 0 to 1 in {config.beta_warmup} steps",
        highlight=False,
        soft_wrap=True,
    )
    fitted = fit_all(config, data, model, out, console)
    results, evidence = judge(config, data, model, fitted)
    runs.write_json(out / "results.json", results)
    inference = [name for name, fit in fitted.items() if fit.trace]
    for name in inference:
        inference_data.write(out / f"{name}.nc", fitted[name].draws, fitted[name].trace)
    comparison.write(out, results, evidence)
    console.print(tables.console(results))
    console.print(f"\nreport: {out / 'report.html'}", highlight=False, soft_wrap=True)
    return 1 if inference and results["reference"] is None else 0


def settle(config: Config) -> tuple[Config, Path]:
    """The configuration with `--from` and `--quick` carried out, checked, and its run folder."""
    if config.source is not None:
        if config != Config(source=config.source):
            raise UserError("--from takes the settings of the finished run and no others")
        found = runs.read_mark(config.source, "compare")
        if set(found) != set(runs.as_config(config, leave_out=("out", "source"))):
            raise UserError(f"{config.source} is a run of another version, whose settings differ")
        path = found["path"] and Path(found["path"])
        found = {**found, "methods": tuple(found["methods"]), "path": path}
        return Config(**found, source=config.source), config.source
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    if len(set(config.methods)) != len(config.methods) or not config.methods:
        raise UserError("--methods wants each method once, and at least one")
    for name in ("map_steps", "vi_steps", "vi_draws", "num_bootstrap"):
        least = 2 if name == "num_bootstrap" else 1
        if getattr(config, name) < least:
            raise UserError(
                f"--{name.replace('_', '-')} must be at least {least}, not {getattr(config, name)}"
            )
    loop.check_blocks(config.num_chains, config.num_warmup, config.num_draws, config.thin, config.block_size)
    if config.num_draws < diagnostics.MIN_DRAWS:
        raise UserError(
            f"--num-draws must be at least {diagnostics.MIN_DRAWS}: R-hat compares halves of chains"
        )
    if config.beta_warmup < 0:
        raise UserError(f"--beta-warmup must not be negative, not {config.beta_warmup}")
    folder = f"compare-{config.dataset}-{config.net}-seed{config.seed}{'-quick' if config.quick else ''}"
    return config, config.out or Path("runs") / folder


def build(config: Config, data: Dataset) -> Model:
    """The methods by name, each given what its `build` asks for."""
    if not data.num_classes:
        raise UserError(f"compare needs class labels, the data set {data.name} has none")
    num_data = len(data.x_train)
    loop.check_batch(num_data, config.batch_size)
    net = parts.find("network", config.net)(data.num_classes)
    prior = parts.find("prior", config.prior)()
    likelihood = parts.find("likelihood", "categorical")()
    posterior = parts.find("posterior", config.posterior)()
    apply = ops.apply_fn(net)
    log_joint = objectives.log_joint(apply, prior, likelihood, num_data)
    estimator = estimators.build(config.estimator, net, posterior, config.num_samples)
    offered = {
        "apply": apply,
        "prior": prior,
        "scale": prior.scale,
        "likelihood": likelihood,
        "posterior": posterior,
        "log_joint": log_joint,
        "elbo": objectives.elbo(estimator, posterior, prior, likelihood, num_data, config.kl),
        "num_data": num_data,
        "optimizer": optax.adam(optax.cosine_decay_schedule(config.vi_learning_rate, config.vi_steps)),
        "beta": optax.linear_schedule(0.0, 1.0, config.beta_warmup) if config.beta_warmup else 1.0,
        "num_warmup": config.num_warmup,
        "trajectory_length": config.trajectory_length,
        "max_tree_depth": config.max_tree_depth,
    }
    adam = optax.adam(optax.cosine_decay_schedule(config.map_learning_rate, config.map_steps))
    methods = {
        name: parts.call(
            parts.find("method", name), {**offered, "optimizer": adam} if name == "map" else offered
        )
        for name in dict.fromkeys(("map", *config.methods))
    }
    keys = jax.random.split(stream(config, "init"), config.num_chains)
    starts = jax.vmap(lambda key: net.init(key, jnp.asarray(data.x_train[:1]))["params"])(keys)
    return Model(apply, likelihood, starts, methods)


def stream(config: Config, name: str) -> jax.Array:
    """The key of one part of the run: adding a method leaves the others' random numbers alone."""
    return jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))


def fit_all(config: Config, data: Dataset, model: Model, out: Path, console: Console) -> dict[str, Fitted]:
    """Every method's draws, from the run folder where they are there, else computed and kept."""
    train = Batch(data.x_train, data.y_train)
    members = ensemble.build(model.methods["map"], config.num_chains)
    state, seconds = optimise(config, "map", members, model.starts, train, out, console)
    modes = members.sample(stream(config, "map"), state)
    first = jax.tree.map(lambda a: a[0], modes)
    fitted = {}
    for name in config.methods:
        method = model.methods[name]
        if name == "map":
            fitted[name] = Fitted(jax.tree.map(lambda a: np.asarray(a)[:1, None], modes), {}, seconds)
        elif method.chain:
            fitted[name] = sample_chains(config, name, method, modes, train, out, console)
        else:
            state, seconds = optimise(config, name, method, first, train, out, console)
            keys = jax.random.split(stream(config, f"{name} draws"), config.vi_draws)
            draws_ = jax.jit(jax.vmap(method.sample, (0, None)))(keys, state)
            fitted[name] = Fitted(jax.tree.map(lambda a: np.asarray(a)[None], draws_), {}, seconds)
    return fitted


def optimise(config, name, method, params, train, out, console) -> tuple[Any, float]:
    """The final state of a method that optimises, and the seconds that it took."""
    folder = out / name
    key = stream(config, name)
    done = runs.read_json(folder / "history.json")
    if done is not None:
        return checkpoint.load(folder / "state", jax.eval_shape(method.init, key, params)), done["seconds"]
    finished_only(config, name)
    steps = config.map_steps if name == "map" else config.vi_steps
    start = time.monotonic()
    with track(console, name, steps) as progress:
        state, history = loop.fit(
            key,
            method,
            params,
            train,
            num_steps=steps,
            batch_size=config.batch_size,
            progress=progress,
        )
    seconds = time.monotonic() - start
    checkpoint.save(folder / "state", state)
    record = {"seconds": seconds, **{n: values.tolist() for n, values in history.items()}}
    runs.write_json(folder / "history.json", record)
    return state, seconds


def sample_chains(config, name, method, starts, train, out, console) -> Fitted:
    """The draws of a chain method, streamed to disk block by block and continued from the last one."""
    folder = out / name
    num_blocks = config.num_draws // config.block_size
    kept = runs.read_json(folder / "progress.json")
    seconds, done = (kept["seconds"], kept["blocks"]) if kept else (0.0, 0)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), starts)
    if done < num_blocks:
        finished_only(config, name)
        resume = None
        if done:
            abstract = jax.eval_shape(jax.vmap(lambda start: method.init(jax.random.key(0), start)), starts)
            resume = done - 1, checkpoint.load(folder / f"state-{done - 1}", abstract)
        begin = time.monotonic()
        total = config.num_warmup + config.num_draws * config.thin
        with track(console, name, total) as progress:
            for block in loop.collect(
                stream(config, name),
                method,
                starts,
                train,
                num_warmup=config.num_warmup,
                num_draws=config.num_draws,
                thin=config.thin,
                block_size=config.block_size,
                resume=resume,
                progress=progress,
            ):
                draws.write_block(folder, block.index, block.draws, block.trace)
                state = folder / f"state-{block.index}"
                checkpoint.save(state, block.state)
                # Only now does the block count; a kill before this line repeats it.
                record = {"blocks": block.index + 1, "seconds": seconds + time.monotonic() - begin}
                runs.write_json(folder / "progress.json", record)
                checkpoint.keep_only(state)
        seconds = record["seconds"]
    return Fitted(*draws.load(folder, like, num_blocks), seconds)


def finished_only(config: Config, name: str) -> None:
    """With --from nothing is computed."""
    if config.source is not None:
        raise UserError(f"{config.source} is not finished ({name} is missing); run its command again first")


def judge(
    config: Config, data: Dataset, model: Model, fitted: dict[str, Fitted]
) -> tuple[dict[str, Any], comparison.Evidence]:
    """Scores, distances, floor and diagnostics; unsound chains are named and left out."""
    predict_each = predict.build_each(model.apply, model.likelihood)
    probs, weights, block, diagnosed = {}, {}, {}, {}
    for name, fit in fitted.items():
        flat = draws.flatten(fit.draws)
        values = predict_each(draws.pool(fit.draws), data.x_test)
        values = values.reshape(*flat.shape[:2], *values.shape[1:])
        sound = np.ones(len(values), bool)
        block[name] = 1
        if fit.trace:
            diagnosed[name] = diagnostics.summary(flat, values, fit.trace)
            sound = np.equal(diagnosed[name]["status"], "ok")
            ess = diagnosed[name]["ess_function_median"]
            block[name] = compare.block_length(flat.shape[1], int(sound.sum()), ess)
        if sound.any():
            probs[name] = values[sound]
            weights[name] = jax.tree.map(lambda a, s=sound: a[s], fit.draws)

    reference = next((name for name in REFERENCES if name in probs), None)
    rng = np.random.default_rng(config.seed)
    scores, floor = {}, {}
    if probs:
        scores = compare.summarise(
            probs, data.y_test, reference, rng=rng, replicates=config.num_bootstrap, block=block
        )
    if reference and len(probs[reference]) > 1:
        floor = compare.floor_summary(
            probs[reference], rng=rng, replicates=config.num_bootstrap, block=block[reference]
        )
    methods = {}
    for name, fit in fitted.items():
        chains, number = jax.tree.leaves(fit.draws)[0].shape[:2]
        note = f"all {chains} chains are unsound" if name not in probs else ""
        methods[name] = {
            **scores.get(name, {}),
            "seconds": fit.seconds,
            "num_chains": chains,
            "num_draws": number,
            "note": note,
        }
    if reference:
        methods[reference] |= floor  # its distance to itself is the floor
    results = {
        "config": runs.as_config(config, leave_out=("out", "source")),
        "environment": runs.environment(),
        "data": {
            "name": data.name,
            "description": data.description,
            "num_train": len(data.x_train),
            "num_test": len(data.x_test),
            "num_classes": data.num_classes,
            "num_weights": trees.size(model.starts) // config.num_chains,
        },
        "reference": reference,
        "methods": methods,
        "floor": floor,
        "diagnostics": diagnosed,
        "interval": "95 % bootstrap interval over test points and draws",
    }
    named = {
        name: dict(zip(trees.leaf_names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
        for name, tree in weights.items()
    }
    return results, comparison.Evidence(data.y_test, data.image_test, probs, named)


if __name__ == "__main__":
    cli.run(main, Config, __doc__, cpu_devices=lambda config: config.num_chains)
