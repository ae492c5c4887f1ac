r"""Sums over many images on CPU, some of them at a time, so that what convolutions read stays in the cache.

    L(w) = sum_i l_i(w) = sum_p sum_{i in p} l_i(w)

Value and gradient of a piece are computed together and added up, so that nothing of a piece is kept for the
way back. That is for the bodies of compiled loops, as HMC's, where a convolution is a matrix product (`ops`);
everywhere else, for a small batch, and where devices share the examples (`ops.split`), which would have to
add up every piece between them, the sum is the plain one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal

from bnn_jax import ops
from bnn_jax.types import Batch, Params

PIECE = 128  # images at most


def total(f: Callable, params: Params, batch: Batch) -> jax.Array:
    """The sum over a batch of f(params, batch), (B,).

    Raises:
        TypeError: a derivative of pieces by the batch, or forwards by the weights, as JAX words it.
    """
    if ops.loop_safe() and batch.x.ndim > 2 and len(batch.x) >= 2 * PIECE and not ops.split():
        return _total(f, params, batch)
    return jnp.sum(f(params, batch))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(f, params, batch):
    return _added_up(lambda part: part(params), f, batch)


def _forwards(f, params, batch):
    leaf = lambda a: isinstance(a, CustomVJPPrimal)
    if any(a.perturbed for a in jax.tree.leaves(batch, is_leaf=leaf)):
        raise TypeError("a sum over pieces of the data has derivatives by the weights, not by the data")
    params, batch = jax.tree.map(lambda a: a.value, (params, batch), is_leaf=leaf)
    return _added_up(lambda part: jax.value_and_grad(part)(params), f, batch)


def _backwards(f, grads, cotangent):
    return jax.tree.map(lambda g: cotangent * g, grads), None


_total.defvjp(_forwards, _backwards, symbolic_zeros=True)


def _added_up(measure: Callable, f: Callable, batch: Batch) -> Any:
    """The sum of `measure`, given a piece's part of the total as a function of the weights."""
    count = len(batch.x)
    pieces = -(-count // PIECE)
    size = -(-count // pieces)
    cut = lambda a: jnp.concatenate([a, a[: pieces * size - count]]).reshape(pieces, size, *a.shape[1:])
    given = jax.tree.map(cut, batch), (jnp.arange(pieces * size) < count).reshape(pieces, size)

    @ops.in_loop
    def of_piece(piece, own):
        return measure(lambda params: jnp.sum(f(params, piece), where=own))

    first = jax.tree.map(lambda a: a[0], given)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_piece, *first))
    add = lambda sums, given: (jax.tree.map(jnp.add, sums, of_piece(*given)), None)
    return jax.lax.scan(add, zeros, given)[0]
