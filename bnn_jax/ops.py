"""Convolution and pooling, with the lowering chosen for the backend.

On an accelerator the native convolution is kept. XLA's CPU backend runs a convolution inside a
`while` or `scan` 7 to 40 times slower than outside (jax-ml/jax#12868), and HMC lives in such a loop. There a
convolution is a matrix product: of few channels that of `lowering`, with the batch last, which beats the
native one outside of loops, too; else of k_h k_w shifted slices (im2col), which costs the same inside and
outside of loops, and which under `vmap` over kernels stays a batched matrix product instead of a grouped
convolution. All lowerings compute the same sum in another order. Nobody can tell from within whether a loop
surrounds a convolution, so im2col is what CPU gets; what calls a compiled step again and again from Python
says so by `outside_loops`, and has the native one, up to four times faster.

Max pooling with windows equal to strides is a reshape and a selection, whose gradient is one more selection
instead of a select-and-scatter.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bnn_jax import lowering
from bnn_jax.types import Params, UserError

LINEAR = (nn.Dense, nn.Conv)  # the layers that estimators and dropout know, subclasses left alone
_OUTSIDE = contextvars.ContextVar("outside_loops", default=False)  # set while tracing, by the context below


@contextlib.contextmanager
def outside_loops(outside: bool = True) -> Iterator[None]:
    """While tracing in this context: what is traced runs in no loop and under no `vmap` over kernels. Inside,
    what loops or maps takes that back with `outside=False`."""
    token = _OUTSIDE.set(outside)
    try:
        yield
    finally:
        _OUTSIDE.reset(token)


def in_loop(f: Callable) -> Callable:
    """`f`, to be traced as the body of a loop or under `vmap` over kernels, wherever that loop stands."""

    @functools.wraps(f)
    def body(*args: Any) -> Any:
        with outside_loops(False):
            return f(*args)

    return body


def loop_safe() -> bool:
    """Whether convolutions take the form of loops: on the CPU backend, unless `outside_loops`."""
    return _on_cpu() and not _OUTSIDE.get()


def split() -> bool:
    """Whether the compiler splits what is traced here over several devices: see `sharding`."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape[axis] > 1 for axis in mesh.auto_axes)


def slow_in_loops(jaxpr: Any) -> bool:
    """Whether a traced program runs on CPU and holds a convolution that a loop around it would slow down or,
    traced anew there for more images at a time, lower in another way."""
    return _on_cpu() and _holds_convolution(jaxpr)


def _on_cpu():
    return jax.default_backend() == "cpu"


