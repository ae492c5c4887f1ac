"""The convolution with the batch last equals the native one: values, derivatives, under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bnn_jax import lowering, ops
from bnn_jax.nets import lenet

NUMBERS = ("NHWC", "HWIO", "NHWC")
CASES = {  # (image, kernel, padding)
    "same": ((7, 6, 3), (3, 3, 3, 4), "SAME"),
    "even window": ((6, 7, 2), (2, 4, 2, 5), "SAME"),
    "valid": ((7, 6, 1), (5, 3, 1, 6), "VALID"),
    "explicit": ((6, 5, 2), (3, 3, 2, 4), ((2, 0), (1, 3))),
    "negative": ((8, 9, 2), (3, 3, 2, 4), ((-1, 2), (1, -2))),
    "whole image": ((4, 5, 4), (4, 5, 4, 2), "VALID"),
}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def convs(padding, strides=(1, 1), **settings):
    def ours(x, k):
        with ops.outside_loops():
            return ops.conv_general_dilated(x, k, strides, padding, dimension_numbers=NUMBERS, **settings)

    native = lambda x, k: lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=NUMBERS, **settings
    )
    return ours, native


def taken(f, *args):
    return "window_rows" in str(jax.make_jaxpr(f)(*args))


def check(f, args, atol=2e-4):
    """`f(conv, *args)` is the same with both."""
    ours, native = args[0]
    got, want = jax.jit(lambda *a: (f(ours, *a), f(native, *a)))(*args[1:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), got, want)


@pytest.mark.parametrize("case", CASES)
def test_equals_native(case):
    """Values, gradients to both arguments, and the forward derivative to each and both."""
    image, window, padding = CASES[case]
    pair, x, k = convs(padding), normal(8, *image), normal(*window, seed=1)
    assert taken(pair[0], x, k)

    def derivatives(conv, x, k):
        out, vjp = jax.vjp(conv, x, k)
        in_both = jax.jvp(conv, (x, k), (jnp.cos(x), jnp.cos(k)))
        in_kernel = jax.jvp(lambda k: conv(x, k), (k,), (jnp.cos(k),))
        return out, vjp(jnp.sin(out)), in_both, in_kernel

    check(derivatives, (pair, x, k))


def test_second_derivatives_and_vmap():
    pair, x, k = convs("SAME"), normal(2, 8, 4, 5, 2), normal(3, 3, 3, 2, 3, seed=1)
    assert taken(pair[0], x[0], k[0])
    loss = lambda conv: lambda x, k: jnp.sum(jnp.sin(conv(x, k)))
    gradient = lambda conv: jax.grad(loss(conv), (0, 1))
    curved = lambda conv, x, k: jax.jvp(gradient(conv), (x[0], k[0]), (x[1], k[1]))
    check(curved, (pair, x, k))
    check(lambda conv, x, k: jax.vmap(gradient(conv), (None, 0))(x[0], k), (pair, x, k))
    check(lambda conv, x, k: jax.vmap(gradient(conv))(x, k[:2]), (pair, x, k))
    check(lambda conv, x, k: jax.vmap(gradient(conv), (1, None))(jnp.moveaxis(x, 0, 1), k[0]), (pair, x, k))
    np.testing.assert_allclose(pair[0](x[0], k[0]), pair[1](x[0], k[0]), atol=1e-5)  # op by op


@pytest.mark.parametrize(
    ("batch", "channels", "features", "strides", "settings", "dtype"),
    [
        (7, 2, 4, (1, 1), {}, jnp.float32),
        (8, 16, 16, (1, 1), {}, jnp.float32),
        (8, 3, 16, (1, 1), {}, jnp.float32),
        (8, 2, 4, (2, 1), {}, jnp.float32),
        (8, 2, 4, (1, 1), dict(rhs_dilation=(1, 2)), jnp.float32),
        (8, 2, 4, (1, 1), {}, jnp.bfloat16),
        (3000, 2, 4, (1, 1), dict(), jnp.float32),
    ],
    ids=["few images", "many channels", "colours", "strides", "dilation", "bfloat16", "large"],
)
def test_everything_else_is_native(batch, channels, features, strides, settings, dtype):
    ours, _ = convs("SAME", strides, **settings)
    x, k = jnp.zeros((batch, 12, 12, channels), dtype), jnp.zeros((3, 3, channels, features), dtype)
    assert not taken(ours, x, k)
    assert "conv_general_dilated[" in str(jax.make_jaxpr(ours)(x, k))


def test_a_window_larger_than_the_image_sees_nothing():
    ours, native = convs("VALID")
    x, k = jnp.zeros((8, 3, 4, 1)), jnp.zeros((5, 2, 1, 2))
    assert ours(x, k).shape == native(x, k).shape == (8, 0, 3, 2)


def test_lenet_takes_it_in_and_outside_of_loops_on_cpu_only(monkeypatch):
    module, x = lenet.build(10), normal(8, 12, 12, 1)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda s: normal(*s.shape, seed=s.size) / 10, params)
    apply = ops.apply_fn(module)
    slopes = lambda f: lambda p: jax.value_and_grad(lambda p: jnp.sum(jnp.sin(f(p, x))))(p)

    def outside(p):
        with ops.outside_loops():
            return slopes(apply)(p)

    assert taken(outside, params)
    assert ops.slow_in_loops(jax.make_jaxpr(outside)(params))  # called one by one, in blocks that suit
    assert taken(slopes(apply), params)
    native = slopes(lambda p, x: module.apply({"params": p}, x))
    got, want = jax.jit(lambda p: (outside(p), native(p)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, want)
    monkeypatch.setattr(ops, "_on_cpu", lambda: False)
    assert not taken(lambda p: outside(p), params)  # traced anew
    assert lowering.suits(x, params["Conv_0"]["kernel"], (1, 1), (1, 1), ((2, 2), (2, 2)))
