"""A state comes back from disk as it was saved, or not at all."""

import errno
import logging
import shutil
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnn_jax import checkpoint, sharding
from bnn_jax.types import UserError


class State(NamedTuple):
    params: dict
    optimizer: object
    t: jax.Array


def state(seed: int = 0, width: int = 3) -> State:
    rng = np.random.default_rng(seed)
    params = {"Dense_0": {"kernel": jnp.asarray(rng.standard_normal((width, 2)), jnp.float32)}}
    params["half"] = jnp.asarray(rng.standard_normal(4), jnp.bfloat16)
    return State(params, optax.adam(1e-2).init(params), jnp.asarray(7, jnp.int32))


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert [a.dtype for a in jax.tree.leaves(got)] == [a.dtype for a in jax.tree.leaves(want)]


def refused(path, like) -> str:
    with pytest.raises(UserError) as error:
        checkpoint.load(path, like)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "state-00001"
    checkpoint.save(path, state())
    return path


def test_round_trip(saved):
    """Into arrays, or into shapes alone."""
    want = state()
    assert_equal(checkpoint.load(saved, jax.tree.map(jnp.zeros_like, want)), want)
    assert_equal(checkpoint.load(saved, jax.eval_shape(lambda: want)), want)


def test_sharded_states_come_back_on_one_device(tmp_path):
    mesh = sharding.make_mesh(8, 1)
    chains = {"z": np.arange(24.0, dtype=np.float32).reshape(8, 3)}
    checkpoint.save(tmp_path / "s", sharding.place(chains, mesh, "sample"))
    found = checkpoint.load(tmp_path / "s", chains)
    assert_equal(found, chains)
    assert len(found["z"].devices()) == 1


def test_saving_again_replaces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path.relative_to(tmp_path) / "deep" / "state"  # relative paths work
    for seed in (0, 1):
        checkpoint.save(path, state(seed))
    assert_equal(checkpoint.load(path, state()), state(1))
    assert [p.name for p in path.parent.iterdir()] == ["state"]


FOREIGN = {
    "shape": state(width=4),
    "leaf": state()._replace(params={"other": jnp.zeros(3)}),
    "optimizer": state()._replace(optimizer=optax.sgd(1e-2).init(state().params)),
    "less": {"params": state().params},
    "more": {**state()._asdict(), "more": jnp.zeros(2)},
    "dtype": state()._replace(t=jnp.zeros((), jnp.float32)),  # no silent cast
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_state_of_something_else(name, saved):
    assert "of another network or method" in refused(saved, FOREIGN[name])


def test_missing(tmp_path):
    assert "no checkpoint" in refused(tmp_path / "nowhere", state())
    (tmp_path / "file").write_text("")
    assert "no checkpoint" in refused(tmp_path / "file", state())


@pytest.mark.parametrize("damage", ["emptied folder", "garbage", "empty files", "truncated", "foreign"])
def test_damage_is_told_in_one_line(damage, saved, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(saved, path)
    for file in [p for p in path.rglob("*") if p.is_file()]:
        content = file.read_bytes()
        if damage in ("emptied folder", "foreign"):
            file.unlink()
        elif damage == "garbage":
            file.write_bytes(bytes(range(256)) * 4)
        elif damage == "empty files":
            file.write_bytes(b"")
        else:
            file.write_bytes(content[: len(content) // 2])
    if damage == "foreign":
        (path / "holiday.txt").write_text("photographs")
    assert "damaged or of another run" in refused(path, state())


def test_keep_only_deletes_its_own_siblings(tmp_path):
    for name in ("state-00001", "state-00002", "state-00010", "other-00001", "state", "final"):
        (tmp_path / name).mkdir()
    checkpoint.keep_only([tmp_path / "state-00010"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "other-00001", "state", "state-00010"]


# --- in the background -----------------------------------------------------------------------------------


def test_save_async_takes_the_state_as_it_was(tmp_path):
    """Whatever happens to its memory before the writing ends."""
    tree = {"a": jnp.arange(2.0**18), "b": np.arange(4.0)}
    want = jax.tree.map(lambda a: np.array(a, copy=True), tree)
    wait = checkpoint.save_async(tmp_path / "step-00000001", tree)
    tree["b"][:] = -1
    jax.jit(lambda a: a * 0, donate_argnums=0)(tree["a"]).block_until_ready()
    wait()
    found = checkpoint.load(tmp_path / "step-00000001", want)
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_save_async_raises_when_asked(tmp_path, monkeypatch):
    class Response:
        def result(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "save_async", lambda *args, **kwargs: Response())
    wait = checkpoint.save_async(tmp_path / "step-00000001", {"a": np.zeros(3)})
    with pytest.raises(OSError, match="No space left"):
        wait()


def test_a_full_disk_is_the_error_that_it_is_elsewhere(tmp_path, monkeypatch, caplog):
    """And not told twice: orbax logs with a traceback what it raises."""
    message = 'RESOURCE_EXHAUSTED: Error writing "t/c" in OCDBT database'

    def full(*args, **kwargs):
        logging.getLogger("absl").error("_SignalingThread.run() raised an exception: %s", message)
        raise ValueError(message)

    begun = types.SimpleNamespace(result=full)
    monkeypatch.setattr(checkpoint.ocp, "save", full)
    monkeypatch.setattr(checkpoint.ocp, "save_async", lambda *args: begun)
    filters = list(logging.getLogger("absl").filters)
    path = tmp_path / "step-00000001"
    with pytest.raises(OSError, match=str(path)) as caught:
        checkpoint.save(path, state())
    assert caught.value.errno == errno.ENOSPC
    wait = checkpoint.save_async(path, state())
    with pytest.raises(OSError, match="No space left"):
        wait()
    assert logging.getLogger("absl").filters == filters
    assert not caplog.records
    with pytest.raises(OSError, match="No space left"):  # whoever asks again is told again
        wait()


def test_other_errors_of_writing_stay_what_they_are(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("INVALID_ARGUMENT: a name")

    monkeypatch.setattr(checkpoint.ocp, "save", broken)
    with pytest.raises(ValueError, match="a name"):
        checkpoint.save(tmp_path / "state", state())


def test_steps_are_those_that_are_whole(tmp_path):
    assert checkpoint.steps(tmp_path / "nowhere") == []
    for name in ("step-00000020", "step-00000003", "step-00000030.orbax-checkpoint-tmp", "state", "step-old"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000040").write_text("a file")
    assert checkpoint.steps(tmp_path) == [3, 20]
    assert checkpoint.step_path(tmp_path, 3) == tmp_path / "step-00000003"
    (tmp_path / "step-00000040").unlink()
    checkpoint.keep_only([tmp_path / "step-00000020"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "step-00000020"]
