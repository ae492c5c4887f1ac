"""Filter response normalisation: its formula, and that it sees one example and one channel at a time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnn_jax import estimators, norms, ops
from bnn_jax.norms import FilterResponseNorm
from bnn_jax.posteriors import mean_field
from bnn_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

SHAPES = ((4, 7, 3), (4, 5, 6, 3), (2, 3, 2, 4, 3))  # signals, images, volumes


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(channels, seed=1):
    return dict(zip(("gamma", "beta", "tau"), normal(3, channels, seed=seed), strict=True))


def apply(params, x, threshold=True):
    params = params if threshold else {name: params[name] for name in ("gamma", "beta")}
    return FilterResponseNorm(threshold).apply({"params": params}, x)


@pytest.mark.parametrize("threshold", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula(shape, threshold):
    x, params = normal(*shape), weights(3)
    expected = np.empty(shape)
    for b in range(shape[0]):
        for c in range(3):
            one = x[b, ..., c].astype(float)
            nu2 = (one**2).sum() / one.size
            y = params["gamma"][c] * one / np.sqrt(nu2 + 1e-6) + params["beta"][c]
            expected[b, ..., c] = np.maximum(y, params["tau"][c]) if threshold else y
    np.testing.assert_allclose(apply(params, x, threshold), expected, rtol=1e-5, atol=1e-6)


def test_epsilon_bounds_what_small_responses_become():
    """A constant response of sqrt(3) sqrt(epsilon) becomes sqrt(3) / 2, and zero stays zero."""
    params = {"gamma": jnp.ones(1), "beta": jnp.zeros(1)}
    x = jnp.full((1, 4, 4, 1), (3 * norms.EPSILON) ** 0.5)
    np.testing.assert_allclose(apply(params, x, threshold=False), 0.75**0.5, rtol=1e-5)
    np.testing.assert_array_equal(apply(params, 0 * x, threshold=False), 0)
    assert norms.EPSILON == 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_starts_as_relu_of_unit_mean_square(shape):
    x = 5 * normal(*shape)
    outputs, variables = FilterResponseNorm().init_with_output(jax.random.key(0), x)
    assert jax.tree.map(lambda a: (a.shape, a[0].item()), variables) == {
        "params": {"gamma": ((3,), 1.0), "beta": ((3,), 0.0), "tau": ((3,), 0.0)}
    }
    free = apply(variables["params"], x, threshold=False)
    np.testing.assert_array_equal(outputs, nn.relu(free))
    np.testing.assert_allclose(jnp.mean(free**2, range(1, x.ndim - 1)), 1, rtol=1e-5)
    assert set(FilterResponseNorm(threshold=False).init(jax.random.key(0), x)["params"]) == {"gamma", "beta"}


def test_an_example_does_not_depend_on_its_batch():
    x, params = normal(5, 6, 6, 3), weights(3)
    together = apply(params, x)
    for i in range(5):
        np.testing.assert_array_equal(apply(params, x[i : i + 1])[0], together[i])
    other = x.copy()
    other[1:] *= 100
    np.testing.assert_array_equal(apply(params, other)[0], together[0])
    jacobian = jax.jacobian(lambda x: apply(params, x).sum((1, 2)))(x)  # (B, C, *x.shape)
    for i in range(5):
        for c in range(3):
            other = jacobian[i, c].at[i, :, :, c].set(0)
            np.testing.assert_array_equal(other, 0)


def test_the_scale_of_an_example_is_lost():
    x, params = 10 * normal(4, 6, 6, 3), weights(3)
    scales = jnp.asarray([1.0, 2.0, 8.0, 64.0])[:, None, None, None]
    np.testing.assert_allclose(apply(params, scales * x), apply(params, x), atol=1e-5)


def test_of_a_single_position_the_sign_is_left():
    params = {"gamma": jnp.ones(3), "beta": jnp.zeros(3)}
    x = jnp.asarray([[[-3.0, 0.5, 20.0]]])
    np.testing.assert_allclose(apply(params, x, threshold=False), jnp.sign(x), rtol=1e-5)


def test_gradients_are_finite_where_nothing_responds():
    grads = jax.grad(lambda p, x: apply(p, x).sum(), argnums=(0, 1))(weights(3), jnp.zeros((2, 4, 4, 3)))
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(grads))


def test_thresholded_gradients():
    """Above tau a response moves with beta, below with tau: together one a position."""
    x, params = normal(4, 6, 6, 3), weights(3)
    grads = jax.grad(lambda p: apply(p, x).sum())(params)
    above = np.asarray(apply(params, x, threshold=False) > params["tau"]).sum((0, 1, 2))
    np.testing.assert_array_equal(grads["beta"], above)
    np.testing.assert_array_equal(grads["tau"], 4 * 6 * 6 - above)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_half_precision(scale):
    """Squares are taken in float32: in float16, 1e-3 squared is mostly lost and 300 squared infinite."""
    x, params = scale * normal(2, 4, 4, 3), weights(3)
    half = apply(jax.tree.map(jnp.float16, params), x.astype(np.float16))
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(half, apply(params, x), atol=0.02)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_vectors_have_no_positions(shape):
    with pytest.raises(UserError, match=r"^filter response normalisation needs .* not \((2, )?3,?\)"):
        FilterResponseNorm().init(jax.random.key(0), jnp.zeros(shape))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(FilterResponseNorm()(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


@pytest.mark.parametrize("name", ["sampling", "antithetic", "local_reparam", "flipout"])
def test_estimators_that_know_only_linear_layers(name):
    """Of a posterior without width every estimator gives the network itself."""
    x = jnp.asarray(normal(2, 6, 6, 1))
    params = Net().init(jax.random.key(0), x)["params"]
    posterior = mean_field.build(init_std=1e-7)
    estimate = estimators.build(name, Net(), posterior, num_samples=2)
    outputs, _ = estimate(jax.random.key(1), posterior.init(params), x)
    expected = ops.apply_fn(Net())(params, x)
    np.testing.assert_allclose(outputs, jnp.stack([expected, expected]), atol=1e-5)
