"""One network, trained by one method on one data set: its settings, its parts, and its run folder.

`scripts/train.py` fills the folder; `scripts/evaluate.py` and `scripts/predict.py` read it. It holds
`run.json` (the settings), `data.json` (what the data were), `split.csv` (who is in which part),
`history.json` and `.csv`, `checkpoints/`, and the result: `state/`, or the blocks of draws of chains.
"""

import csv
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnn_jax import (
    augment,
    balance,
    checkpoint,
    data,
    ensemble,
    files,
    loop,
    metrics,
    models,
    optimizers,
    parts,
    predict,
    recorder,
    runs,
    settings,
    sharding,
    streamed,
    training,
)
from bnn_jax.settings import Config
from bnn_jax.types import Algorithm, Batch, Dataset, Likelihood, Params, UserError

SCRIPT = "train"
DATA = "data.json"


class Kept(NamedTuple):
    """What the folder of a run says of it, rebuilt."""

    config: Config
    info: dict[str, Any]  # `data.json`
    model: models.Model
    algorithm: Algorithm
    params: Params  # shapes of one member's weights


class Experiment(NamedTuple):
    """Settings made into functions and numbers."""

    config: Config
    model: models.Model
    algorithm: Algorithm  # of one member or chain
    map: Algorithm | None  # where chains start
    plan: balance.Balanced
    schedule: training.Schedule
    transform: Callable | None
    over: Callable  # see `predict.build`
    pretrained: Params | None  # where all members or chains start
    record: Callable  # state -> further columns of the history


def load_data(config: Config) -> Dataset:
    """The data set of a run: in memory, or with `stream` on disk. Raises `UserError` as its loader."""
    return streamed.load(config) if config.stream else data.load(config, config.seed)


def build(config: Config, found: Dataset) -> Experiment:
    """Everything that a run needs, checked before anything is computed.

    Raises:
        UserError: settings that are out of range or do not go together.
    """
    settings.check(config, found)
    classification = found.num_classes > 0
    labels = found.y_train
    if classification:
        plan = balance.plan(config.balance, labels, found.num_classes, config.seed)
    else:
        plan = balance.Balanced(np.arange(len(labels), dtype=np.int32), len(labels), "")
    visited = len(plan.indices)
    loop.check_batch(visited, config.batch_size)
    augmentation = augment.Augmentation(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(augment.Augmentation)}
    )
    transform = _transform(augmentation, found)
    model = models.build(config.net, found.num_classes, config.prior, config.noise, config.compute)
    with parts.told(config.net):
        like = models.shapes(model, _example(config, found.x_train.shape[1:]))
    likelihood = model.likelihood
    if config.balance == "class_weights":
        likelihood = balance.weighted(likelihood, balance.class_weights(labels, found.num_classes))
    if config.balance == "focal":
        likelihood = balance.focal(likelihood, config.focal_gamma)
    shape = settings.input_shape(config, found.x_train.shape[1:])
    algorithm = method(config, model, shape, plan.num_data, visited, likelihood=likelihood)
    start = None
    if algorithm.chain:
        settings.check_chain(config, transform)
        start = method(config, model, shape, plan.num_data, visited, "map", likelihood)
    if algorithm.whole and config.patience is not None:
        raise UserError(f"the last steps of {config.method} measure what its draws are: leave --patience out")
    plateau = None
    if config.plateau_patience is not None:
        floor = config.plateau_floor / config.learning_rate
        plateau = optimizers.plateau(config.plateau_factor, config.plateau_patience, floor)
    schedule = training.Schedule(
        settings.num_steps(config, visited),
        config.batch_size,
        config.eval_every or visited // config.batch_size,
        config.patience,
        plateau,
        config.keep,
        config.monitor,
    )
    # Raises, too, where the network is too large for the method.
    state = jax.eval_shape(algorithm.init, jax.random.key(0), like)
    pretrained = None if config.pretrained is None else _pretrained(config.pretrained, like)
    over = settings.over_images(config)
    record = lambda state: {}
    if config.record_std:
        if not hasattr(state, "phi"):
            raise UserError(f"--record-std is for variational posteriors; {config.method} has none")
        record = recorder.layer_std(config.posterior)
    return Experiment(config, model, algorithm, start, plan, schedule, transform, over, pretrained, record)


