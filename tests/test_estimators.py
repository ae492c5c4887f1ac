"""Estimators: what a distribution over weights looks like after it has passed through a network."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import conv_problem, estimator_names

from bnn_jax import estimators, objectives
from bnn_jax.likelihoods import categorical
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import isotropic
from bnn_jax.types import UserError

SIGMAS = 5


pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(autouse=True, scope="module")
def key_reuse():
    """Every test looks for reused keys."""
    with jax.debug_key_reuse(True):
        yield


NAMES = estimator_names()
WITH_DRAWS = ["sampling", "antithetic"]  # the weights come back; the others draw activations
INTERCEPTING = [name for name in NAMES if name not in WITH_DRAWS]


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(5)(x)))


class Inner(nn.Module):
    def setup(self):
        self.hidden = nn.Dense(4)
        self.head = nn.Dense(2)

    def __call__(self, x):
        return self.head(nn.tanh(self.hidden(x)))


class Nested(nn.Module):
    """Layers made in `setup`, one of them a module with a `setup` of its own."""

    def setup(self):
        self.conv = nn.Conv(3, (2, 2))
        self.inner = Inner()

    def __call__(self, x):
        x = nn.tanh(self.conv(x))
        return self.inner(x.reshape(x.shape[0], -1))


class Twice(nn.Module):
    """One layer, two calls, both outputs."""

    def setup(self):
        self.dense = nn.Dense(3)

    def __call__(self, x):
        return jnp.stack([self.dense(x), self.dense(x)], -1)


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (2, 2), mask=jnp.ones((2, 2, x.shape[-1], 2)))(x)


class Scaled(nn.Module):
    """A layer and a parameter that belongs to none."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, use_bias=False)(x) * self.param("scale", nn.initializers.ones_init(), (2,))


def within(difference, error, slack=1e-6):
    """Every entry is zero up to `SIGMAS` standard errors (and rounding)."""
    difference, error = np.abs(np.asarray(difference)), np.asarray(error)
    worst = np.max((difference - slack) / np.maximum(error, slack))
    assert worst < SIGMAS, f"{worst:.1f} standard errors apart"


def mean_se(samples):
    """The mean over the leading axis and its standard error, in float64."""
    samples = np.asarray(samples, np.float64)
    return samples.mean(0), samples.std(0, ddof=1) / len(samples) ** 0.5


def phi_of(mean, std):
    """Mean-field parameters with chosen standard deviations, a number or a pytree."""
    if not isinstance(std, dict):
        std = jax.tree.map(lambda a: jnp.full_like(a, std), mean)
    return mean_field.MeanField(mean, jax.tree.map(lambda s: s + jnp.log(-jnp.expm1(-s)), std))


@functools.cache
def program(name, module):
    """The estimator over many keys, (keys, phi, x) -> (outputs, weights): compiled once a shape."""
    estimator = estimators.build(name, module, mean_field.build(), 2)
    return jax.jit(jax.vmap(estimator, (0, None, None)))


def outputs(name, module, phi, x, count, seed=0):
    """Outputs over many keys, two samples each, in float64: (2 * count, B, ...)."""
    found, _ = program(name, module)(jax.random.split(jax.random.key(seed), count), phi, x)
    return np.asarray(found, np.float64).reshape(-1, *found.shape[2:])


@pytest.fixture(scope="module")
def conv():
    module, params, batch = conv_problem()
    return module, params, batch, phi_of(params, 0.1)


def test_the_estimators_are_those_that_the_tests_know():
    assert set(WITH_DRAWS) < set(NAMES)
    assert {"local_reparam", "flipout"} <= set(INTERCEPTING)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_keys_jit_vmap(name, conv):
    module, params, batch, phi = conv
    estimator = estimators.build(name, module, mean_field.build(), 2)
    out, weights = program(name, module)(jax.random.split(jax.random.key(0), 3), phi, batch.x)
    eager, _ = estimator(jax.random.split(jax.random.key(0), 3)[1], phi, batch.x)
    assert out.shape == (3, 2, 6, 3)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out[1], eager, atol=1e-5)
    assert len(np.unique(out[:, :, 0, 0])) == 6, "samples or keys share noise"
    assert (weights is not None) == (name in WITH_DRAWS)
    if weights is not None:
        jax.tree.map(lambda w, p: np.testing.assert_equal(w.shape, (3, 2, *p.shape)), weights, params)
        last = jax.tree.map(lambda w: w[2, 1], weights)
        np.testing.assert_allclose(module.apply({"params": last}, batch.x), out[2, 1], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_strategies_give_the_same_numbers(name):
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
    phi = phi_of({"kernel": jnp.linspace(-1, 1, 8).reshape(2, 2, 1, 2)}, 0.3)
    module = nn.Conv(2, (2, 2), use_bias=False)
    strategies = (*estimators.STRATEGIES, "map(2)", "map(3)", "map(9)", None, lambda f, xs: jax.vmap(f)(xs))
    built = [estimators.build(name, module, mean_field.build(), 4, strategy) for strategy in strategies]
    found = [jax.jit(estimator)(jax.random.key(3), phi, x)[0] for estimator in built]
    assert found[0].shape == (4, 2, 3, 3, 2)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-6)
    squares = lambda phi, estimate: jnp.sum(estimate(jax.random.key(3), phi, x)[0] ** 2)
    chosen = [built[strategies.index(strategy)] for strategy in ("vmap", "map", "map(3)")]
    first, *others = [jax.jit(jax.grad(squares), static_argnums=1)(phi, estimate) for estimate in chosen]
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), other, first)


