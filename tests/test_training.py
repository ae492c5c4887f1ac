"""Runs in folders: resumed bit for bit, stopped early at the best, checkpoints kept and lost."""

import csv
import errno
import json
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import linear

from bnn_jax import checkpoint, ensemble, estimators, loop, objectives, optimizers, stream, training
from bnn_jax.infer import vi
from bnn_jax.likelihoods import gaussian
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import isotropic
from bnn_jax.types import Algorithm, Batch, Scaling, UserError

pytestmark = pytest.mark.usefixtures("quick_compile")
PROBLEM = linear()
N = len(PROBLEM.batch.x)
START = PROBLEM.params([0.1, -0.2, 0.3])
KEY = jax.random.key(0)
PERIOD = 4
PRIOR = isotropic.build(PROBLEM.std)


class Stop(Exception):
    """A kill, as far as one process can play one."""


class State(NamedTuple):
    params: Any
    optimizer: Any
    t: jax.Array


def sgd(rate: float = 0.02) -> Algorithm:
    """Least squares by gradient descent, with a counter by which `scripted` knows where it is."""
    optimizer = optimizers.build("sgd", rate, 100, "constant")

    def step(key, state, batch):
        loss = lambda p: jnp.mean((PROBLEM.apply(p, batch.x)[..., 0] - batch.y) ** 2)
        value, grads = jax.value_and_grad(loss)(state.params)
        updates, new = optimizer.update(grads, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), new, state.t + 1), {"loss": value}

    init = lambda key, params: State(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    return Algorithm(init, step, sample=lambda key, state: state.params)


def bayes(members: int) -> Algorithm:
    """VI with a warm-up of the KL, Adam and a schedule: everything a state may hold."""
    family = mean_field.build()
    through = estimators.sampling(PROBLEM.apply, family)
    elbo = objectives.elbo(through, family, PRIOR, gaussian.build(PROBLEM.sigma), N)
    optimizer = optimizers.build("adam", 0.02, 24, "cosine", 3)
    algorithm = vi.build(elbo, family, N, optimizer, optax.linear_schedule(0.0, 1.0, 10))
    return algorithm if members == 1 else ensemble.build(algorithm, members)


def noisy(key, x, numbers):
    """An augmentation that depends on the step and on the example."""
    noise = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), x.shape[1:]))(numbers)
    return x + 0.1 * noise


