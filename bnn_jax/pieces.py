r"""Sums over many images on CPU, some of them at a time, so that what convolutions read stays in the cache.

    L(w) = sum_i l_i(w) = sum_p sum_{i in p} l_i(w)

Value and gradient of a piece are computed together and added up, so that nothing of a piece is kept for the
way back. That is for the bodies of compiled loops, as HMC's, where a convolution is a matrix product (`ops`);
everywhere else, and for a small batch, the sum is the plain one. What it gains is in docs/performance.md.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bnn_jax import ops
from bnn_jax.types import Batch, Params

PIECE = 128  # images at most


def total(f: Callable, params: Params, batch: Batch) -> jax.Array:
    """The sum over a batch of f(params, batch), (B,).

    Raises:
        TypeError: a derivative of pieces by the batch, or forwards by the weights, as JAX words it.
    """
    if ops.loop_safe() and batch.x.ndim > 2 and len(batch.x) >= 2 * PIECE:
        return _total(f, params, batch)
    return jnp.sum(f(params, batch))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(f, params, batch):
    return _added_up(lambda part: part(params), f, batch)


def _forwards(f, params, batch):
    if any(a.perturbed for a in jax.tree.leaves(batch, is_leaf=lambda a: hasattr(a, "perturbed"))):
        raise TypeError("a sum over pieces of the data has derivatives by the weights, not by the data")
    value = lambda tree: jax.tree.map(lambda a: a.value, tree, is_leaf=lambda a: hasattr(a, "perturbed"))
    return _added_up(lambda part: jax.value_and_grad(part)(value(params)), f, value(batch))


def _backwards(f, grads, cotangent):
    return jax.tree.map(lambda g: cotangent * g, grads), None


_total.defvjp(_forwards, _backwards, symbolic_zeros=True)


def _added_up(measure: Callable, f: Callable, batch: Batch) -> Any:
    """The sum of `measure`, given a piece's part of the total as a function of the weights."""
    count = len(batch.x)
    pieces = -(-count // PIECE)
    size = -(-count // pieces)
    # Every `pieces`-th example: where devices share the batch, each has its share of every piece.
    cut = lambda a: jnp.concatenate([a, a[: pieces * size - count]]).reshape(size, pieces, *a.shape[1:])
    batch, counts = jax.tree.map(cut, batch), (jnp.arange(size * pieces) < count).reshape(size, pieces)

    @ops.in_loop
    def of_piece(i):
        piece, own = jax.tree.map(lambda a: a[:, i], (batch, counts))
        return measure(lambda params: jnp.sum(f(params, piece), where=own))

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_piece, 0))
    add = lambda sums, i: (jax.tree.map(jnp.add, sums, of_piece(i)), None)
    return jax.lax.scan(add, zeros, jnp.arange(pieces))[0]