def test_the_memory_of_a_chunk():
    """That of a gradient over 12 samples, by what the compiler plans: of one of them under "map", of four
    under "map(4)"."""
    module, x = nn.Sequential([nn.Dense(64), jnp.tanh, nn.Dense(64), jnp.tanh]), jnp.ones((500, 8))
    phi = phi_of(module.init(jax.random.key(0), x)["params"], 0.1)

    def planned(strategy, count):
        estimate = estimators.build("flipout", module, mean_field.build(), count, strategy)
        loss = lambda phi: jnp.mean(jnp.mean(estimate(jax.random.key(0), phi, x)[0], 0) ** 2)
        return jax.jit(jax.grad(loss)).lower(phi).compile().memory_analysis().temp_size_in_bytes

    outputs = 4 * 12 * 500 * 64  # bytes: all samples' are kept, and their gradients
    one, four, every = (planned("vmap", count) for count in (1, 4, 12))
    assert planned("map", 12) < one + 3 * outputs < every / 2
    assert planned("map(4)", 12) < four + 3 * outputs < every


def gradients(name, module, phi, batch, count):
    """The ELBO's gradient in phi, for `count` keys: (count, 2P)."""
    posterior = mean_field.build()
    estimator = estimators.build(name, module, posterior, 2, "vmap")
    bound = objectives.elbo(estimator, posterior, isotropic.build(), categorical.build(), len(batch.x))
    grad = jax.grad(lambda phi, key: bound(key, phi, batch, 1.0)[0])
    keys = jax.random.split(jax.random.key(len(name)), count)
    return jax.jit(jax.vmap(lambda key: ravel_pytree(grad(phi, key))[0]))(keys)


@pytest.fixture(scope="module")
def sampling_gradient(conv):
    module, params, batch, _ = conv
    return mean_se(gradients("sampling", module, phi_of(params, 0.3), batch, 3000))


@pytest.mark.parametrize("name", ["antithetic", "flipout"])
def test_mean_gradient_on_a_convolutional_net(name, conv, sampling_gradient):
    """Exact estimators share one ELBO, so the mean of their gradients. Local reparameterisation of a
    convolution does not: see the test of its covariance."""
    module, params, batch, _ = conv
    mean, error = mean_se(gradients(name, module, phi_of(params, 0.3), batch, 3000))
    within(mean - sampling_gradient[0], np.hypot(error, sampling_gradient[1]), slack=1e-5)
    assert np.mean(np.abs(sampling_gradient[0]) > 10 * error) > 0.3, "too noisy to tell"


@pytest.mark.parametrize("name", INTERCEPTING)
def test_mean_gradient_on_a_dense_net(name):
    batch = conv_problem()[2]
    batch = batch._replace(x=batch.x.reshape(6, -1)[:, :4])
    phi = phi_of(Mlp().init(jax.random.key(5), batch.x)["params"], 0.4)
    reference, error = mean_se(gradients("sampling", Mlp(), phi, batch, 4000))
    mean, own_error = mean_se(gradients(name, Mlp(), phi, batch, 4000))
    within(mean - reference, np.hypot(error, own_error), slack=1e-5)


@pytest.mark.parametrize("name", INTERCEPTING)
def test_moments_of_a_convolution(name):
    """Stride and padding included, each output has the mean and variance that sampled weights give."""
    module = nn.Conv(3, (3, 3), strides=2, padding=((1, 0), (0, 2)))
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 2))
    phi = phi_of(module.init(jax.random.key(1), x)["params"], 0.3)
    reference = outputs("sampling", module, phi, x, 4000, seed=1)
    found = outputs(name, module, phi, x, 4000, seed=2)
    for power in (1, 2):
        centre = 0 if power == 1 else reference.mean(0)
        mean, error = mean_se((reference - centre) ** power)
        own_mean, own_error = mean_se((found - centre) ** power)
        within(mean - own_mean, np.hypot(error, own_error))