def method(
    config: Config,
    model: models.Model,
    x_shape: Sequence[int],
    num_data: int,
    visited: int,
    name: str | None = None,
    likelihood: Likelihood | None = None,
) -> Algorithm:
    """The configured method, or the one called `name`.

    Args:
        x_shape: of one network input.
        num_data: N of the ELBO.
        visited: examples an epoch.
        likelihood: what is trained on instead of the model's own.
    """
    beta = config.beta
    if config.beta_warmup:
        beta = optax.linear_schedule(0.0, config.beta, config.beta_warmup)
    steps = settings.num_steps(config, visited)
    optimizer = lambda schedule: optimizers.build(
        config.optimizer, config.learning_rate, steps, schedule, config.warmup
    )
    return models.method(
        name or config.method,
        model,
        num_data,
        posterior=config.posterior,
        estimator=config.estimator,
        num_samples=config.num_samples,
        strategy=config.strategy,
        kl=config.kl,
        likelihood=likelihood,
        temperature=config.temperature,
        x_shape=x_shape,
        optimizer=optimizer(config.schedule),
        constant_optimizer=optimizer("constant"),
        beta=beta,
        batch_size=config.batch_size,
        num_steps=steps,
        num_warmup=config.num_warmup,
        thin=config.thin,
        trajectory_length=config.trajectory_length,
        max_tree_depth=config.max_tree_depth,
    )


def train(
    run: Path,
    experiment: Experiment,
    found: Dataset,
    *,
    progress: Callable,
    on_row: Callable[[training.Row], None] = lambda row: None,
) -> training.Outcome | training.Draws:
    """Train in the folder `run`, or go on there.

    Args:
        progress: (name, total) -> context manager of a `progress(done, info)` callback.
        on_row: called with every new row of the history.
    """
    config, algorithm = experiment.config, experiment.algorithm
    batch = Batch(found.x_train, found.y_train)
    count = config.num_chains if algorithm.chain else config.members
    params = _start(experiment, found, count)
    optimised = experiment.map if algorithm.chain else algorithm
    if algorithm.chain and config.pretrained is not None:
        starts = params
    else:
        folder, name = (run / "map", "map") if algorithm.chain else (run, config.method)
        single = count == 1 and not algorithm.chain
        with progress(name, experiment.schedule.num_steps) as report:
            outcome = training.optimise(
                folder,
                runs.stream(config.seed, name),
                optimised if single else ensemble.build(optimised, count),
                jax.tree.map(lambda a: a[0], params) if single else params,
                batch,
                experiment.schedule,
                evaluate=_evaluation(experiment, found, optimised, None if single else count),
                record=experiment.record,
                visit=experiment.plan.indices,
                transform=experiment.transform,
                mesh=sharding.batch_mesh(config.batch_size),
                progress=report,
                on_row=on_row,
            )
        if not algorithm.chain:
            return outcome
        starts = outcome.state.params
    total = config.num_warmup + config.num_draws * config.thin
    with progress(config.method, total) as report:
        return training.sample(
            run,
            runs.stream(config.seed, config.method),
            algorithm,
            starts,
            batch,
            training.Sizes(config.num_warmup, config.num_draws, config.thin, config.block_size),
            progress=report,
        )


def reopen(run: Path) -> Kept | None:
    """The network and method of a run folder; None before its data were recorded.

    Raises:
        UserError: not a run of `scripts/train.py`, or one of another version.
    """
    config = runs.from_config(Config, runs.read_mark(run, SCRIPT), run)
    info = runs.read_json(run / DATA)
    if info is None:
        return None
    model = models.build(config.net, info["num_classes"], config.prior, config.noise, config.compute)
    shape = settings.input_shape(config, info["x_shape"])
    algorithm = method(config, model, shape, info["num_data"], info["num_visited"])
    params = models.shapes(model, _example(config, info["x_shape"]))
    return Kept(config, info, model, algorithm, params)


