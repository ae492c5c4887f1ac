"""One network, prior, likelihood and split under several inference methods, and how far each is from HMC.

    python scripts/compare.py                      digits, 2 CPU cores: about 3 minutes
    python scripts/compare.py --quick              the same in half a minute, too short to trust
    python scripts/compare.py --from RUN           table and report of a finished run, nothing sampled
    python scripts/compare.py --dataset table --path houses.csv --target price --net mlp

MAP is trained first, once a chain: chains and variational means start there. The run folder keeps every
step's result; the same command continues an interrupted run and repeats the table of a finished one.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax
import tyro
from rich.console import Console

from bnn_jax import (
    alignment,
    chains,
    compare,
    data,
    diagnostics,
    draws,
    ensemble,
    files,
    inference_data,
    loop,
    models,
    optimizers,
    parts,
    predict,
    runs,
    training,
    trees,
    weight_space,
)
from bnn_jax.report import comparison, tables
from bnn_jax.report.progress import track
from bnn_jax.types import Algorithm, Batch, Dataset, Params, UserError


@dataclasses.dataclass(frozen=True)
class Config(data.Options):
    net: str = "digits"  # network, by name (bnn_jax/nets)
    methods: tuple[str, ...] = ("map", "vi", "hmc")  # methods, by name (bnn_jax/infer)
    prior: str = "fan_in"  # prior, by name (bnn_jax/priors)
    temperature: float = 1.0  # of the posterior; below 1 a cold one
    noise: str = "learned"  # of a regression: learned (one level), input (a second output) or its known value
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


DATA = "data.json"  # in the run folder: a hash of the data
UNRELATED = ("out", "source", "data_dir")  # settings that do not change the result
QUICK = dict(
    map_steps=200, vi_steps=400, beta_warmup=50, vi_draws=20, num_warmup=20, num_draws=20, block_size=10,
    trajectory_length=0.1, max_tree_depth=3, num_bootstrap=50,
)  # fmt: skip
REFERENCES = ("hmc", "nuts")  # the first of these that runs is what the others are compared with


class Setup(NamedTuple):
    """One network, prior and likelihood on one data set, and the methods that run on them."""

    model: models.Model
    starts: Params  # initial parameters, one a chain: leaves (C, ...)
    methods: dict[str, Algorithm]


def main(config: Config) -> int:
    """Run, print the table, write the folder. Exit code 1 if the reference has no sound chain."""
    console = Console()
    config, out = settle(config)
    found = data.load(config, config.seed)
    setup = build(config, found)
    runs.claim(out, "compare", runs.as_config(config, leave_out=UNRELATED))
    with files.held(out):
        return compare_all(config, found, setup, out, console)


def compare_all(config: Config, found: Dataset, setup: Setup, out: Path, console: Console) -> int:
    """The rest of `main`, in a run folder of its own."""
    recognise(out, found)
    console.print(
        f"{found.name}: N = {len(found.x_train)} training and {len(found.x_test)} test examples; "
        f"{config.net}: {trees.size(setup.starts) // config.num_chains} weights; prior {config.prior}; "
        f"VI: {config.estimator}, KL {config.kl}, beta 0 to 1 in {config.beta_warmup} steps",
        highlight=False,
        soft_wrap=True,
    )
    fitted = fit_all(config, found, setup, out, console)
    results, evidence = judge(config, found, setup, fitted)
    runs.write_json(out / "results.json", results)
    inference = [name for name, fit in fitted.items() if fit.trace]
    for name in inference:
        inference_data.write(out / f"{runs.slug(name)}.nc", fitted[name].draws, fitted[name].trace)
    comparison.write(out, results, evidence)
    console.print(tables.console(results))
    console.print(f"\nreport: {out / 'report.html'}", highlight=False, soft_wrap=True)
    wanted = any(parts.plain(name) in REFERENCES for name in config.methods)
    return 1 if wanted and results["reference"] is None else 0


def recognise(out: Path, found: Dataset) -> None:
    """Keep a hash of the data with the run, and refuse other data when it goes on or is reported again."""
    now = {"fingerprint": data.fingerprint(found)}
    before = runs.read_json(out / DATA)
    if before is None:
        runs.write_json(out / DATA, now)
    elif before != now:
        raise UserError(
            f"the data have changed since {out} was begun: bring them back, or choose another --out"
        )


def settle(config: Config) -> tuple[Config, Path]:
    """The configuration with `--from` and `--quick` carried out, checked, and its run folder."""
    if config.source is not None:
        if config != Config(source=config.source):
            raise UserError("--from takes the settings of the finished run and no others")
        found = runs.read_mark(config.source, "compare")
        if set(found) != set(runs.as_config(config, leave_out=UNRELATED)):
            raise UserError(f"{config.source} is a run of another version, whose settings differ")
        return runs.from_config(Config, found | {"source": str(config.source)}, config.source), config.source
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    runs.check_seed(config.seed)
    if len(set(config.methods)) != len(config.methods) or not config.methods:
        raise UserError("--methods wants each method once, and at least one")
    for name in ("map_steps", "vi_steps", "vi_draws", "num_bootstrap"):
        least = 2 if name == "num_bootstrap" else 1
        if getattr(config, name) < least:
            raise UserError(
                f"--{name.replace('_', '-')} must be at least {least}, not {getattr(config, name)}"
            )
    chains.check_blocks(
        config.num_chains, config.num_warmup, config.num_draws, config.thin, config.block_size
    )
    if config.num_draws < diagnostics.MIN_DRAWS:
        raise UserError(
            f"--num-draws must be at least {diagnostics.MIN_DRAWS}: R-hat compares halves of chains"
        )
    if config.beta_warmup < 0:
        raise UserError(f"--beta-warmup must not be negative, not {config.beta_warmup}")
    folder = f"compare-{config.dataset}-{config.net}-seed{config.seed}{'-quick' if config.quick else ''}"
    return config, config.out or Path("runs") / runs.slug(folder)


def build(config: Config, found: Dataset) -> Setup:
    """The methods by name, each given what its `build` asks for."""
    num_data = len(found.x_train)
    loop.check_batch(num_data, config.batch_size)
    model = models.build(config.net, found.num_classes, config.prior, config.noise)
    with parts.told(config.net):
        like = models.shapes(model, found.x_train)
    make = partial(
        models.method,
        model=model,
        num_data=num_data,
        x_shape=found.x_train.shape[1:],
        posterior=config.posterior,
        estimator=config.estimator,
        num_samples=config.num_samples,
        kl=config.kl,
        temperature=config.temperature,
        beta=optax.linear_schedule(0.0, 1.0, config.beta_warmup) if config.beta_warmup else 1.0,
        batch_size=config.batch_size,
        num_steps=config.vi_steps,
        num_warmup=config.num_warmup,
        thin=config.thin,
        trajectory_length=config.trajectory_length,
        max_tree_depth=config.max_tree_depth,
    )
    rate = {"map": (config.map_learning_rate, config.map_steps)}
    optimizer = lambda name, schedule: optimizers.build(
        "adam", *rate.get(name, (config.vi_learning_rate, config.vi_steps)), schedule
    )
    methods = {
        name: make(name, optimizer=optimizer(name, "cosine"), constant_optimizer=optimizer(name, "constant"))
        for name in dict.fromkeys(("map", *config.methods))
    }
    keys = jax.random.split(runs.stream(config.seed, "init"), config.num_chains)
    starts = models.init(keys, model, found.x_train)
    for method in methods.values():  # a network that is too large for a method is refused here
        jax.eval_shape(method.init, keys[0], like)
    return Setup(model, starts, methods)


def fit_all(
    config: Config, found: Dataset, setup: Setup, out: Path, console: Console
) -> dict[str, training.Draws]:
    """Every method's draws, from the run folder where they are there, else computed and kept."""
    train = Batch(found.x_train, found.y_train)
    # With --from nothing is computed.
    settings = dict(data=train, finished_only=config.source is not None)
    stream = partial(runs.stream, config.seed)

    def optimise(name, method, params, num_steps):
        schedule = training.Schedule(num_steps, config.batch_size, period=num_steps)
        with track(console, name, num_steps) as progress:
            return training.optimise(
                out / runs.slug(name),
                stream(name),
                method,
                params,
                schedule=schedule,
                progress=progress,
                **settings,
            )

    members = ensemble.build(setup.methods["map"], config.num_chains)
    outcome = optimise("map", members, setup.starts, config.map_steps)
    modes = members.sample(stream("map"), outcome.state)
    first = jax.tree.map(lambda a: a[0], modes)
    fitted = {}
    for name in config.methods:
        method = setup.methods[name]
        if name == "map":
            fitted[name] = training.Draws(
                jax.tree.map(lambda a: np.asarray(a)[:1, None], modes), {}, outcome.seconds
            )
        elif method.chain:
            sizes = training.Sizes(config.num_warmup, config.num_draws, config.thin, config.block_size)
            with track(console, name, config.num_warmup + config.num_draws * config.thin) as progress:
                fitted[name] = training.sample(
                    out / runs.slug(name),
                    stream(name),
                    method,
                    modes,
                    sizes=sizes,
                    progress=progress,
                    **settings,
                )
        else:
            outcome_ = optimise(name, method, first, config.vi_steps)
            keys = jax.random.split(stream(f"{name} draws"), config.vi_draws)
            found_draws = jax.jit(jax.vmap(method.sample, (0, None)))(keys, outcome_.state)
            centre = method.linearise_at(outcome_.state) if method.linearise_at else None
            fitted[name] = training.Draws(
                jax.tree.map(lambda a: np.asarray(a)[None], found_draws), {}, outcome_.seconds, centre
            )
    return fitted