@pytest.mark.parametrize("name", NAMES)
def test_covariance_between_positions_and_examples(name):
    """Two positions of a convolution share their weights. Local reparameterisation forgets that, as its
    docstring says; flipout keeps it within an example and breaks it between examples."""
    module = nn.Conv(1, (1, 1), use_bias=False)
    x = jnp.ones((2, 2, 1, 3))
    phi = phi_of({"kernel": jnp.full((1, 1, 3, 1), 0.5)}, 0.2)
    found = outputs(name, module, phi, x, 3000)[::2, :, :, 0, 0] - 1.5  # (3000, example, position)
    variance = 3 * 0.2**2
    shared = name in WITH_DRAWS
    expected = {
        "position": (found[:, 0, 0] * found[:, 0, 1], variance if name != "local_reparam" else 0),
        "example": (found[:, 0, 0] * found[:, 1, 0], variance if shared else 0),
    }
    for product, covariance in expected.values():
        mean, error = mean_se(product)
        within(mean - covariance, error)


def test_flipout_has_one_sign_an_example_and_channel():
    """On a 1x1 identity convolution the perturbation of a constant image is the same at all positions."""
    module = nn.Conv(4, (1, 1), use_bias=False)
    x = jnp.ones((16, 3, 5, 4))
    phi = phi_of({"kernel": jnp.eye(4)[None, None]}, 0.1)
    perturbation = outputs("flipout", module, phi, x, 1)[0] - np.asarray(x)
    assert np.abs(perturbation).min() > 0
    np.testing.assert_allclose(perturbation, np.broadcast_to(perturbation[:, :1, :1], x.shape), atol=1e-6)
    signs = np.sign(perturbation[:, 0, 0])
    assert len(np.unique(signs, axis=0)) > 4, "the signs do not depend on example and channel"
    sizes = np.abs(perturbation[:, 0, 0])
    assert (sizes.max(0) > 1.5 * sizes.min(0)).all(), "the input channels have no signs of their own"


@pytest.mark.parametrize("name", INTERCEPTING)
def test_inputs_of_zero_have_finite_gradients(name):
    """Local reparameterisation takes the square root of a variance that is zero there."""
    module = nn.Conv(2, (2, 2), use_bias=False)
    x = jnp.zeros((1, 3, 3, 1))
    phi = phi_of({"kernel": jnp.ones((2, 2, 1, 2))}, 0.1)
    keys = jax.random.split(jax.random.key(0), 1)
    grads = jax.grad(lambda phi, x: program(name, module)(keys, phi, x)[0].sum(), (0, 1))(phi, x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", NAMES)
def test_tiny_std_is_the_deterministic_net(name, conv):
    module, params, batch, _ = conv
    out = outputs(name, module, phi_of(params, 1e-8), batch.x, 3)
    expected = np.asarray(module.apply({"params": params}, batch.x))
    np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), atol=1e-5)


