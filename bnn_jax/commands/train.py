"""Train one network by one method on one data set, into a run folder.

    python scripts/train.py --dataset digits --net digits
    python scripts/train.py --dataset medmnist --path pneumoniamnist.npz --net lenet --method vi --out RUN
    python scripts/train.py --dataset folder --path xrays --image-size 64 --rotation 15 --patience 7
    python scripts/train.py --dataset table --path houses.csv --target price --net mlp --method hmc

A run that was interrupted, at whatever moment, goes on with the same command and ends with the same
weights and history. Then: scripts/evaluate.py RUN, scripts/predict.py RUN IMAGE...
"""

import contextlib
import inspect
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from bnn_jax import (
    data,
    experiment,
    files,
    inspection,
    parts,
    processes,
    runs,
    settings,
    sharding,
    splits,
    training,
)
from bnn_jax.report.progress import track
from bnn_jax.settings import Config
from bnn_jax.types import Dataset, UserError

PICTURES = 6  # of each class and part in the report on the data


def main(config: Config, found: Dataset | None = None) -> None:
    """Read and report the data, train, keep the result.

    Args:
        found: the data, if they were loaded before; their settings must be those of `config`.
    """
    console = Console(quiet=not processes.is_first())
    runs.check_seed(config.seed)
    found = found or experiment.load_data(config)
    built = experiment.build(config, found)
    run = settings.folder(config)
    given, defaults = (runs.as_config(c, leave_out=("out",)) for c in (config, Config()))
    say = partial(console.print, highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as until_done:
        with processes.first_before_others():
            runs.claim(run, experiment.SCRIPT, given, settings.FREE, defaults)
            if processes.is_first():
                until_done.enter_context(files.held(run))
            experiment.record_data(run, found, built.plan)
            describe(run, found, config.group_by, console)
        num_data = f"N = {built.plan.num_data:,} in the objective"
        note = "" if config.balance == "none" else f"; {built.plan.note}"
        say(f"{config.net}, prior {config.prior}, {config.method}: {num_data}{note}")
        mesh = sharding.batch_mesh(config.batch_size)
        if mesh is not None:
            among = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
            say(f"each batch is split over {mesh.size} devices{among}")
        on_row = until_done.enter_context(logger(config, run))
        outcome = experiment.train(run, built, found, progress=partial(track, console), on_row=on_row)
    if isinstance(outcome, training.Draws):
        say(f"{config.num_chains} chains of {config.num_draws} draws in {outcome.seconds:.0f} s")
    else:
        kept = next(row for row in outcome.history if row["step"] == outcome.step)
        scores = ", ".join(f"{name} {value:.4g}" for name, value in kept.items())
        say(f"{outcome.stopped}; kept: {scores}")
    say(f"run: {run}")


def describe(run, found, group_by, console):
    """Print the report on the data and write it to the run folder."""
    from bnn_jax.report import dataset  # Matplotlib: half a second that --help and mistakes need not wait for

    given = [part for part in splits.PARTS if getattr(found, f"x_{part}") is not None]
    if not isinstance(found.x_train, np.ndarray):
        sizes = ", ".join(f"{len(getattr(found, f'y_{part}')):,} {part}" for part in given)
        console.print(f"{found.description}: {sizes}", highlight=False, soft_wrap=True)
        return  # reading a stream through to report on it would take as long as training
    scaling = found.scaling
    x = np.concatenate([getattr(found, f"x_{p}") for p in given]) * scaling.scale + scaling.shift
    y = np.concatenate([getattr(found, f"y_{p}") for p in given])
    y = y if found.num_classes else y * scaling.target_scale + scaling.target_shift
    part = np.repeat(given, [len(getattr(found, f"y_{part}")) for part in given])
    ids = [name for p in given for name in found.ids.get(p, ())]
    ids = ids if len(ids) == len(y) else None
    groups = None
    if group_by and ids:
        groups = splits.group_ids([Path(name).name for name in ids], group_by)  # as loaders do
    summary = inspection.summarise(x, y, part, ids=ids, class_names=found.class_names, groups=groups)
    console.print(dataset.console(summary))
    if not (run / "data.html").exists():
        dataset.write(run, summary, pictures(found, given), found.left_out)


def pictures(found, given):
    """part -> class -> a few images of it, where there are images and classes."""
    if not found.num_classes or data.to_images(found.x_train[:1], found.scaling) is None:
        return {}
    names = found.class_names or tuple(map(str, range(found.num_classes)))
    shown = {}
    for part in given:
        x, y = getattr(found, f"x_{part}"), getattr(found, f"y_{part}")
        rows = {name: np.flatnonzero(y == k)[:PICTURES] for k, name in enumerate(names)}
        shown[part] = {name: data.to_images(x[r], found.scaling) for name, r in rows.items()}
    return shown


@contextlib.contextmanager
def logger(config, run):
    """A context whose value writes rows of the history for TensorBoard, if wanted."""
    if not (config.tensorboard and processes.is_first()):
        yield lambda row: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs tensorboardX: pip install tensorboardX") from None
    with SummaryWriter(str(run / "tensorboard")) as writer:
        yield lambda row: [
            writer.add_scalar(name, value, row["step"]) for name, value in row.items() if name != "step"
        ]


def cpu_devices(config: Config) -> int:
    """As many devices as chains, so that they run side by side: a method with a warm-up has chains."""
    warmed = "num_warmup" in inspect.signature(parts.find("method", config.method)).parameters
    return config.num_chains if warmed else 1
