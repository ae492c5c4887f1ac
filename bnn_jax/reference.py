"""Reference posteriors: HMC draws of small problems, long enough to trust, and how far others are from them.

A problem is a data set and a network with its prior and likelihood: settings of `scripts/train.py`. Its file
keeps what thinned draws of several chains predict for the test points and the moments of every weight after
alignment; JSON beside it says how far the chains can be trusted. So a new method is judged in seconds,
without HMC being run again, as posteriordb does for models of Stan:

    reference.score(reference.load("digits"), probs)

`benchmarks/make_references.py` makes the files in `bnn_jax/references`. What is approximated is what thinning
leaves out, part of the noise floor that is told with every score. C chains, D draws, T test points,
K classes.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bnn_jax import alignment, compare, data, diagnostics, draws, experiment, models, runs, weight_space
from bnn_jax.settings import Config
from bnn_jax.types import Dataset, Params, UserError

FOLDER = Path(__file__).parent / "references"
REPLICATES = 200


class Reference(NamedTuple):
    """A problem and its HMC posterior."""

    name: str
    info: dict[str, Any]  # config, data, environment, diagnostics
    mean: np.ndarray  # (C, D, T, K) probabilities, or (C, D, T) predicted means in the unit of the target
    variance: np.ndarray | None  # (C, D, T) noise of each draw of a regression, in that unit squared
    targets: np.ndarray  # (T,) labels, or targets in their unit
    weight_mean: Params  # of the aligned draws: what others are aligned to
    weight_std: Params


def names(folder: Path = FOLDER) -> list[str]:
    """The problems that have a file."""
    return sorted(path.stem for path in folder.glob("*.npz"))


def load(name: str, folder: Path = FOLDER) -> Reference:
    """The reference posterior called `name`.

    Raises:
        UserError: none of that name, or a damaged file.
    """
    if name not in names(folder):
        raise UserError(f"no reference posterior {name!r}: choose from {', '.join(names(folder))}")
    path = folder / f"{name}.npz"
    try:
        info = json.loads(path.with_suffix(".json").read_text())
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            arrays = {key: members[key] for key in members.files}
        tree = unflatten_dict({key: a.astype(np.float32) for key, a in arrays.items() if "/" in key}, "/")
        mean, targets, variance = arrays["mean"].astype(np.float32), arrays["targets"], arrays.get("variance")
        weights = tree["weight_mean"], tree["weight_std"]
    except Exception as error:  # zipfile, JSON and NumPy raise many kinds; all mean the same to a user
        raise UserError(f"{path} is damaged ({error}): restore it") from None
    if variance is None:
        mean /= mean.sum(axis=-1, keepdims=True)  # kept in half precision
    return Reference(name, info, mean, variance, targets, *weights)


def config(reference: Reference, **changes: Any) -> Config:
    """The problem as settings of `scripts/train.py`: those of HMC's run with `changes`."""
    return runs.from_config(Config, reference.info["config"] | changes, Path(reference.name))


def problem(reference: Reference, data_dir: Path | None = None) -> tuple[models.Model, Dataset]:
    """The network with its prior and likelihood, and the data.

    Raises:
        UserError: the data are not where they should be, or not those of the reference.
    """
    given = config(reference, data_dir=data_dir)
    found = data.load(given, given.seed)
    if data.fingerprint(found) != reference.info["data"]["fingerprint"]:
        raise UserError(f"the data of {reference.name} are not those that its reference was made from")
    return models.build(given.net, found.num_classes, given.prior, given.noise, given.compute), found


