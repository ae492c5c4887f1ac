"""The two lowerings of a convolution agree; so do the poolings; `apply_fn` changes no value."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from problems import ConvNet

from bnn_jax import estimators, ops

NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
CASES = {  # (image, window, strides, padding, kernel dilation)
    "1d same": ((9,), (3,), (1,), "SAME", None),
    "1d stride same": ((10,), (4,), (3,), "SAME", None),
    "1d dilated valid": ((11,), (3,), (2,), "VALID", (3,)),
    "2d same": ((7, 6), (3, 3), (1, 1), "SAME", None),
    "2d valid": ((7, 6), (3, 2), (1, 1), "VALID", None),
    "2d stride same": ((7, 8), (3, 2), (2, 3), "SAME", None),
    "2d stride valid": ((8, 7), (2, 3), (3, 2), "VALID", None),
    "2d same lower": ((7, 6), (2, 4), (2, 2), "SAME_LOWER", None),
    "2d dilated same": ((9, 8), (3, 2), (1, 2), "SAME", (2, 3)),
    "2d explicit": ((6, 5), (3, 3), (1, 2), ((2, 0), (1, 3)), None),
    "2d negative": ((8, 9), (3, 3), (1, 2), ((-1, 2), (1, -2)), (1, 2)),
    "2d pointwise": ((4, 4), (1, 1), (2, 2), "VALID", None),
    "2d whole image": ((5, 4), (5, 4), (1, 1), "VALID", None),
    "2d window too large": ((3, 4), (6, 2), (1, 1), "VALID", None),
    "3d same": ((4, 5, 3), (2, 3, 1), (1, 2, 1), "SAME", None),
}


def normal(*shape, dtype=jnp.float32, seed=0):
    """Random numbers that cost no compilation."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def operands(image, window, dtype=jnp.float32, channels=3, features=4):
    return normal(2, *image, channels, dtype=dtype), normal(*window, channels, features, dtype=dtype, seed=1)


def random_params(module, x):
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda s: normal(*s.shape, seed=s.size), shapes)


def has_conv(f, *args) -> bool:
    return "conv_general_dilated[" in str(jax.make_jaxpr(f)(*args))


def value_and_vjp(f, *args):
    """The value, and the gradient of its product with fixed random numbers."""
    out, vjp = jax.vjp(f, *args)
    return out, vjp(normal(*out.shape, dtype=out.dtype, seed=2))


def assert_close(got, want, **tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), **tolerance)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, jnp.float32) for case in CASES] + [("2d stride same", jnp.bfloat16), ("1d same", jnp.bfloat16)],
)
def test_im2col_equals_native(case, dtype):
    """Values, and gradients with respect to both arguments."""
    image, window, strides, padding, dilation = CASES[case]
    x, kernel = operands(image, window, dtype)
    settings = dict(
        window_strides=strides, padding=padding, rhs_dilation=dilation, dimension_numbers=NUMBERS[len(image)]
    )
    ours = lambda x, k: ops.conv_general_dilated(x, k, **settings)
    native = lambda x, k: lax.conv_general_dilated(x, k, **settings)
    assert not has_conv(ours, x, kernel)
    assert has_conv(native, x, kernel)
    got, want = jax.jit(lambda *a: (value_and_vjp(ours, *a), value_and_vjp(native, *a)))(x, kernel)
    tolerance = dict(rtol=1e-5, atol=3e-5) if dtype == jnp.float32 else dict(rtol=0.03, atol=0.2)
    assert_close(got, want, **tolerance)


def test_vmap_over_kernels_stays_a_matrix_product():
    x, kernel = operands((6, 6), (3, 3))
    kernels = normal(3, *kernel.shape)
    f = lambda conv: lambda k: conv(x, k, (1, 1), "SAME", dimension_numbers=NUMBERS[2])
    ours = jax.vmap(f(ops.conv_general_dilated))
    assert not has_conv(ours, kernels)
    got, want = jax.jit(lambda k: (ours(k), jax.vmap(f(lax.conv_general_dilated))(k)))(kernels)
    assert_close(got, want, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        dict(feature_group_count=3),
        dict(lhs_dilation=(2, 1)),
        dict(dimension_numbers=("NCHW", "OIHW", "NCHW")),
        dict(dimension_numbers=("NHWC", "OIHW", "NHWC")),
        dict(dimension_numbers=("NHWC", "HWIO", "NCHW")),
    ],
    ids=["groups", "input dilation", "channels first", "foreign kernel", "foreign output"],
)
def test_everything_else_is_native(changes):
    settings = {"dimension_numbers": NUMBERS[2]} | changes
    layout, kernel_layout, _ = settings["dimension_numbers"]
    x, kernel = operands((6, 5), (3, 2))
    if "feature_group_count" in changes:
        kernel = jnp.concatenate([kernel[:, :, :1]] * 3, -1)
    x, kernel = (
        x.transpose([*map("NHWC".index, layout)]),
        kernel.transpose([*map("HWIO".index, kernel_layout)]),
    )
    f = lambda conv: lambda x, k: conv(x, k, (1, 2), ((1, 1), (0, 2)), **settings)
    assert has_conv(f(ops.conv_general_dilated), x, kernel)
    assert_close(f(ops.conv_general_dilated)(x, kernel), f(lax.conv_general_dilated)(x, kernel), rtol=0)