def scripted(scores):
    """state -> the next of `scores`, one an evaluation."""
    return lambda state: {"val_nll": float(scores[int(np.ravel(state.t)[0]) // PERIOD - 1])}


def schedule(num_steps=24, **changes):
    return training.Schedule(num_steps, 7, PERIOD, **changes)


def train(folder, algorithm=None, params=START, plan=None, **changes):
    return training.optimise(
        folder, KEY, algorithm or sgd(), params, PROBLEM.batch, plan or schedule(), **changes
    )


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def steps(folder):
    """The checkpoints of a folder; and nothing else lies beside them."""
    found = checkpoint.steps(folder / "checkpoints")
    assert len(list((folder / "checkpoints").iterdir())) == len(found)
    return found


def same_run(folder, other, algorithm=None, params=START):
    """Final state and history, bit by bit."""
    like = loop.start(KEY, algorithm or sgd(), params)
    equal(*[checkpoint.load(f / "state", like) for f in (folder, other)])
    for name in ("history.json", "history.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def stop_when(count):
    """A callback that stops the run at its `count`-th call."""
    calls = []

    def callback(*arguments):
        calls.append(arguments)
        if len(calls) == count:
            raise Stop

    return callback


# --- one run ---------------------------------------------------------------------------------------------


def test_a_run_is_fit_with_notes(tmp_path):
    """The state of `loop.fit`; rows are means over the steps since the last one, chunks of other lengths
    included."""
    long = training.Schedule(130, 7, 60)  # chunks of 50, 10, 50, 10, 10
    seen, rows = [], []
    outcome = train(tmp_path, plan=long, progress=lambda *a: seen.append(a), on_row=rows.append)
    state, history = loop.fit(KEY, sgd(), START, PROBLEM.batch, num_steps=130, batch_size=7, chunk_size=10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), outcome.state, state)
    assert [row["step"] for row in outcome.history] == [60, 120, 130]
    blocks = history["loss"]
    want = [blocks[:6].mean(), blocks[6:12].mean(), blocks[12]]
    np.testing.assert_allclose([row["loss"] for row in outcome.history], want, rtol=1e-5)
    assert [done for done, _ in seen] == [50, 60, 110, 120, 130]
    assert rows == outcome.history == json.loads((tmp_path / "history.json").read_text())
    with (tmp_path / "history.csv").open(newline="") as file:
        assert [{n: float(v) for n, v in row.items()} for row in csv.DictReader(file)] == rows
    assert (outcome.step, outcome.stopped) == (130, "all steps taken")
    again = train(tmp_path, plan=long, finished_only=True, progress=stop_when(1))
    equal(again.state, outcome.state)
    assert again._replace(state=None) == outcome._replace(state=None)


def test_finished_only(tmp_path):
    with pytest.raises(UserError, match="is not finished; run its command again"):
        train(tmp_path / "new", finished_only=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("needs", [dict(patience=2), dict(plateau=optimizers.plateau(0.1, 1, 0))])
def test_scores_are_needed_to_judge(needs, tmp_path):
    with pytest.raises(UserError, match="need a validation part"):
        train(tmp_path / "new", plan=schedule(**needs))
    assert not (tmp_path / "new").exists()


# --- resume ----------------------------------------------------------------------------------------------


def everything(folder, members, **changes):
    """VI with augmentation, over-sampling, early stopping and plateau; deterministic scores."""
    algorithm = bayes(members)
    starts = START if members == 1 else jax.tree.map(lambda a: jnp.stack([a, a + 0.1]), START)
    best = {"val_nll": None}

    def evaluate(state):
        weights = jax.tree.leaves(state.phi.mean)[0]
        best["val_nll"] = float(jnp.abs(jnp.abs(weights).sum() - 1.2 * members))
        return dict(best)

    plan = schedule(patience=3, plateau=optimizers.plateau(0.5, 1, 0.2), keep=1)
    visit = np.concatenate([np.arange(N), np.arange(12)])
    settings = dict(evaluate=evaluate, visit=visit, transform=noisy) | changes
    return train(folder, algorithm, starts, plan, **settings), algorithm, starts


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folders = {}
    for members in (1, 2):
        folders[members] = tmp_path_factory.mktemp("whole") / "run"
        everything(folders[members], members)
    return folders


@pytest.mark.parametrize("members", [1, 2])
def test_stopped_at_every_evaluation(members, unbroken, tmp_path):
    """A new start for each row of the history, in the worst moments: before and after the checkpoint of the
    row, and between two chunks."""
    rows = len(json.loads((unbroken[members] / "history.json").read_text()))
    assert rows >= 4
    stops = 0
    for where in ("on_row", "progress", "on_row") * rows:
        try:
            outcome, algorithm, starts = everything(tmp_path, members, **{where: stop_when(2)})
            break
        except Stop:
            stops += 1
    assert stops >= rows - 1
    assert outcome.stopped
    same_run(tmp_path, unbroken[members], algorithm, starts)
    assert steps(tmp_path) == steps(unbroken[members])


def test_any_later_file_may_be_missing(unbroken, tmp_path):
    """A kill between two of the files of the end, or of an evaluation."""
    _, algorithm, starts = everything(unbroken[1], 1)
    last = steps(unbroken[1])[-1]
    outcome, state, newest = "outcome.json", "state", f"checkpoints/step-{last:08d}"
    for i, lost in enumerate(([outcome], [outcome, state], [outcome, state, newest])):
        folder = tmp_path / str(i)
        shutil.copytree(unbroken[1], folder)
        for name in lost:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        everything(folder, 1)
        same_run(folder, unbroken[1], algorithm, starts)


def test_what_a_kill_leaves_behind_is_swept_up(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[1], folder)
    (folder / "outcome.json").unlink()
    (folder / "checkpoints" / "step-00000099.orbax-checkpoint-tmp").mkdir()
    (folder / "history.csv.tmp").write_text("half a li")
    _, algorithm, starts = everything(folder, 1)
    same_run(folder, unbroken[1], algorithm, starts)
    assert steps(folder) == steps(unbroken[1])


def test_history_that_does_not_reach_the_checkpoint(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[1], folder)
    (folder / "outcome.json").unlink()
    (folder / "history.json").unlink()
    with pytest.raises(UserError, match="does not reach its checkpoint; delete"):
        everything(folder, 1)


def test_streamed_data_resumed(tmp_path):
    """Bit for bit the run that was not stopped, and the parameters of the run on data in memory."""
    x = PROBLEM.batch.x
    scaling = Scaling(np.float32(0), np.float32(1))
    data = Batch(stream.Source(N, lambda i: x[i], x.shape[1:], scaling, 2), PROBLEM.batch.y)
    settings = dict(evaluate=scripted([3, 2, 2.5, 1, 1, 2]), transform=noisy)
    streamed = lambda folder, **more: training.optimise(
        folder, KEY, sgd(), START, data, schedule(patience=4), **settings, **more
    )
    streamed(tmp_path / "whole")
    with pytest.raises(Stop):
        streamed(tmp_path / "cut", progress=stop_when(4))
    streamed(tmp_path / "cut")
    same_run(tmp_path / "cut", tmp_path / "whole")
    memory = train(tmp_path / "memory", plan=schedule(patience=4), **settings)
    state = checkpoint.load(tmp_path / "cut" / "state", memory.state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state, memory.state)


# --- early stopping and plateau --------------------------------------------------------------------------


def test_early_stopping_keeps_the_best(tmp_path):
    """Best at evaluation 2, three worse or equal: stopped at 5 with the state of a run that ends at 2."""
    scores = [3, 1, 2, 1, 1.5, 0]
    outcome = train(tmp_path / "a", plan=schedule(patience=3), evaluate=scripted(scores))
    short = train(tmp_path / "b", plan=schedule(2 * PERIOD))
    equal(outcome.state, short.state)
    assert outcome.step == 2 * PERIOD
    assert outcome.stopped == "no better val_nll in 3 evaluations"
    assert [row["step"] for row in outcome.history] == [4, 8, 12, 16, 20]
    equal(checkpoint.load(tmp_path / "a" / "state", outcome.state), short.state)


def test_early_stopping_that_never_comes_keeps_the_best_all_the_same(tmp_path):
    outcome = train(tmp_path, plan=schedule(22, patience=6), evaluate=scripted([3, 2, 1, 2, 2, 2]))
    assert (outcome.step, outcome.stopped) == (12, "all steps taken")
    assert int(outcome.state.t) == 12


def test_of_an_accuracy_the_highest_is_the_best(tmp_path):
    scores = [0.5, 0.8, 0.7, 0.8, 0.6, 0.9]
    evaluate = lambda state: {"val_nll": 0.0, "val_accuracy": scores[int(state.t) // PERIOD - 1]}
    outcome = train(tmp_path, plan=schedule(patience=3, monitor="val_accuracy"), evaluate=evaluate)
    assert (outcome.step, outcome.stopped) == (2 * PERIOD, "no better val_accuracy in 3 evaluations")


def test_what_is_recorded_stands_in_the_history(tmp_path):
    outcome = train(tmp_path, plan=schedule(8), record=lambda state: {"std_w": 0.5 * float(state.t)})
    assert [row["std_w"] for row in outcome.history] == [2.0, 4.0]
    assert "std_w" in (tmp_path / "history.csv").read_text().splitlines()[0].split(",")


def test_without_patience_the_last_state_is_kept(tmp_path):
    outcome = train(tmp_path, evaluate=scripted([1, 2, 3, 4, 5, 6]))
    assert outcome.step == int(outcome.state.t) == 24
    assert steps(tmp_path) == [4, 20, 24]


SCORES = [5, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3]


def by_hand(starts):
    """Gradient descent in a Python loop with `optax.contrib.reduce_on_plateau` as it comes: the factor after
    every evaluation, the parameters at the end."""
    rule = optax.contrib.reduce_on_plateau(0.5, 2, min_scale=0.1)
    judged, factors = rule.init(START), []
    order = loop.order(jax.random.split(KEY, 3)[1], N, 7, 0, 48)
    members = [jax.tree.map(lambda a, i=i: a[i], starts) for i in range(2)]
    loss = lambda p, x, y: jnp.mean((PROBLEM.apply(p, x)[..., 0] - y) ** 2)
    grad = jax.jit(jax.grad(loss))
    for t, rows in enumerate(order, 1):
        grads = [grad(p, PROBLEM.batch.x[rows], PROBLEM.batch.y[rows]) for p in members]
        rate = 0.02 * judged.scale
        members = [
            optax.apply_updates(p, optax.tree.scale(-rate, g)) for p, g in zip(members, grads, strict=True)
        ]
        if t % PERIOD == 0:
            _, judged = rule.update(START, judged, value=SCORES[t // PERIOD - 1])
            factors.append(float(judged.scale))
    return factors, jax.tree.map(lambda *a: jnp.stack(a), *members)


def test_plateau_is_optax_s(tmp_path):
    """Of an ensemble, and of a single network that is stopped at every fourth evaluation."""
    starts = jax.tree.map(lambda a: jnp.stack([a, a + 0.3]), START)
    factors, want = by_hand(starts)
    np.testing.assert_allclose(factors, [1, 1, 1, *[0.5] * 2, *[0.25] * 3, *[0.125] * 2, 0.1, 0.1], rtol=1e-6)
    plan = schedule(48, plateau=optimizers.plateau(0.5, 2, 0.1))
    settings = dict(plan=plan, evaluate=scripted(SCORES))
    both = train(tmp_path / "both", ensemble.build(sgd(), 2), starts, **settings)
    first = jax.tree.map(lambda a: a[0], starts)
    for _ in range(4):
        try:
            one = train(tmp_path / "one", sgd(), first, on_row=stop_when(5), **settings)
            break
        except Stop:
            pass
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(near, both.state.params, want)
    jax.tree.map(near, one.state.params, jax.tree.map(lambda a: a[0], want))
    for state in (both.state, one.state):
        found = optax.tree_utils.tree_get(state, "learning_rate_factor")
        np.testing.assert_allclose(found, np.full(found.shape, 0.1), rtol=1e-6)


# --- checkpoints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "scores", "kept"),
    [
        (1, [5, 1, 3, 3, 3, 3], [8, 24]),
        (2, [5, 1, 3, 3, 3, 3], [8, 20, 24]),
        (2, [6, 5, 4, 3, 2, 1], [20, 24]),
        (3, None, [16, 20, 24]),
        (9, None, [4, 8, 12, 16, 20, 24]),
    ],
)
def test_the_newest_and_the_best_are_kept(keep, scores, kept, tmp_path):
    train(tmp_path, plan=schedule(keep=keep), evaluate=scores and scripted(scores))
    assert steps(tmp_path) == kept


class Failing:
    """`checkpoint.save_async` on a disk that is full at the `at`-th time."""

    def __init__(self, monkeypatch, at):
        self.count, self.at, self.save = 0, at, checkpoint.save_async
        monkeypatch.setattr(checkpoint, "save_async", self)

    def __call__(self, path, tree):
        self.count += 1
        if self.count != self.at:
            return self.save(path, tree)

        def result():
            raise OSError(errno.ENOSPC, "No space left on device")

        return result


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_full_disk_is_told_and_the_run_goes_on_later(at, tmp_path, monkeypatch):
    failing = Failing(monkeypatch, at)
    with pytest.raises(OSError, match="No space left") as error:
        train(tmp_path / "run")
    assert error.value.errno == errno.ENOSPC
    assert not (tmp_path / "run" / "outcome.json").exists()
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [4, 8, 12, 16, 20][max(at - 3, 0) : at - 1]
    failing.at = None
    rows = []
    train(tmp_path / "run", on_row=rows.append)
    assert [row["step"] for row in rows] == list(range(4 * at, 25, 4))  # from the last whole checkpoint
    train(tmp_path / "whole")
    same_run(tmp_path / "run", tmp_path / "whole")


def test_a_better_state_that_was_lost_takes_nothing_with_it(tmp_path, monkeypatch):
    """The run dies while it writes its new best. Its old best is still there, as the newest checkpoint says:
    on another machine, the scores may come out otherwise."""
    Failing(monkeypatch, 4)
    plan = schedule(keep=1, patience=4)
    with pytest.raises(OSError, match="No space"):
        train(tmp_path, plan=plan, evaluate=scripted([1, 2, 3, 0, 4, 5]))
    outcome = train(tmp_path, plan=plan, evaluate=scripted([1, 2, 3, 4, 5, 6]))
    assert outcome.step == 4


def test_an_optimisation_that_becomes_nan(tmp_path):
    with pytest.raises(UserError, match="became NaN or infinite before step"):
        train(tmp_path, sgd(1e20))


def test_an_optimisation_whose_last_step_makes_weights_infinite(tmp_path):
    for _ in range(2):  # and when it goes on from the last checkpoint
        with pytest.raises(UserError, match="weights became NaN or infinite in step 1: lower the learning"):
            train(tmp_path, sgd(3e38), plan=schedule(num_steps=1))
    assert not (tmp_path / "outcome.json").exists()


# --- chains ----------------------------------------------------------------------------------------------


def walk() -> Algorithm:
    """A random walk: draws that depend on the key of every step."""
    step = lambda key, state, batch: (
        jax.tree.map(lambda a: a + jax.random.normal(key, a.shape), state),
        {"first": jax.tree.leaves(state)[0].ravel()[0]},
    )
    return Algorithm(lambda key, params: params, step, lambda key, state: state, chain=True)


def draw(folder, **changes):
    starts = jax.tree.map(lambda a: jnp.stack([a, a + 0.3]), START)
    sizes = training.Sizes(3, 9, 1, 3)
    return training.sample(folder, KEY, walk(), starts, PROBLEM.batch, sizes, **changes)


def test_chains_stopped_at_every_block(tmp_path):
    """In the second block, in the third, and before the line that says that the third is written."""
    whole, cut = draw(tmp_path / "whole"), tmp_path / "cut"
    assert whole.draws["kernel"].shape == (2, 9, 3, 1)
    with pytest.raises(UserError, match="is not finished"):
        draw(cut, finished_only=True)
    for count, blocks in ((3, 1), (2, 2)):  # the first call is the warm-up's
        with pytest.raises(Stop):
            draw(cut, progress=stop_when(count))
        assert json.loads((cut / "progress.json").read_text())["blocks"] == blocks
    shutil.copytree(tmp_path / "whole" / "state-2", cut / "state-2")
    shutil.copy(tmp_path / "whole" / "block_00002.npz", cut)
    broken = draw(cut)
    equal(broken.draws, whole.draws)
    equal(broken.trace, whole.trace)
    assert [path.name for path in cut.glob("state-*")] == ["state-2"]
    again = draw(cut, finished_only=True, progress=stop_when(1))
    equal(again.draws, whole.draws)
    assert again.seconds == broken.seconds
