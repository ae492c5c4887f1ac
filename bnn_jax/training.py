"""A method's run in a folder: evaluated, checkpointed, and resumed bit for bit.

Every `period` steps the state is judged on validation data, the history is written, and a checkpoint is
begun in the background. A run that was killed at any moment goes on from its newest complete checkpoint
with the same batches, keys and augmentation, and ends with the parameters and the history of one that
was not. Chains are kept block by block likewise.
"""

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from bnn_jax import chains, checkpoint, draws, files, loop, optimizers, processes, runs, sharding
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError

Row = dict[str, float]
HISTORY, OUTCOME, PROGRESS = "history.json", "outcome.json", "progress.json"
MONITORS = {"val_nll": 1, "val_rmse": 1, "val_accuracy": -1}  # times this, lower is better


class Schedule(NamedTuple):
    """How long to train, and what to do on the way. Counts are steps unless they say otherwise."""

    num_steps: int
    batch_size: int
    period: int  # steps between two evaluations and checkpoints
    patience: int | None = None  # evaluations without a better score after which training stops
    plateau: optax.GradientTransformationExtraArgs | None = None  # `optimizers.plateau`
    keep: int = 2  # newest checkpoints that are kept, besides the best
    monitor: str = "val_nll"  # of `MONITORS`: what early stopping, plateau and best checkpoint look at


class Progress(NamedTuple):
    """What a checkpoint holds."""

    state: Any
    plateau: Any
    best_score: Any  # () float32, lower is better; infinite before the first evaluation
    best_step: Any  # () int32
    seconds: Any  # () float32, spent so far


class Sizes(NamedTuple):
    """How many draws a method with chains takes; see `chains.collect`."""

    num_warmup: int
    num_draws: int
    thin: int
    block_size: int


class Draws(NamedTuple):
    """The draws of a method."""

    draws: Params  # leaves (C, D, ...)
    trace: dict[str, np.ndarray]  # name -> (C, D)
    seconds: float
    centre: Params | None = None  # where the network's tangent predicts for these draws, see `Algorithm`


class Outcome(NamedTuple):
    """A finished run."""

    state: Any  # of the best evaluation if there is a patience, else the last
    history: list[Row]  # a row an evaluation
    step: int  # of `state`
    stopped: str  # why training ended, in words
    seconds: float


def optimise(
    folder: Path,
    key: Key,
    algorithm: Algorithm,
    params: Params,
    data: Batch,
    schedule: Schedule,
    *,
    evaluate: Callable[[Any], Row] | None = None,
    record: Callable[[Any], Row] = lambda state: {},
    visit: np.ndarray | None = None,
    transform: Callable | None = None,
    mesh: Mesh | None = None,
    finished_only: bool = False,
    progress: Callable[[int, Info], None] = lambda done, info: None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Outcome:
    """Run a method that optimises, or go on with it, or fetch its result.

    Args:
        folder: keeps `checkpoints/`, `history.json`, `history.csv`, and at the end `state/` and
            `outcome.json`.
        evaluate: state -> scores for the history, what the schedule monitors among them; None without
            validation data.
        record: state -> whatever else the history should tell, see `recorder`.
        visit, transform, mesh: as in `loop.stepper`.
        finished_only: refuse to train.
        progress: as in `loop.fit`.
        on_row: called with every new row of the history.

    Raises:
        UserError: patience or plateau without `evaluate`, as `loop.stepper`, weights that the last step made
            NaN, or a damaged folder.
    """
    if evaluate is None and (schedule.patience is not None or schedule.plateau is not None):
        raise UserError("early stopping and reduce-on-plateau need a validation part; the data have none")
    start = loop.start(key, algorithm, params)
    done = runs.read_json(folder / OUTCOME)
    if done is not None:
        state = checkpoint.load(folder / "state", start)
        return Outcome(state, runs.read_json(folder / HISTORY) or [], **done)
    if finished_only:
        raise UserError(f"{folder} is not finished; run its command again first")
    folder.mkdir(parents=True, exist_ok=True)
    advance = loop.stepper(
        key, algorithm, data, batch_size=schedule.batch_size, visit=visit, transform=transform, mesh=mesh
    )
    plateau = schedule.plateau.init({}) if schedule.plateau else ()
    scalar = lambda value: np.asarray(value, np.float32)
    like = Progress(start, plateau, scalar(np.inf), np.asarray(0, np.int32), scalar(0))
    now, history = _resume(folder, like)
    begin, before = time.monotonic(), float(now.seconds)
    done_steps = history[-1]["step"] if history else 0
    stopped = _reason(schedule, done_steps, now)
    infos, wait = [], lambda: None
    of_one = lambda state: state if mesh is None else sharding.local(state)
    try:
        for first, last in loop.chunks(done_steps, schedule.num_steps, loop.CHUNK_SIZE, schedule.period):
            if stopped:
                break
            state, info = advance(now.state, first, last)
            now = now._replace(state=state)
            infos.append((last - first, info))
            progress(last, info)
            if last % schedule.period and last < schedule.num_steps:
                continue
            here = of_one(state)
            row = {"step": last, **_mean(infos), **(evaluate(here) if evaluate else {}), **record(here)}
            row = processes.agreed(row)
            infos = []
            history.append(row)
            on_row(row)
            wait()
            # Before the judgement: a kill leads back to the newest checkpoint and to the best of its time.
            _prune(folder, schedule.keep, int(now.best_step))
            if evaluate:
                now = _judge(schedule, now, row)
            now = now._replace(seconds=scalar(before + time.monotonic() - begin))
            _write_history(folder, history)  # before the checkpoint: rows beyond the newest one are dropped
            wait = checkpoint.save_async(_checkpoint(folder, last), now)
            stopped = _reason(schedule, last, now)
    finally:
        wait()  # after an interruption, too: whoever goes on finds a whole checkpoint
    _prune(folder, schedule.keep, int(now.best_step))
    state, step = of_one(now.state), history[-1]["step"]
    if schedule.patience is not None:
        step = int(now.best_step)
        state = checkpoint.load(_checkpoint(folder, step), like).state
    loop.check_finite(state, step)
    checkpoint.save(folder / "state", state)
    outcome = {"step": step, "stopped": stopped, "seconds": before + time.monotonic() - begin}
    if processes.is_first():
        runs.write_json(folder / OUTCOME, outcome)
    return Outcome(state, history, **outcome)


def sample(
    folder: Path,
    key: Key,
    algorithm: Algorithm,
    starts: Params,
    data: Batch,
    sizes: Sizes,
    *,
    finished_only: bool = False,
    progress: Callable[[int, Info], None] = lambda done, info: None,
) -> Draws:
    """Run chains on the full data, or go on with them, or fetch their draws; streamed to disk block by
    block.

    Args:
        starts: one start a chain, leaves (C, ...).
        finished_only: refuse to sample.
        progress: as in `chains.collect`.

    Raises:
        UserError: as `chains.collect` and `draws.load`.
    """
    num_blocks = sizes.num_draws // sizes.block_size
    kept = runs.read_json(folder / PROGRESS)
    seconds, done = (kept["seconds"], kept["blocks"]) if kept else (0.0, 0)
    if done < num_blocks:
        if finished_only:
            raise UserError(f"{folder} is not finished; run its command again first")
        resume = None
        if done:
            abstract = jax.eval_shape(
                jax.vmap(lambda start: algorithm.init(jax.random.key(0), start)), starts
            )
            resume = done - 1, checkpoint.load(folder / f"state-{done - 1}", abstract)
        begin = time.monotonic()
        for block in chains.collect(
            key, algorithm, starts, data, **sizes._asdict(), resume=resume, progress=progress
        ):
            if processes.is_first():
                draws.write_block(folder, block.index, block.draws, block.trace)
            state = folder / f"state-{block.index}"
            checkpoint.save(state, block.state)  # returns in all processes once all of it is written
            record = {"blocks": block.index + 1, "seconds": seconds + time.monotonic() - begin}
            if processes.is_first():
                # Only now does the block count; a kill before this line repeats it.
                runs.write_json(folder / PROGRESS, record)
                checkpoint.keep_only([state])
        seconds = record["seconds"]
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), starts)
    return Draws(*draws.load(folder, like, num_blocks), seconds)