def test_accelerators_keep_the_native_convolution(monkeypatch):
    module, x = ConvNet(), normal(2, 6, 6, 2)
    params = random_params(module, x)
    assert not has_conv(ops.apply_fn(module), params, x)
    monkeypatch.setattr(ops, "_on_cpu", lambda: False)
    assert has_conv(ops.apply_fn(module), params, x)
    assert str(jax.make_jaxpr(ops.apply_fn(module))(params, x)).count("conv_general_dilated[") == 2


def test_outside_loops_is_native_but_in_what_loops():
    """By the context while tracing; a loop or a map over kernels takes it back; 1x1 stays a product."""
    x, kernel = operands((6, 6), (3, 3))
    kernels = normal(3, *kernel.shape)
    conv = lambda k, x=x: ops.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NUMBERS[2])

    def outside(f):
        def traced(*args):
            with ops.outside_loops():
                return f(*args)

        return traced

    found = jax.make_jaxpr(jax.jit(outside(conv)))(kernel)  # a program within the program
    assert ops.slow_in_loops(found)
    assert not has_conv(conv, kernel)  # the context has ended
    for inner in (
        lambda k: lax.map(ops.in_loop(conv), k),
        jax.vmap(ops.in_loop(conv)),
        lambda k: conv(k[0, :1, :1]),
    ):
        assert not ops.slow_in_loops(jax.make_jaxpr(outside(inner))(kernels))
    for name in estimators.STRATEGIES:
        f = outside(lambda k, name=name: estimators.over_samples(conv, k, name))
        assert ops.slow_in_loops(jax.make_jaxpr(f)(kernels)) == (name == "unroll")
    assert_close(outside(conv)(kernel), conv(kernel), atol=2e-5)
    with pytest.raises(ZeroDivisionError), ops.outside_loops():
        raise ZeroDivisionError
    assert ops.loop_safe()


class Setup(nn.Module):
    """setup()-style: one layer shared by two calls, a 1-D one, a nested module, other Conv settings."""

    def setup(self):
        self.shared = nn.Conv(3, (3, 3), padding="CIRCULAR", kernel_dilation=2)
        self.inner = ConvNet()
        self.grouped = nn.Conv(6, 3, feature_group_count=3, use_bias=False)
        self.line = nn.Conv(2, 3, padding="CAUSAL")
        self.half = nn.Conv(2, (3, 3), (2, 1), padding=1, dtype=jnp.bfloat16)

    def __call__(self, x):
        y = self.shared(nn.swish(self.shared(x)))
        line = self.line(self.grouped(y[:, 0]))
        return self.inner(y[..., :2]).sum(-1) + line.sum((1, 2)) + self.half(y).sum((1, 2, 3))


CONVS = {
    "root": (nn.Conv(4, (3, 3)), (2, 5, 6, 3)),
    "root without bias": (nn.Conv(4, (3, 3), use_bias=False, padding="VALID"), (2, 5, 6, 3)),
    "int window, 1-D": (nn.Conv(4, 3, strides=2), (2, 7, 3)),
    "circular": (nn.Conv(4, (4, 3), padding="CIRCULAR"), (2, 6, 6, 3)),
    "circular dilated": (nn.Conv(4, 3, padding="CIRCULAR", kernel_dilation=2), (2, 7, 3)),
    "causal": (nn.Conv(4, 3, padding="CAUSAL"), (2, 7, 3)),
    "reflect": (nn.Conv(4, (3, 3), padding="REFLECT"), (2, 5, 6, 3)),
    "no batch axis": (nn.Conv(4, (3, 3)), (5, 6, 3)),
    "two batch axes": (nn.Conv(4, (3, 3)), (2, 2, 5, 6, 3)),
    "masked": (nn.Conv(4, (3, 3), mask=np.tri(3)[..., None, None] * np.ones((3, 3, 3, 4))), (2, 5, 6, 3)),
    "bfloat16": (nn.Conv(4, (3, 3), dtype=jnp.bfloat16), (2, 5, 6, 3)),
    "compact": (ConvNet(), (2, 6, 6, 2)),
    "sequential": (nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(2, (2, 2))]), (2, 6, 6, 2)),
}


