"""Draws come back from disk as they were written, or not at all."""

import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from bnn_jax import draws
from bnn_jax.types import UserError

LIKE = {"Conv_0": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}, "scale": np.zeros(())}


def block(seed: int, chains: int = 2, size: int = 4, like=LIKE):
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(lambda a: rng.standard_normal((chains, size, *a.shape)).astype(np.float32), like)
    return tree, {"accept_prob": rng.random((chains, size)), "diverging": rng.random((chains, size)) < 0.5}


def write(folder, count: int = 3):
    blocks = [block(i) for i in range(count)]
    for i, (tree, trace) in enumerate(blocks):
        draws.write_block(folder, i, tree, trace)
    return blocks


def refused(folder, num_blocks: int = 3, like=LIKE) -> str:
    with pytest.raises(UserError) as error:
        draws.load(folder, like, num_blocks)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip(tmp_path):
    blocks = write(tmp_path / "new" / "folder")
    for count in (1, 3):
        tree, trace = draws.load(tmp_path / "new" / "folder", LIKE, count)
        want = jax.tree.map(lambda *a: np.concatenate(a, 1), *blocks[:count])
        jax.tree.map(np.testing.assert_array_equal, (tree, trace), want)
        assert {a.dtype for a in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    assert sorted(path.suffix for path in (tmp_path / "new" / "folder").iterdir()) == [".npz"] * 3


def test_pool_and_flatten():
    tree, _ = block(0)
    rows = draws.pool(tree)
    np.testing.assert_array_equal(rows["Conv_0"]["kernel"][4:], tree["Conv_0"]["kernel"][1])
    np.testing.assert_array_equal(rows["scale"][:4], tree["scale"][0])
    flat = draws.flatten(tree)
    assert flat.shape == (2, 4, 9)
    # the order of trees.leaf_names: bias, kernel, scale
    conv, scale = jax.tree.map(lambda a: a[1, 3], (tree["Conv_0"], tree["scale"]))
    np.testing.assert_array_equal(flat[1, 3], [*conv["bias"], *conv["kernel"].ravel(), scale])


def test_a_missing_block_says_how_to_go_on(tmp_path):
    write(tmp_path, 2)
    assert "block_00002.npz is missing: bring it back, or delete the folder" in refused(tmp_path)
    assert "missing" in refused(tmp_path / "nowhere")


def test_no_half_written_block_carries_the_name(tmp_path, monkeypatch):
    """Killed while writing: the block that was there stays whole."""
    blocks = write(tmp_path, 1)

    def killed(file, **arrays):
        file.write(b"PK half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", killed)
    for index in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            draws.write_block(tmp_path, index, *block(7))
    tree, _ = draws.load(tmp_path, LIKE, 1)
    jax.tree.map(np.testing.assert_array_equal, tree, blocks[0][0])
    assert "missing" in refused(tmp_path, 2)


def npy(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def text_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("scale", "no array")


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def pickled(path):
    """Of the right names and shapes."""
    tree, trace = block(1)
    scale = np.full((2, 4), Malicious(path.with_name("unpickled")), object)
    draws.write_block(path.parent, 1, tree | {"scale": scale}, trace)


def folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "text": lambda path: path.write_text("draws\n"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "single array": npy,
    "zip of text": text_zip,
    "pickled objects": pickled,
    "a folder": folder,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_in_one_line(name, tmp_path):
    write(tmp_path)
    DAMAGE[name](draws.block_path(tmp_path, 1))
    message = refused(tmp_path)
    assert "block_00001.npz" in message
    assert "delete the folder and run again" in message or name == "zip of text"
    assert not (tmp_path / "unpickled").exists()


def test_no_flipped_byte_goes_unnoticed(tmp_path):
    """A byte changed anywhere: refused, or (in what zip repeats and nobody reads) the same draws."""
    (tree, trace), *_ = write(tmp_path, 1)
    path = draws.block_path(tmp_path, 0)
    whole = path.read_bytes()
    refusals = 0
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            found = draws.load(tmp_path, LIKE, 1)
        except UserError:
            refusals += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, found[0], tree)
            for name, value in found[1].items():  # a name in the list of members alone may be lost
                np.testing.assert_array_equal(value, trace[name])
    assert refusals > len(whole) / 6


def test_draws_of_another_network(tmp_path):
    write(tmp_path)
    for like in (
        LIKE | {"scale": np.zeros(3)},
        LIKE | {"more": np.zeros(2)},
        {"scale": LIKE["scale"]},
        {"Conv_0": {"kernel": np.zeros((2, 3)), "bias": np.zeros(2)}, "scale": np.zeros(())},
    ):
        assert "another network" in refused(tmp_path, like=like)


def test_blocks_that_do_not_fit_together(tmp_path):
    write(tmp_path)
    draws.write_block(tmp_path, 1, *block(1, chains=3))
    assert "block_00001.npz does not fit the other blocks" in refused(tmp_path)
    tree, trace = block(1)
    draws.write_block(tmp_path, 1, tree, {"accept_prob": trace["accept_prob"]})
    assert "block_00001.npz does not fit the other blocks" in refused(tmp_path)
    draws.write_block(tmp_path, 1, tree, {name: value[:, :2] for name, value in trace.items()})
    assert "block_00001.npz does not fit the other blocks" in refused(tmp_path)