def seconds(run: Path) -> float:
    """What a run spent: of chains the sampling, and the optimisation that found their starts."""
    spent = (OUTCOME, PROGRESS, f"map/{OUTCOME}")
    return sum((runs.read_json(run / file) or {"seconds": 0.0})["seconds"] for file in spent)


def _resume(folder, like):
    """The newest complete checkpoint and the history up to it; the start if there is none."""
    steps = checkpoint.steps(folder / "checkpoints")
    if not steps:
        return like, []
    now = checkpoint.load(_checkpoint(folder, steps[-1]), like)
    rows = [row for row in runs.read_json(folder / HISTORY) or [] if row["step"] <= steps[-1]]
    if not rows or rows[-1]["step"] != steps[-1]:
        raise UserError(f"{folder / HISTORY} does not reach its checkpoint; delete {folder} and run again")
    return now, rows


def _judge(schedule, now, row):
    """Best score and learning-rate factor after an evaluation."""
    score = np.float32(MONITORS[schedule.monitor] * row[schedule.monitor])
    if score < now.best_score:
        now = now._replace(best_score=np.asarray(score), best_step=np.asarray(row["step"], np.int32))
    if schedule.plateau is not None:
        _, reduced = schedule.plateau.update({}, now.plateau, value=score)
        state = optimizers.set_factor(now.state, reduced.scale)
        now = now._replace(plateau=reduced, state=state)
    return now


def _reason(schedule, step, now):
    """Why training ends after `step`; empty while it does not."""
    if step >= schedule.num_steps:
        return "all steps taken"
    waited = (step - int(now.best_step)) // schedule.period
    if schedule.patience is not None and waited >= schedule.patience:
        return f"no better {schedule.monitor} in {schedule.patience} evaluations"
    return ""


def _mean(infos):
    """The mean info of the steps of several chunks."""
    counts = [count for count, _ in infos]
    return {
        name: float(np.average([info[name] for _, info in infos], weights=counts)) for name in infos[0][1]
    }


def _checkpoint(folder, step):
    return checkpoint.step_path(folder / "checkpoints", step)


def _prune(folder, keep, best_step):
    if not processes.is_first():
        return
    steps = checkpoint.steps(folder / "checkpoints")
    wanted = {*steps[-keep:], best_step}
    checkpoint.keep_only([_checkpoint(folder, step) for step in steps if step in wanted])


def _write_history(folder, history):
    if not processes.is_first():
        return
    runs.write_json(folder / HISTORY, history)
    names = list(dict.fromkeys(name for row in history for name in row))
    with files.whole(folder / "history.csv", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history)