def _holds_convolution(jaxpr):
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # of a closed one
    inner = lambda eqn: [p for p in jax.tree.leaves(list(eqn.params.values())) if hasattr(p, "eqns")]
    return any(
        eqn.primitive in (lax.conv_general_dilated_p, lowering.rows_p)
        or any(map(_holds_convolution, inner(eqn)))
        for eqn in jaxpr.eqns
    )


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **rest: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` in the lowering that suits the backend.

    On CPU, channels-last inputs (`NHWC`, any number of spatial axes), ungrouped and without input dilation,
    take `lowering.conv` where it suits, many images of few channels, else im2col; everything else is native.
    `outside_loops` only windows of one entry take im2col, as they are matrix products as they are. Where
    devices share the images (`split`), `lowering.conv` is left out: it would gather them.

    Args:
        lhs: (B, *spatial, C) inputs.
        rhs: (*window, C, O) kernel.
        window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
            precision: as in `jax.lax.conv_general_dilated`.
        rest: its other arguments; any that is set takes the native lowering.

    Returns:
        (B, *spatial', O).
    """
    num_spatial = lhs.ndim - 2
    ones = (1,) * num_spatial
    lhs_dilation, rhs_dilation = lhs_dilation or ones, rhs_dilation or ones
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    channels_last = (
        numbers.lhs_spec == (0, lhs.ndim - 1, *range(1, lhs.ndim - 1))
        and numbers.rhs_spec == (rhs.ndim - 1, rhs.ndim - 2, *range(num_spatial))
        and numbers.out_spec == numbers.lhs_spec
    )
    rest = {name: value for name, value in rest.items() if value is not None}
    plain = channels_last and feature_group_count == 1 and tuple(lhs_dilation) == ones and not rest
    if plain and _on_cpu():
        window, strides, dilation = rhs.shape[:-2], tuple(window_strides), tuple(rhs_dilation)
        pads = _pads(lhs, window, strides, padding, dilation)
        product = num_spatial > 0 and set(window) == {1}
        if not product and not split() and lowering.suits(lhs, rhs, strides, dilation, pads):
            return lowering.conv(lhs, rhs, pads, precision)
        if product or loop_safe():
            rows = _rows(lhs, window, strides, pads, dilation)
            return jnp.matmul(rows, rhs.reshape(-1, rhs.shape[-1]), precision=precision)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        precision=precision,
        **rest,
    )


def _pads(x, window, strides, padding, dilation):
    """The pads of each spatial axis, in numbers."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], _extent(window, dilation), strides, padding)
    return tuple(map(tuple, padding))


def _extent(window, dilation):
    return [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]


def _rows(x, window, strides, pads, dilation):
    """What a kernel's window sees at each place, in the order of the kernel's entries:
    (B, *spatial, window * C)."""
    channels, extent = x.shape[-1], _extent(window, dilation)
    # A negative pad crops, which lax.pad knows and jnp.pad does not.
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((lo, hi, 0) for lo, hi in pads), (0, 0, 0)])
    out = [max((n - e) // s + 1, 0) for n, e, s in zip(x.shape[1:-1], extent, strides, strict=True)]
    if 0 in out:  # the window is larger than the image: no place, as in the native convolution
        return jnp.zeros((x.shape[0], *out, math.prod(window) * channels), x.dtype)

    def shifted(offset):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        limit = [a + (n - 1) * s + 1 for a, n, s in zip(start, out, strides, strict=True)]
        return lax.slice(x, (0, *start, 0), (x.shape[0], *limit, channels), (1, *strides, 1))

    patches = [shifted(offset) for offset in itertools.product(*map(range, window))]
    return jnp.concatenate(patches, -1)


def max_pool(x: jax.Array, window: Sequence[int] = (2, 2)) -> jax.Array:
    """Max pooling with strides equal to the window, no padding; a remainder at the border is cut.

    Of equal entries of a window the first takes the whole gradient, as in `nn.max_pool`.

    Args:
        x: (B, *spatial, C).
        window: one size a spatial axis.

    Returns:
        (B, *(spatial // window), C), equal to `nn.max_pool(x, window, window)`.
    """
    return _largest(x, tuple(window))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(x, window):
    return _first_largest(x, window)[0]


@_largest.defjvp
def _largest_jvp(window, primals, tangents):
    """The tangent of the entry that was chosen: a selection in one pass, forwards and backwards. It goes by
    the entry's number, as XLA may compute the entries a second time with other rounding."""
    (x,), (dx,) = primals, tangents
    out, number = _first_largest(x, window)
    dx = _windows(dx, window)
    axes = tuple(range(2, dx.ndim - 1, 2))
    places = jnp.arange(math.prod(window)).reshape([n if a in axes else 1 for a, n in enumerate(dx.shape)])
    return out, jnp.sum(jnp.where(jnp.expand_dims(number, axes) == places, dx, 0), axes)


def _first_largest(x, window):
    """The largest entry of each window and its number, row by row: of equal ones the first, NaN before all
    others."""
    entries = _windows(x, window)
    axes = range(2, entries.ndim - 1, 2)
    every = itertools.product(*(range(entries.shape[axis]) for axis in axes))
    best, number = None, None
    for n, place in enumerate(every):
        entry = entries[(slice(None), *(i for p in place for i in (slice(None), p)))]
        if best is None:
            best, number = entry, jnp.zeros(entry.shape, jnp.int32)
            continue
        keep = (best >= entry) | jnp.isnan(best)
        best, number = jnp.where(keep, best, entry), jnp.where(keep, number, n)
    return best, number


def avg_pool(x: jax.Array, window: Sequence[int] = (2, 2)) -> jax.Array:
    """Average pooling; shapes as in `max_pool`."""
    return _windows(x, window).mean(axis=tuple(range(2, 2 * len(window) + 1, 2)))


def _windows(x, window):
    sizes = [n // w for n, w in zip(x.shape[1:-1], window, strict=True)]
    x = x[(slice(None), *(slice(n * w) for n, w in zip(sizes, window, strict=True)))]
    pairs = itertools.chain.from_iterable(zip(sizes, window, strict=True))
    return x.reshape(x.shape[0], *pairs, x.shape[-1])


def apply_fn(module: nn.Module, dtype: Any = None) -> Callable[[Params, jax.Array], jax.Array]:
    """The pure function `(params, x) -> outputs` of a linen module, its `nn.Conv` layers in the
    lowering that suits the backend. The module itself stays as it is.

    Args:
        module: any linen module with a `params` collection only.
        dtype: of the computation, bfloat16 say; weights stay float32 outside, outputs come back so.
    """

    def apply(params: Params, x: jax.Array) -> jax.Array:
        with nn.intercept_methods(_lower_conv):
            return to_float32(module.apply({"params": cast(params, dtype)}, cast(x, dtype)), dtype)

    return apply


def layers(module: nn.Module, x_shape: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Paths of all `nn.Dense` and `nn.Conv` layers in the order of first calls, for inputs (B, *x_shape).

    The parameters do not tell: the names in a pytree are sorted.
    """
    images = jnp.zeros((1, *x_shape))
    return tuple(dict.fromkeys(linear_calls(module.init, jax.random.key(0), images)))


def linear_calls(f: Callable, *args: Any) -> list[tuple[str, ...]]:
    """The path of the layer for every call of an `nn.Dense` or `nn.Conv` in `f(*args)`, which is traced."""
    paths = []

    def note(next_fun, args, kwargs, context):
        if is_linear_call(context):
            paths.append(tuple(context.module.path))
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(f, *args)
    return paths


def cast(tree: Any, dtype: Any) -> Any:
    """`tree` in `dtype`; as it is with None."""
    return tree if dtype is None else jax.tree.map(lambda a: a.astype(dtype), tree)


def to_float32(outputs: jax.Array, dtype: Any) -> jax.Array:
    """The outputs of a computation that was cast to `dtype`, in float32 again."""
    return outputs if dtype is None else outputs.astype(jnp.float32)


def unbound(layer: nn.Module) -> nn.Module:
    """A free-standing copy of a bound layer, to apply it to other parameters than its own. An `nn.Conv`
    takes our lowering unless it brings one of its own. The copy is marked, so that interceptors, which
    see its call too, know it by `is_unbound`."""
    copy = layer.clone(parent=None, name=_UNBOUND)
    native = type(copy) is nn.Conv and not (copy.conv_general_dilated or copy.conv_general_dilated_cls)
    return copy.clone(conv_general_dilated=conv_general_dilated) if native else copy


def with_rows(layer: nn.Module, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A linear layer's outputs at `params`, and the rows (B, T, inputs) that its kernel, as a matrix,
    multiplies at each of T places.

    Raises:
        UserError: a convolution in groups, with dilated inputs or a lowering of its own: it has no such rows.
    """
    copy, seen = unbound(layer), []

    def conv(lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, feature_group_count, **rest):
        if feature_group_count != 1 or set(lhs_dilation) != {1}:
            raise UserError(
                f"{'/'.join(layer.path)}: a convolution in groups or with dilated inputs has no rows"
            )
        window, strides, dilation = rhs.shape[:-2], tuple(window_strides), tuple(rhs_dilation)
        seen.append(_rows(lhs, window, strides, _pads(lhs, window, strides, padding, dilation), dilation))
        return jnp.matmul(seen[-1], rhs.reshape(-1, rhs.shape[-1]))

    if isinstance(copy, nn.Conv):
        if copy.conv_general_dilated is not conv_general_dilated:
            raise UserError(f"{'/'.join(layer.path)}: a convolution with a lowering of its own has no rows")
        outputs = copy.clone(conv_general_dilated=conv).apply({"params": params}, x)
    else:
        seen.append(x)
        outputs = copy.apply({"params": params}, x)
    return outputs, seen[0].reshape(x.shape[0], -1, seen[0].shape[-1])


def is_unbound(layer: nn.Module) -> bool:
    """Whether `layer` was made by `unbound`."""
    return layer.name == _UNBOUND


def is_linear_call(context: nn.module.InterceptorContext) -> bool:
    """Whether an interceptor sees the call of a linear layer of the network, no copy of ours."""
    layer = context.module
    return type(layer) in LINEAR and not is_unbound(layer) and context.method_name == "__call__"


_UNBOUND = "__unbound__"


def _lower_conv(next_fun, args, kwargs, context):
    layer = context.module
    if type(layer) is not nn.Conv or not is_linear_call(context):
        return next_fun(*args, **kwargs)
    return unbound(layer).apply({"params": layer.variables["params"]}, *args, **kwargs)
