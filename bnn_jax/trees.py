"""Small operations on parameter pytrees, used everywhere."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnn_jax.noise import normal
from bnn_jax.types import Key, Params


def split_like(key: Key, tree: Params) -> Params:
    """One independent key a leaf: a pytree of keys with the structure of `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))


def normal_like(key: Key, tree: Params) -> Params:
    """Standard normal noise in the shapes and dtypes of `tree`.

    One draw a dtype, cut into leaves: a generator for each leaf takes minutes to compile in a network of a
    hundred layers, and longer to run.
    """
    leaves, structure = jax.tree.flatten(tree)
    noise = {}
    for number, dtype in enumerate(sorted({leaf.dtype for leaf in leaves}, key=str)):
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        ends = np.cumsum([leaves[i].size for i in places])
        drawn = normal(jax.random.fold_in(key, number), (int(ends[-1]),), dtype)
        cut = jnp.split(drawn, ends[:-1])
        noise |= {i: part.reshape(leaves[i].shape) for i, part in zip(places, cut, strict=True)}
    return jax.tree.unflatten(structure, [noise[i] for i in range(len(leaves))])


def at(tree: Any, path: Sequence[str]) -> Any:
    """What lies at `path` of nested mappings."""
    return functools.reduce(operator.getitem, path, tree)


def put(tree: Any, path: Sequence[str], leaf: Any) -> Any:
    """`tree`, nested mappings, with `leaf` at `path`."""
    first, *rest = path
    return {**tree, first: put(tree[first], rest, leaf) if rest else leaf}


def tree_sum(tree: Any) -> jax.Array:
    """The sum of all entries of all leaves, ()."""
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, tree), jnp.zeros(()))


def stack(trees: Sequence[Any]) -> Any:
    """Stack equal pytrees along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def size(tree: Params) -> int:
    """The number of weights P."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def fan_in(leaf: jax.Array) -> int:
    """The number of inputs that a weight's unit sums over; 1 for biases and other vectors.

    A kernel (Flax's layout: the last axis is the output) has the product of all axes but the last.
    """
    return int(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 1


def leaf_names(tree: Params) -> list[str]:
    """Readable names of the leaves in flattening order, `Conv_0/kernel`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return ["/".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in path) for path in paths]
