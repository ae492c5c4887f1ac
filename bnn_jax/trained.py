"""A finished run, ready to predict: the posterior, the network and what the data were."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnn_jax import (
    checkpoint,
    data,
    diagnostics,
    draws,
    ensemble,
    experiment,
    models,
    pixels,
    predict,
    runs,
    settings,
    training,
    views,
)
from bnn_jax.types import Dataset, Scaling, UserError


class Trained(NamedTuple):
    """A posterior to predict with: `predict.build(model.apply, model.likelihood, draw, over=over)`, then
    call that with `source`."""

    config: experiment.Config
    model: models.Model
    data: dict[str, Any]  # `data.json`
    scaling: Scaling
    draw: Callable  # (source, i) -> params
    source: Any
    num_draws: int | None  # how many different draws there are; None without a limit
    over: Callable
    chains: np.ndarray | None = None  # (C, D) numbers of the draws of each sound chain, in their order


def load(run: Path) -> Trained:
    """The posterior of a finished run of `scripts/train.py`. Unsound chains are left out.

    Raises:
        UserError: no run, an unfinished one, one of another version, or all chains are unsound.
    """
    unfinished = UserError(f"{run} is not finished; run its command again first")
    kept = experiment.reopen(run)
    if kept is None:
        raise unfinished
    config, info, model, algorithm, params = kept
    scaling = Scaling(
        np.asarray(info["scaling"]["shift"], np.float32),
        np.asarray(info["scaling"]["scale"], np.float32),
        info["scaling"]["target_shift"],
        info["scaling"]["target_scale"],
    )
    over = settings.over_images(config)
    if algorithm.chain:
        blocks = (runs.read_json(run / training.PROGRESS) or {"blocks": 0})["blocks"]
        if blocks * config.block_size < config.num_draws:
            raise unfinished
        found, trace = draws.load(run, params, blocks)
        status = diagnostics.chain_status(draws.flatten(found), trace)
        sound = np.equal(status, "ok")
        if not sound.any():
            raise UserError(f"{run}: all {len(status)} chains are unsound ({', '.join(status)})")
        number = int(sound.sum()) * config.num_draws
        # Mixed, so that the first few draws come from every chain and from all of its length.
        mixed = np.random.default_rng(config.seed).permutation(number)
        rows = jax.tree.map(lambda a: a[sound].reshape(-1, *a.shape[2:])[mixed], found)
        pooled = jax.tree.map(jnp.asarray, rows)
        chains = np.argsort(mixed).reshape(-1, config.num_draws)
        return Trained(config, model, info, scaling, predict.stacked, pooled, number, over, chains)
    if not (run / training.OUTCOME).exists():
        raise unfinished
    single = config.members == 1
    whole = algorithm if single else ensemble.build(algorithm, config.members)
    several = lambda a: jax.ShapeDtypeStruct((config.members, *a.shape), a.dtype)
    stacked = params if single else jax.tree.map(several, params)
    state = checkpoint.load(run / "state", jax.eval_shape(whole.init, jax.random.key(0), stacked))
    draw = predict.sampled(algorithm) if single else predict.members(algorithm, config.members)
    source = (runs.stream(config.seed, "predict"), state)
    number = config.members if algorithm.point else None
    return Trained(config, model, info, scaling, draw, source, number, over)


def count(run: Trained, wanted: int) -> int:
    """How many draws to take: those wanted or all that there are, and each member as often as the others."""
    members = run.config.members
    return -(-min(wanted, run.num_draws or wanted) // members) * members


def classify(run: Trained, x: Any, num_draws: int) -> predict.Predictive:
    """What the mean of `count` draws predicts; its spread and entropies."""
    predictive = predict.build(run.model.apply, run.model.likelihood, run.draw, over=run.over)
    return predictive(run.source, x, count(run, num_draws))


def each(run: Trained, x: Any, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """What each of `count` draws predicts: probabilities (D, T, K) and entropies, or means and variances
    (D, T) of a regression as the network gives them; see `predict.build_mixture`."""
    mixture = predict.build_mixture(run.model.apply, run.model.likelihood, run.draw, over=run.over)
    return mixture(run.source, x, count(run, num_draws))


def regress(run: Trained, x: Any, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (D, T) of what each draw predicts, in the unit of the target."""
    return data.in_own_unit(run.scaling, *each(run, x, num_draws))


def by_chain(run: Trained, x: Any) -> np.ndarray:
    """What each draw of each sound chain predicts, in the order of drawing: function values (C, D, T, ...),
    centred log probabilities of classes or means of a regression."""
    values, _ = each(run, x, run.num_draws)
    of_chains = values[run.chains]
    return diagnostics.function_values(of_chains) if values.ndim == 3 else of_chains


def targets(run: Trained, y: np.ndarray) -> np.ndarray:
    """Standardised targets in their own unit."""
    return data.targets_in_own_unit(run.scaling, y)


def inputs(run: Trained, raw: Any) -> np.ndarray:
    """What the network sees of raw pixels in [0, 1], or of features in their units."""
    raw = raw if run.config.view == "rgb" else views.apply(run.config.view, raw)
    return ((raw - run.scaling.shift) / run.scaling.scale).astype(np.float32)


def foreign(run: Trained, options: data.Options) -> Dataset:
    """Another data set as the run's network sees it: in its scale, images in its size, channels and view.

    Raises:
        UserError: features of another number; as `data.load`.
    """
    shape = tuple(run.data["x_shape"])
    takes = data.taken(options)
    if len(shape) == 3 and "channels" in takes:
        options = dataclasses.replace(options, channels=shape[2])
    if len(shape) == 3 and "image_size" in takes and shape[0] == shape[1]:
        options = dataclasses.replace(options, image_size=shape[0])
    other = data.load(options, run.config.seed)
    found = other.x_test.shape[1:]
    images = len(shape) == len(found) == 3 and shape[0] == shape[1]
    if found != shape and not images:
        raise UserError(f"{other.name} has examples of shape {found}, the run was trained on {shape}")

    def own(x):
        x = x * other.scaling.scale + other.scaling.shift
        x = np.clip(x, 0, 1) if len(found) == 3 else x  # rounding only
        return inputs(run, x if found == shape else pixels.fit(x, shape[0], shape[2]))

    arrays = {name: getattr(other, name) for name in ("x_train", "x_val", "x_test")}
    seen = {name: own(x) for name, x in arrays.items() if x is not None}
    return other._replace(scaling=run.scaling, **seen)