def judge(
    config: Config, found: Dataset, setup: Setup, fitted: dict[str, training.Draws]
) -> tuple[dict[str, Any], comparison.Evidence]:
    """Scores, distances, floor and diagnostics; unsound chains are named and left out."""
    predicted, weights, block, diagnosed = {}, {}, {}, {}
    predict_each = predict.build_each(setup.model.apply, setup.model.likelihood)
    for name, fit in fitted.items():
        flat = draws.flatten(fit.draws)
        by_chain = lambda a, lead=flat.shape[:2]: a.reshape(*lead, *a.shape[1:])
        given = jax.tree.map(by_chain, predict_each(draws.pool(fit.draws), found.x_test, fit.centre))
        sound = np.ones(len(flat), bool)
        block[name] = 1
        if fit.trace:
            diagnosed[name] = diagnostics.summary(flat, given[0], fit.trace, thin=config.thin)
            sound = np.equal(diagnosed[name]["status"], "ok")
            ess = diagnosed[name]["ess_function_median"]
            block[name] = compare.block_length(flat.shape[1], int(sound.sum()), ess)
        if sound.any():
            predicted[name] = jax.tree.map(lambda a, s=sound: a[s], given)
            weights[name] = jax.tree.map(lambda a, s=sound: a[s], fit.draws)

    reference = next((name for name in predicted if parts.plain(name) in REFERENCES), None)
    given = compare.prepare(*in_own_unit(found, predicted), found.num_classes > 0)
    settings = dict(
        rng=np.random.default_rng(config.seed), replicates=config.num_bootstrap, measures=given.measures
    )
    scores, floor = {}, {}
    if predicted:
        scores = compare.summarise(
            given.probs, given.targets, reference, block=block, values=given.values, **settings
        )
    if reference and len(given.probs[reference]) > 1:
        own = dict(block=block[reference], values=given.values[reference])
        floor = compare.floor_summary(given.probs[reference], given.targets, **own, **settings)
    methods = {}
    for name, fit in fitted.items():
        chains, number = jax.tree.leaves(fit.draws)[0].shape[:2]
        note = f"all {chains} chains are unsound" if name not in predicted else ""
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
        "config": runs.as_config(config, leave_out=UNRELATED),
        "environment": runs.environment(),
        "data": {
            "name": found.name,
            "description": found.description,
            "num_train": len(found.x_train),
            "num_test": len(found.x_test),
            "num_classes": found.num_classes,
            "num_weights": trees.size(setup.starts) // config.num_chains,
        },
        "reference": reference,
        "methods": methods,
        "floor": floor,
        "diagnostics": diagnosed,
        "interval": "95 % bootstrap interval over test points and draws",
    }
    weights, results["weights"] = in_weight_space(setup, found, weights, reference)
    named = {
        name: dict(zip(trees.leaf_names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
        for name, tree in weights.items()
    }
    images = data.to_images(found.x_test, found.scaling) if found.num_classes else None
    return results, comparison.Evidence(given.targets, images, given.values, named, found.num_classes)


def in_weight_space(
    setup: Setup, found: Dataset, weights: dict[str, Params], reference: str | None
) -> tuple[dict[str, Params], dict[str, Any]]:
    """All draws (C, D, ...) aligned to the reference's, and layer by layer how far each method is from it.

    Returns:
        the draws as they are, and why, where they cannot be aligned.
    """
    if reference is None:
        return weights, {"note": "no reference to align to"}
    try:
        symmetry = alignment.symmetries(setup.model.module, found.x_train.shape[1:])
    except UserError as error:
        return weights, {"note": f"weights are not aligned: {error}"}
    centre, own = alignment.procrustes_mean(symmetry, weights[reference])
    aligned = {
        name: own if name == reference else alignment.align(symmetry, tree, centre)
        for name, tree in weights.items()
    }
    pool = lambda tree: jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
    several = len(jax.tree.leaves(own)[0]) > 1
    return aligned, {
        "methods": {
            name: weight_space.by_layer(pool(tree), pool(own))
            for name, tree in aligned.items()
            if name != reference
        },
        "floor": weight_space.floor(weight_space.by_layer, own) if several else {},
        "mixing": {"as_drawn": weight_space.mixing(weights[reference]), "aligned": weight_space.mixing(own)},
        "note": "",
    }


def in_own_unit(
    found: Dataset, predicted: dict[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """What draws predict, and the targets; of a regression both in the unit of the target."""
    if found.num_classes:
        return predicted, found.y_test
    own = {name: data.in_own_unit(found.scaling, *parts) for name, parts in predicted.items()}
    return own, data.targets_in_own_unit(found.scaling, found.y_test)