def record_data(run: Path, found: Dataset, plan: balance.Balanced) -> None:
    """Write `data.json` and `split.csv`, or compare with what is there.

    Raises:
        UserError: the folder was begun with other data.
    """
    info = {
        "name": found.name,
        "description": found.description,
        "fingerprint": data.fingerprint(found),
        "num_classes": found.num_classes,
        "class_names": list(found.class_names),
        "x_shape": list(found.x_train.shape[1:]),
        "scaling": {
            "shift": np.asarray(found.scaling.shift).tolist(),
            "scale": np.asarray(found.scaling.scale).tolist(),
            "target_shift": found.scaling.target_shift,
            "target_scale": found.scaling.target_scale,
        },
        "num_train": len(found.x_train),
        "num_val": 0 if found.x_val is None else len(found.x_val),
        "num_test": len(found.x_test),
        "num_data": plan.num_data,  # N of the ELBO
        "num_visited": len(plan.indices),  # an epoch
        "left_out": list(found.left_out),
    }
    before = runs.read_json(run / DATA)
    if before is not None:
        if before["fingerprint"] != info["fingerprint"]:
            sizes = [[r[f"num_{part}"] for part in ("train", "val", "test")] for r in (before, info)]
            raise UserError(
                f"the data have changed since {run} was begun (train, val, test: {sizes[0]} then, {sizes[1]} "
                "now, or other values): bring them back, or choose another --out"
            )
        return
    with files.whole(run / "split.csv", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("part", "id", "label"))
        for part in ("train", "val", "test"):
            y = getattr(found, f"y_{part}")
            labels = [] if y is None else y.tolist()
            ids = found.ids.get(part) or range(len(labels))
            writer.writerows((part, *row) for row in zip(ids, labels, strict=True))
    runs.write_json(run / DATA, info)


def _start(experiment, found, count):
    """Initial weights of `count` members, leaves (count, ...)."""
    config, one = experiment.config, experiment.pretrained
    if one is not None:
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), one)
    keys = jax.random.split(runs.stream(config.seed, "init"), count)
    return models.init(keys, experiment.model, _example(config, found.x_train.shape[1:]))


def _example(config, shape):
    """An input of the network, for examples of `shape`."""
    return np.zeros((1, *settings.input_shape(config, shape)), np.float32)


def _pretrained(path, like):
    """Parameters from an orbax checkpoint, or from a run folder: MAP's weights, or the means of a method that
    has some."""
    if not (path / runs.MARK).exists():
        return checkpoint.load(path, like)
    kept = reopen(path)
    if kept is None or kept.config.members > 1 or not (path / training.OUTCOME).exists():
        raise UserError(f"--pretrained {path} must be a finished run of one member without chains")
    state = checkpoint.load(path / "state", jax.eval_shape(kept.algorithm.init, jax.random.key(0), like))
    for found in (getattr(state, "phi", None), state):  # VI's are in its phi
        for name in ("mean", "params"):
            if jax.tree.structure(getattr(found, name, None)) == jax.tree.structure(like):
                return getattr(found, name)
    raise UserError(f"--pretrained {path}: a run of {kept.config.method} has no weights to start from")


def _evaluation(experiment, found, algorithm, members):
    """state -> scores on the validation part, None without one; `members` is None for a single network."""
    if found.x_val is None:
        return None
    config, model = experiment.config, experiment.model
    draw = predict.sampled(algorithm) if members is None else predict.members(algorithm, members)
    key = runs.stream(config.seed, "evaluate")  # the same draws at every evaluation: less noise between them
    num_draws = -(-config.eval_draws // (members or 1)) * (members or 1)  # each member as often as the others
    if model.likelihood.task == "classification":
        predictive = predict.build(model.apply, model.likelihood, draw, over=experiment.over)

        def classify(state):
            probs = predictive((key, state), found.x_val, num_draws).mean
            return {
                "val_nll": metrics.nll(probs, found.y_val),
                "val_accuracy": metrics.accuracy(probs, found.y_val),
            }

        return classify
    mixture = predict.build_mixture(model.apply, model.likelihood, draw, over=experiment.over)

    def regress(state):
        means, variances = mixture((key, state), found.x_val, num_draws)
        scale = found.scaling.target_scale
        nll = metrics.gaussian_mixture_nll(means, variances, found.y_val) + math.log(scale)
        return {"val_nll": nll, "val_rmse": scale * metrics.rmse(means.mean(0), found.y_val)}

    return regress


def _transform(augmentation, found):
    """The augmentation as `loop.stepper` takes it: on raw pixels, which the network's inputs are not."""
    if augment.is_off(augmentation):
        return None
    if len(found.x_train.shape) != 4:
        raise UserError(f"augmentation is for images; the data set {found.name} has none")
    changed = augment.batch(augment.build(augmentation))
    shift, scale = jnp.asarray(found.scaling.shift), jnp.asarray(found.scaling.scale)
    return lambda key, x, numbers: (changed(key, x * scale + shift, numbers) - shift) / scale