@pytest.mark.parametrize("name", CONVS)
def test_apply_fn_changes_no_value(name):
    module, shape = CONVS[name]
    x = normal(*shape)
    params = random_params(module, x)
    apply, native = ops.apply_fn(module), lambda p, x: module.apply({"params": p}, x)
    assert not has_conv(apply, params, x)
    assert has_conv(native, params, x)
    got, want = jax.jit(lambda *a: (value_and_vjp(apply, *a), value_and_vjp(native, *a)))(params, x)
    tolerance = dict(rtol=0.03, atol=0.2) if name == "bfloat16" else dict(rtol=1e-5, atol=3e-5)
    assert_close(got, want, **tolerance)


def test_apply_fn_on_setup_modules():
    x = normal(2, 6, 6, 3)
    module = Setup()
    params = random_params(module, x)
    got, want = jax.jit(lambda p: (ops.apply_fn(module)(p, x), module.apply({"params": p}, x)))(params)
    assert_close(got, want, rtol=0.02, atol=0.02)


def test_apply_fn_leaves_a_layers_own_convolution_alone():
    calls = []

    def mine(*args, **kwargs):
        calls.append(1)
        return 2 * lax.conv_general_dilated(*args, **kwargs)

    x = jnp.ones((1, 4, 4, 2))
    for module in (nn.Conv(3, (2, 2), conv_general_dilated=mine), ConvSubclass(3, (2, 2))):
        params = random_params(module, x)
        apply = ops.apply_fn(module)
        assert has_conv(apply, params, x)
        np.testing.assert_array_equal(apply(params, x), module.apply({"params": params}, x))
    assert calls


class ConvSubclass(nn.Conv):
    """Somebody's own layer, which may do anything."""


POOLS = [(ops.max_pool, nn.max_pool), (ops.avg_pool, nn.avg_pool)]


@pytest.mark.parametrize(("ours", "flax"), POOLS, ids=["max", "avg"])
@pytest.mark.parametrize(
    ("image", "window"),
    [
        ((8, 6), (2, 2)),
        ((7, 5), (2, 2)),
        ((9, 8), (3, 2)),
        ((7,), (3,)),
        ((2, 3), (2, 3)),
        ((4, 5, 6), (2, 2, 3)),
    ],
)
def test_pooling_equals_flax(ours, flax, image, window):
    """Values, and gradients: the random inputs have no ties."""
    x = normal(2, *image, 3)
    f, g = lambda x: ours(x, window), lambda x: flax(x, window, window)
    assert_close(*jax.jit(lambda x: (value_and_vjp(f, x), value_and_vjp(g, x)))(x), atol=1e-6)


def test_max_pool_gives_the_gradient_of_ties_to_the_first():
    """As Flax does: of equal entries the first, row by row."""
    x = jnp.array([[0, 2, 1, 1], [2, 2, 1, 1], [3, 0, 5, 4], [3, 0, 4, 5]], jnp.float32)[None, ..., None]
    ours, flax = (
        jax.grad(lambda x, f=f: f(x, (2, 2)).sum())(x)
        for f in (ops.max_pool, lambda x, window: nn.max_pool(x, window, window))
    )
    np.testing.assert_array_equal(ours, flax)


def test_max_pool_has_derivatives_in_both_modes():
    """Of first and second order, under vmap too, as of a selection by hand."""
    x, dx = normal(2, 5, 6, 3), normal(2, 5, 6, 3, seed=1)
    windows = lambda x: jnp.stack([x[:, i:4:2, j::3] for i in range(2) for j in range(3)], -1)
    largest = windows(x).argmax(-1, keepdims=True)
    chosen = lambda x: jnp.take_along_axis(windows(x), largest, -1)[..., 0]
    pool = lambda x: ops.max_pool(x, (2, 3))
    assert_close(jax.jvp(pool, (x,), (dx,)), (chosen(x), chosen(dx)), rtol=1e-6)
    curved = lambda f: lambda x, dx: jax.jvp(jax.grad(lambda x: jnp.sum(f(x) ** 3)), (x,), (dx,))[1]
    want = curved(chosen)(x, dx)
    assert_close(curved(pool)(x, dx), want, rtol=1e-5)
    assert_close(jax.vmap(curved(pool))(x[:, None], dx[:, None])[:, 0], want, rtol=1e-5)


def test_max_pool_passes_nan_on():
    for place in np.ndindex(2, 2):
        x = np.zeros((1, 2, 2, 1), np.float32)
        x[(0, *place, 0)] = np.nan
        assert np.isnan(ops.max_pool(jnp.asarray(x))).all()


def test_layers_come_in_the_order_of_their_calls():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            first = nn.Dense(2, name="z")
            x = first(first(x))  # twice: named once
            return nn.Dense(1, name="a")(Inner(name="m")(nn.LayerNorm()(x)))

    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(3, (1,), name="c")(x)

    assert ops.layers(Net(), (4, 2)) == (("z",), ("m", "c"), ("a",))
    assert ops.layers(nn.Dense(3), (5,)) == ((),)
