"""Draws on disk: one uncompressed .npz a block, leaves by name, plus the trace of the sampler.

A block is written under a temporary name and renamed, so that what carries its name is whole. Loading
checks names, shapes and checksums (zip's CRC) and never unpickles.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bnn_jax import files
from bnn_jax.trees import leaf_names
from bnn_jax.types import Info, Params, UserError

TRACE = "trace/"


def write_block(folder: Path, index: int, draws: Params, trace: Info) -> None:
    """Write block `index`: leaves (C, block, ...) and traces (C, block)."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = dict(zip(leaf_names(draws), map(np.asarray, jax.tree.leaves(draws)), strict=True))
    arrays |= {TRACE + name: np.asarray(value) for name, value in trace.items()}
    with files.whole(block_path(folder, index), "wb") as file:
        np.savez(file, **arrays)


def block_path(folder: Path, index: int) -> Path:
    """Where block `index` lies."""
    return folder / f"block_{index:05d}.npz"


def load(folder: Path, like: Params, num_blocks: int) -> tuple[Params, dict[str, np.ndarray]]:
    """All draws of a run.

    Args:
        like: one draw (or its shapes): names and shapes that every block must have.
        num_blocks: how many blocks the run has.

    Returns:
        draws, leaves (C, D, ...), and the trace, name -> (C, D).

    Raises:
        UserError: a block is missing, damaged, or holds draws of another network.
    """
    blocks = [_read(block_path(folder, i)) for i in range(num_blocks)]
    names = leaf_names(like)
    shapes = [leaf.shape for leaf in jax.tree.leaves(like)]
    for i, block in enumerate(blocks):
        found = {n: a.shape[2:] for n, a in block.items() if not n.startswith(TRACE)}
        if found != dict(zip(names, shapes, strict=True)):
            raise UserError(f"{block_path(folder, i)} holds draws of another network: {_describe(found)}")
        lead = {a.shape[:2] for a in block.values()}
        first = blocks[0]
        if lead != {a.shape[:2] for a in first.values()} or len(lead) != 1 or block.keys() != first.keys():
            raise UserError(f"{block_path(folder, i)} does not fit the other blocks: {sorted(lead)}")
    joined = {name: np.concatenate([block[name] for block in blocks], 1) for name in blocks[0]}
    draws = jax.tree.unflatten(jax.tree.structure(like), [joined[name] for name in names])
    return draws, {n.removeprefix(TRACE): a for n, a in joined.items() if n.startswith(TRACE)}


def pool(draws: Params) -> Params:
    """Leaves (C, D, ...) of chains as one row of draws, leaves (C * D, ...)."""
    return jax.tree.map(lambda a: jnp.asarray(a.reshape(-1, *a.shape[2:])), draws)


def flatten(draws: Params) -> np.ndarray:
    """Leaves (C, D, ...) as one array (C, D, P), in the order of `trees.leaf_names`."""
    return np.concatenate([np.asarray(a).reshape(*a.shape[:2], -1) for a in jax.tree.leaves(draws)], -1)


def _read(path):
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            return {name: np.asarray(members[name]) for name in members.files}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: bring it back, or delete the folder and run again") from None
    except Exception as error:  # zipfile and NumPy raise many kinds; all mean the same to a user
        raise UserError(
            f"{path} is damaged ({error}): bring it back, or delete the folder and run again"
        ) from None


def _describe(shapes):
    return json.dumps({name: list(shape) for name, shape in shapes.items()})[:200]