def test_antithetic_pairs_cancel_odd_functions():
    """f(mean + d) + f(mean - d) = 2 f(mean) where f is odd around the mean: no variance is left."""
    x = jax.random.normal(jax.random.key(0), (4, 3))
    for f, mean in ((lambda w, x: x @ w, 1.5), (lambda w, x: jnp.tanh(x * w.T) ** 3, 0.0)):
        phi = phi_of({"w": jnp.full((3, 1), mean)}, 0.7)
        estimator = estimators.antithetic(lambda p, x, f=f: f(p["w"], x), mean_field.build(), 2)
        out, _ = jax.vmap(estimator, (0, None, None))(jax.random.split(jax.random.key(1), 50), phi, x)
        assert np.std(out) > 0.1
        expected = np.asarray(f(phi.mean["w"], x))[None]
        np.testing.assert_allclose(out.mean(1), np.broadcast_to(expected, out.mean(1).shape), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_layer_is_a_network(name):
    """The root itself is the layer; its outputs have the exact mean and variance."""
    module = nn.Dense(2)
    x = jax.random.normal(jax.random.key(0), (3, 4))
    params = {"kernel": jnp.linspace(-1, 1, 8).reshape(4, 2), "bias": jnp.array([0.5, -2.0])}
    found = outputs(name, module, phi_of(params, 0.3), x, 3000)
    centre = np.asarray(module.apply({"params": params}, x))
    variance = np.broadcast_to(0.09 * (1 + np.sum(np.square(x), 1, keepdims=True)), centre.shape)
    halves = found.reshape(-1, 2, 3, 2)  # the two samples of one key, dependent where they are a pair
    mean, error = mean_se(halves.mean(1))
    within(mean - centre, error, slack=1e-5)
    mean, error = mean_se(np.square(halves - centre).mean(1))
    within(mean - variance, error)


@pytest.mark.parametrize("name", INTERCEPTING)
def test_modules_made_in_setup_are_intercepted(name):
    """In every layer: with noise in that layer alone, examples do not share the noise of their weights."""
    x = jnp.repeat(jax.random.normal(jax.random.key(0), (1, 3, 3, 1)), 2, 0)  # two equal examples
    params = Nested().init(jax.random.key(2), x)["params"]
    assert set(params) == {"conv", "inner"}
    layers = [("conv",), ("inner", "hidden"), ("inner", "head")]
    for layer in layers:
        noisy = lambda path, a, layer=layer: jnp.full_like(
            a, 0.3 if tuple(p.key for p in path[:-1]) == layer else 1e-8
        )
        phi = phi_of(params, jax.tree_util.tree_map_with_path(noisy, params))
        found = outputs(name, Nested(), phi, x, 20)
        centre = np.asarray(Nested().apply({"params": params}, x))
        assert np.abs(found - centre).max(0).min() > 1e-2, f"{layer} has no noise"
        assert np.abs(found[:, 0] - found[:, 1]).max() > 1e-2, f"{layer} was not intercepted"
    sampled = outputs("sampling", Nested(), phi, x, 20)
    np.testing.assert_allclose(sampled[:, 0], sampled[:, 1], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_called_twice(name):
    """Independent noise at each call, the same moments; sampled weights are the same in both calls."""
    x = jnp.array([[1.0, -2.0]])
    phi = phi_of(Twice().init(jax.random.key(0), x)["params"], 0.3)
    found = outputs(name, Twice(), phi, x, 2000)[::2] - np.asarray(Twice().apply({"params": phi.mean}, x))
    mean, error = mean_se(found[..., 0] * found[..., 1])
    if name in WITH_DRAWS:
        np.testing.assert_allclose(found[..., 0], found[..., 1], atol=1e-6)
    else:
        within(mean, error)
    mean, error = mean_se(np.square(found))
    within(mean - 0.3**2 * 6, error)


@pytest.mark.parametrize("name", NAMES)
def test_other_parameters_are_sampled(name):
    """Noise in the free parameter alone reaches the outputs, with the right variance."""
    x = jnp.array([[1.0, -2.0], [0.5, 3.0]])
    params = {"Dense_0": {"kernel": jnp.array([[1.0, 2.0], [3.0, -1.0]])}, "scale": jnp.ones(2)}
    phi = phi_of(params, {"Dense_0": {"kernel": jnp.full((2, 2), 1e-8)}, "scale": jnp.full(2, 0.2)})
    found = outputs(name, Scaled(), phi, x, 2000)[::2]
    centre = np.asarray(Scaled().apply({"params": params}, x))
    mean, error = mean_se(np.square(found / centre - 1))
    within(mean - 0.2**2, error)


def test_errors():
    module, posterior = nn.Dense(1), mean_field.build()
    with pytest.raises(UserError, match=r"unknown estimator 'samplin': choose from sampling, antithetic"):
        estimators.build("samplin", module, posterior, 1)
    with pytest.raises(UserError, match="an even number of samples, not 3"):
        estimators.build("antithetic", module, posterior, 3)
    with pytest.raises(UserError, match="num_samples must be at least 2, not 1"):
        estimators.build("antithetic", module, posterior, 1)
    for name in NAMES:
        with pytest.raises(UserError, match="num_samples must be at least"):
            estimators.build(name, module, posterior, 0)
    skewed = posterior._replace(moments=None)
    estimators.build("sampling", module, skewed, 1)
    for name in set(NAMES) - {"sampling"}:
        with pytest.raises(UserError, match=f"{name} needs independent symmetric weights"):
            estimators.build(name, module, skewed, 2)


@pytest.mark.parametrize("strategy", ["fast", "map(0)", "unroll(2)", "map (2)"])
@pytest.mark.parametrize("name", NAMES)
def test_unknown_strategy(name, strategy):
    estimator = estimators.build(name, nn.Dense(1), mean_field.build(), 2, strategy)
    x = jnp.ones((1, 2))
    phi = phi_of(nn.Dense(1).init(jax.random.key(0), x)["params"], 0.1)
    message = f"unknown strategy '{strategy}': choose from vmap, unroll, map, map(c)"
    with pytest.raises(UserError, match=re.escape(message)):
        estimator(jax.random.key(0), phi, x)


def test_local_reparam_refuses_masks():
    x = jnp.ones((1, 3, 3, 1))
    phi = phi_of(Masked().init(jax.random.key(0), x)["params"], 0.1)
    estimator = estimators.build("local_reparam", Masked(), mean_field.build(), 1)
    with pytest.raises(UserError, match="masked layers"):
        estimator(jax.random.key(0), phi, x)
