"""Convolutions of many images and few channels on CPU: one matrix product with the batch as the last axis.

The rows that the product reads, what each entry of the window sees, are then runs of whole batches that are
copied in one piece, and all around it (bias, ReLU, pooling) works on vectors of the batch. What it gains is
in docs/performance.md, "Beside other libraries". Three things make it hold:

    layout    Arrays stay (B, H, W, C) to all who read them. The transposes around the product cost nothing,
              as XLA lays out what is between two convolutions so; backwards it is told (`_conv_jvp`).
    rows      A gather of whole batches; its transpose adds in place, which XLA does not find for a sum of
              paddings. The two are therefore primitives.
    apart     XLA would fuse what makes the rows into each of its readers and compute it once for each.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

BATCH, CHANNELS = 8, 128  # at least so many images, at most so many pairs of a channel in and one out
ROWS, OUTPUTS = 6_000_000, 900_000  # at most so many numbers in rows and outputs: they stay in the cache


def suits(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> bool:
    """Whether `conv` knows this convolution and is expected to be faster than the native one."""
    if x.ndim != 4 or {*strides, *dilation} != {1} or not x.dtype == kernel.dtype == jnp.float32:
        return False
    sides = [n + lo + hi for n, (lo, hi) in zip(x.shape[1:-1], padding, strict=True)]
    if any(n < k for n, k in zip(sides, kernel.shape, strict=False)):  # no place for the window
        return False
    places, (channels, features) = math.prod(x.shape[:-1]), kernel.shape[-2:]
    small = places * math.prod(kernel.shape[:-1]) <= ROWS and places * features <= OUTPUTS
    # From colours to 16 channels the native one is good, and what follows is mostly native.
    few = channels * features <= CHANNELS and (channels > 3 or features < 16)
    return small and few and x.shape[0] >= BATCH


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], ...], precision: Any = None):
    """The convolution of images (B, H, W, C) with a kernel (h, w, C, O), of strides 1: (B, H', W', O).
    A pad may be negative; the window must fit into the padded image."""
    return _with_rows(x, kernel, padding, precision)[0]


@functools.partial(conv.defjvp, symbolic_zeros=True)
def _conv_jvp(padding, precision, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    out, rows = _with_rows(x, kernel, padding, precision)
    terms = [] if type(dkernel) is SymbolicZero else [_product(dkernel, rows, precision)]
    if type(dx) is not SymbolicZero:
        terms.append(_product(kernel, _rows(dx, kernel.shape[:2], padding), precision))
    # Transposed, this lays out the gradient that comes from the layer above.
    return out, with_layout_constraint(sum(terms), Layout((3, 1, 2, 0)))


def _with_rows(x, kernel, padding, precision):
    rows = _rows(x, kernel.shape[:2], padding)
    return _product(kernel, rows, precision, _apart(jnp.transpose)), rows


def _product(kernel, rows, precision, transpose=jnp.transpose):
    """(O, window * C) times (window * C, H * W * B), as (B, H, W, O)."""
    columns = transpose(kernel.reshape(-1, kernel.shape[-1]))
    out = jnp.matmul(columns, rows.reshape(columns.shape[1], -1), precision=precision)
    return out.reshape(-1, *rows.shape[3:]).transpose(3, 1, 2, 0)


def _rows(x, window, padding):
    """What each entry of the window sees: (*window, C, H, W, B)."""
    pads = [(0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)]
    padded = _apart(lambda x: lax.pad(x, jnp.zeros((), x.dtype), pads))(x.transpose(3, 1, 2, 0))
    return rows_p.bind(padded, window=tuple(window))


def _apart(f: Callable) -> Callable:
    """`f` as a program that XLA neither inlines nor fuses with what surrounds it."""

    def call(x):
        with set_xla_metadata(inlineable="false"):
            return jax.jit(f)(x)

    return call


def _gather(x, window):
    """(C, H, W, B) to (*window, C, H', W', B)."""
    places = np.arange(math.prod(x.shape[:-1]), dtype=np.int32).reshape(x.shape[:-1])
    seen = np.lib.stride_tricks.sliding_window_view(places, window, (1, 2)).transpose(3, 4, 0, 1, 2)
    # Two axes while apart, as XLA chooses any layout for an axis of one channel, and copies all for it.
    take = lambda x: x.reshape(-1, x.shape[-1]).at[seen.ravel()].get(mode="promise_in_bounds")
    return _apart(take)(x).reshape(*seen.shape, -1)


def _add_up(rows, window):
    """The transpose of `_gather`."""
    height, width = rows.shape[3:5]

    def add(rows):
        sides = [n + k - 1 for n, k in zip((height, width), window, strict=True)]
        x = jnp.zeros((rows.shape[2], *sides, rows.shape[-1]), rows.dtype)
        for i, j in np.ndindex(*window):
            x = x.at[:, i : i + height, j : j + width].add(rows[i, j])
        return x

    return _apart(add)(rows)


rows_p, _sums_p = Primitive("window_rows"), Primitive("window_sums")


def _define(primitive, f, transpose, channels_in, channels_out):
    """The linear `f` as a primitive; `vmap` takes its axis for more channels, whose axes are told."""

    def shape(x, *, window):
        out = jax.eval_shape(lambda x: f(x, window), jax.ShapeDtypeStruct(x.shape, x.dtype))
        return jax.core.ShapedArray(out.shape, out.dtype)

    def batched(args, dims, *, window):
        x = jnp.moveaxis(args[0], dims[0], channels_in)
        both = x.shape[channels_in : channels_in + 2]
        merged = x.reshape(*x.shape[:channels_in], -1, *x.shape[channels_in + 2 :])
        out = primitive.bind(merged, window=window)
        return out.reshape(*out.shape[:channels_out], *both, *out.shape[channels_out + 1 :]), channels_out

    primitive.def_impl(lambda x, *, window: jax.jit(f, static_argnums=1)(x, window))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(f, multiple_results=False))
    ad.deflinear2(primitive, lambda ct, _, *, window: [transpose.bind(ct, window=window)])
    batching.primitive_batchers[primitive] = batched


_define(rows_p, _gather, _sums_p, 0, 2)
_define(_sums_p, _add_up, rows_p, 2, 0)