def score(
    reference: Reference, mean: Any, variance: Any = None, *, block: int = 1, replicates: int = REPLICATES
) -> dict[str, Any]:
    """Scores of a method's predictions for the problem's test points, and their distances to HMC's.

    Args:
        mean: (D, T, K) probabilities or (D, T) predicted means of each draw, in the unit of the target; with
            an axis more in front, of several chains.
        variance: likewise the noise of each draw of a regression, in that unit squared.
        block: length of the blocks in which successive draws of a chain are resampled, see
            `compare.block_length`; 1 for independent draws.
        replicates: of the bootstrap behind the intervals.

    Returns:
        what `compare.summarise` tells of a method; `hmc`: the scores of HMC itself; `floor`: the same
        distances between its chains; and `in_floors`: the total variation in units of the floor's.

    Raises:
        UserError: predictions of another shape.
    """
    classes = reference.variance is None
    shape = reference.mean.shape[2:]
    given = [np.asarray(a) for a in (mean, variance) if a is not None]
    given = [a[None] if a.ndim == len(shape) + 1 else a for a in given]
    if any(a.ndim != len(shape) + 2 or a.shape[2:] != shape for a in given):
        shapes = " and ".join(str(a.shape[1:]) for a in given)
        wanted = ", ".join(map(str, shape))
        raise UserError(f"predictions for {reference.name} need shape (D, {wanted}), not {shapes}")
    if not classes and variance is None:
        raise UserError(f"{reference.name} is a regression: its score needs the variance of each draw, too")
    own = (given[0], given[-1])
    predicted = {"method": own, "hmc": (reference.mean, reference.variance)}
    ready = compare.prepare(predicted, reference.targets, classes)
    count, kept = reference.mean.shape[:2]
    ess = reference.info["diagnostics"]["ess_function_median"]
    own_block = compare.block_length(kept, count, min(ess, count * kept))
    settings = dict(rng=np.random.default_rng(0), replicates=replicates, measures=ready.measures)
    blocks = {"method": min(block, max(1, given[0].shape[1] // 2)), "hmc": own_block}
    found = compare.summarise(
        ready.probs, ready.targets, "hmc", block=blocks, values=ready.values, **settings
    )
    floor = compare.floor_summary(
        ready.probs["hmc"], ready.targets, block=own_block, values=ready.values["hmc"], **settings
    )
    in_floors = found["method"]["total_variation"] / floor["total_variation"]
    return {**found["method"], "floor": floor, "in_floors": in_floors, "hmc": found["hmc"]}


def score_weights(reference: Reference, draws: Params) -> dict[str, dict[str, float | None]]:
    """Means and widths of a method's weights beside HMC's, layer by layer, after alignment; see
    `weight_space.by_moments`.

    Args:
        draws: leaves (D, ...), or (C, D, ...) of chains.

    Raises:
        UserError: weights of another network.
    """
    given, of_data = config(reference), reference.info["data"]
    model = models.build(given.net, of_data["num_classes"], given.prior, given.noise)
    symmetry = alignment.symmetries(model.module, of_data["x_shape"])
    axes = {np.ndim(a) - np.ndim(b) for a, b in _pairs(draws, reference.weight_mean)}
    if axes == {1}:
        draws = jax.tree.map(lambda a: np.asarray(a)[None], draws)
    aligned = alignment.align(symmetry, draws, reference.weight_mean)
    return weight_space.by_moments(aligned, reference.weight_mean, reference.weight_std)


def save(
    folder: Path, name: str, run: Path, config: Config, found: Dataset, predicted: tuple, thin: int
) -> None:
    """Make the two files of a problem from a finished run of chains.

    Args:
        run: its folder; chains that are not sound are refused.
        predicted: mean and noise of every draw, (C, D, T, ...), in the unit of the target.
        thin: every how many draws predictions are kept.

    Raises:
        UserError: an unsound chain.
    """
    kept = experiment.reopen(run)
    weights, trace = draws.load(run, kept.params, config.num_draws // config.block_size)
    mean, variance = predicted
    diagnosed = diagnostics.summary(draws.flatten(weights), mean, trace, thin=config.thin)
    if set(diagnosed["status"]) != {"ok"}:
        raise UserError(f"{run}: chains are {', '.join(diagnosed['status'])}: no reference to keep")
    symmetry = alignment.symmetries(kept.model.module, found.x_train.shape[1:])
    _, aligned = alignment.procrustes_mean(symmetry, weights)
    moments = weight_space.moments(aligned)
    mixing = {"as_drawn": weight_space.mixing(weights), "aligned": weight_space.mixing(aligned)}
    classes = found.num_classes > 0
    arrays = {
        "mean": mean[:, ::thin].astype(np.float16 if classes else np.float32),
        "targets": found.y_test if classes else data.targets_in_own_unit(found.scaling, found.y_test),
    }
    if not classes:
        arrays["variance"] = variance[:, ::thin].astype(np.float32)
    for key, tree in zip(("weight_mean", "weight_std"), moments, strict=True):
        arrays |= {f"{key}/{path}": a for path, a in flatten_dict(tree, sep="/").items()}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.npz").open("wb") as file:
        np.savez_compressed(file, **arrays)
    info = {
        "config": runs.as_config(config, leave_out=("out", "data_dir")),
        "data": {
            "description": found.description,
            "fingerprint": data.fingerprint(found),
            "x_shape": list(found.x_train.shape[1:]),
            "num_train": len(found.x_train),
            "num_test": len(found.x_test),
            "num_classes": found.num_classes,
        },
        "environment": runs.environment(),
        "diagnostics": diagnosed,
        "mixing": mixing,
        "thin": thin,
    }
    runs.write_json(folder / f"{name}.json", info)


def _pairs(draws, like):
    return zip(jax.tree.leaves(draws), jax.tree.leaves(like), strict=False)
