"""Names become networks and methods; bfloat16 stays inside the forward pass."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import estimator_names

from bnn_jax import estimators, loop, models, objectives, ops, optimizers, parts
from bnn_jax.likelihoods import gaussian
from bnn_jax.nets import mlp
from bnn_jax.posteriors import mean_field
from bnn_jax.types import Batch, UserError

pytestmark = pytest.mark.usefixtures("quick_compile")
X = np.random.default_rng(0).standard_normal((6, 4, 4, 1)).astype(np.float32)
LABELS = np.arange(6) % 3
HALF = 2.0**-8  # relative rounding error of bfloat16
SIGMAS = 5


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Conv(3, (2, 2))(x)).reshape(x.shape[0], -1))


@functools.cache
def small(compute="float32", prior="fan_in"):
    """Model and initial weights of a small conv net."""
    model = models.build("digits", 3, prior, compute=compute)
    model = model._replace(module=Net(), apply=jax.jit(ops.apply_fn(Net(), model.dtype)))
    return model, models.init(jax.random.key(1), model, X)


def dtypes(tree):
    return {a.dtype for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)}


# --- init ------------------------------------------------------------------------------------------------


def test_initial_weights_are_those_of_the_module():
    """Of one key or of several, of the announced shapes; other optimisations of LLVM round otherwise."""
    model, params = small()
    plain = lambda key: model.module.init(key, jnp.asarray(X[:1], jnp.float32))["params"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, params, jax.jit(plain)(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(2), 3)
    jax.tree.map(close, models.init(keys, model, X), jax.jit(jax.vmap(plain))(keys))
    like = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert like(models.shapes(model, X)) == like(params)


# --- build -----------------------------------------------------------------------------------------------


def test_weights_of_no_entries():
    class Empty(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x) + self.param("shift", nn.initializers.zeros, (0,)).sum()

    model = models.build("mlp", 2)._replace(module=Empty())
    with pytest.raises(ValueError, match=r"shift has no weights, shape \(0,\)"):
        models.shapes(model, np.zeros((3, 4)))


def test_classification():
    model = models.build("digits", 10)
    params = models.shapes(model, np.zeros((3, 8, 8, 1)))
    outputs = jax.eval_shape(model.apply, params, jnp.zeros((5, 8, 8, 1)))
    assert outputs.shape == (5, 10)
    assert model.likelihood.task == "classification"
    assert jax.eval_shape(model.likelihood.log_prob, outputs, jnp.zeros(5, int)).shape == (5,)
    assert model.dtype is None


@pytest.mark.parametrize("noise", models.NOISES)
def test_regression(noise, monkeypatch):
    """One level of noise is one more weight, the same for all inputs; else the network gives it."""
    monkeypatch.setattr(mlp, "build", lambda outputs: mlp.MLP(outputs, (4,)))
    model = models.build("mlp", 0, noise=noise)
    x = jax.random.normal(jax.random.key(0), (6, 3))
    params = models.init(jax.random.key(1), model, np.asarray(x, np.float64))
    outputs = model.apply(params, x)
    assert model.likelihood.task == "regression"
    assert model.likelihood.mean(outputs).shape == (6,)
    levels = np.unique(model.likelihood.noise(outputs))
    assert ("log_sigma" in params) == (noise == "learned") == (len(levels) == 1)
    want = gaussian.build().log_prob(outputs, jnp.ones(6))
    np.testing.assert_array_equal(model.likelihood.log_prob(outputs, jnp.ones(6)), want)


def test_known_noise_of_a_regression():
    model = models.build("mlp(hidden=(4,))", 0, noise="0.5")
    x = jax.random.normal(jax.random.key(0), (6, 3))
    params = models.init(jax.random.key(1), model, x)
    assert "log_sigma" not in params
    outputs = model.apply(params, x)
    np.testing.assert_array_equal(model.likelihood.noise(outputs), 0.25)
    want = gaussian.build(0.5).log_prob(outputs, jnp.ones(6))
    np.testing.assert_array_equal(model.likelihood.log_prob(outputs, jnp.ones(6)), want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lenet9", 3), "unknown network 'lenet9'"),
        (("mlp", 3, "flat"), "unknown prior 'flat'"),
        (("mlp", 0, "fan_in", "loud"), "unknown noise 'loud': choose from learned, input, or give a number"),
        (("mlp", 0, "fan_in", "-1"), "the noise sigma must be a positive number"),
        (("mlp", 3, "fan_in", "learned", "float16"), "unknown compute dtype 'float16'.*float32, bfloat16"),
    ],
)
def test_unknown_parts(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        models.build(*arguments)
    assert "\n" not in str(error.value)


# --- method ----------------------------------------------------------------------------------------------


def method(name, model, **changes):
    settings = dict(optimizer=optax.sgd(1e-3), beta=1.0, num_warmup=5, trajectory_length=0.1)
    settings |= dict(x_shape=X.shape[1:], batch_size=4, num_steps=100, constant_optimizer=optax.sgd(1e-3))
    return models.method(name, model, 160, **settings | dict(max_tree_depth=3) | changes)


@pytest.mark.parametrize("name", parts.names("method"))
def test_every_method_takes_a_step(name):
    model, params = small()
    algorithm = method(name, model)
    state = algorithm.init(jax.random.key(0), params)
    state, info = jax.eval_shape(algorithm.step, jax.random.key(1), state, Batch(X, LABELS))
    assert info
    draw = jax.eval_shape(algorithm.sample, jax.random.key(2), state)
    assert jax.tree.map(jnp.shape, draw) == jax.tree.map(jnp.shape, params)


def test_the_objective_is_that_of_the_parts():
    """log p(w) + N mean log p(y | x, w), N being what was said and not the batch; another likelihood
    replaces the model's."""
    model, params = small()
    louder = model.likelihood._replace(log_prob=lambda o, y: 3 * model.likelihood.log_prob(o, y))
    log_p = model.likelihood.log_prob(model.apply(params, X), LABELS).mean()
    for likelihood, times in ((None, 1), (louder, 3)):
        algorithm = method("map", model, likelihood=likelihood)
        state = algorithm.init(jax.random.key(0), params)
        _, info = jax.jit(algorithm.step)(jax.random.key(1), state, Batch(X, LABELS))
        want = model.prior.log_prob(params) + 160 * times * log_p
        np.testing.assert_allclose(info["log_joint"], want, rtol=1e-5)


def test_a_prior_without_closed_form_hinders_vi_only():
    model, _ = small(prior="laplace")
    for name in ("map", "hmc", "nuts"):
        method(name, model)
    method("vi", model, kl="monte_carlo")
    with pytest.raises(UserError, match="closed-form KL needs a Gaussian prior"):
        method("vi", model)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gibbs", {}, f"unknown method 'gibbs': choose from {', '.join(parts.names('method'))}$"),
        ("vi", dict(posterior="flow"), "unknown posterior 'flow'"),
        ("vi", dict(estimator="magic"), "unknown estimator 'magic': choose from sampling"),
        ("vi", dict(num_samples=0), "num_samples must be at least 1"),
        ("vi", dict(estimator="antithetic", num_samples=3), "even number of samples"),
        ("vi", dict(kl="exact"), "unknown kl 'exact'"),
        ("hmc", dict(trajectory_length=-1.0), "trajectory_length must be a positive number"),
    ],
)
def test_parts_that_do_not_go_together(name, changes, message):
    model, _ = small()
    with pytest.raises(UserError, match=message) as error:
        method(name, model, **changes)
    assert "\n" not in str(error.value)


# --- bfloat16 --------------------------------------------------------------------------------------------


def relative(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_bf16_network():
    """Two layers, each rounding weights, inputs and outputs: a few times 2^-8."""
    params = small()[1]
    outputs = {compute: small(compute)[0].apply(params, X) for compute in models.DTYPES}
    assert outputs["bfloat16"].dtype == jnp.float32
    error = relative(outputs["bfloat16"], outputs["float32"])
    assert HALF / 10 < error < 5 * HALF
    gradient = jax.jit(jax.grad(lambda p: small("bfloat16")[0].apply(p, X).sum()))(params)
    assert dtypes(gradient) == {jnp.dtype("float32")}
    assert dtypes(params) == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", estimator_names())
def test_bf16_estimators(name):
    """The same draws in both precisions, close to each other; gradients are finite and float32."""
    family = mean_field.build()
    phi = family.init(small()[1])
    phi = phi._replace(rho=jax.tree.map(lambda a: jnp.full_like(a, -2.0), phi.rho))  # std 0.13
    found = {}
    for compute in models.DTYPES:
        model, _ = small(compute)
        size = 2 if name == "antithetic" else 1
        through = estimators.build(name, model.module, family, size, dtype=model.dtype)

        def loss(phi, through=through):
            outputs, weights = through(jax.random.key(3), phi, X)
            return (outputs**2).mean(), (outputs, weights)

        found[compute] = jax.jit(jax.grad(loss, has_aux=True))(phi)
    low_grad, (low, low_weights) = found["bfloat16"]
    grad, (high, weights) = found["float32"]
    assert low.dtype == jnp.float32
    assert HALF / 10 < relative(low, high) < 5 * HALF
    if weights is not None:  # what the Monte Carlo KL sees
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), low_weights, weights)
    assert dtypes(low_grad) == {jnp.dtype("float32")}
    flat, low_flat = (np.concatenate([np.ravel(a) for a in jax.tree.leaves(g)]) for g in (grad, low_grad))
    assert np.isfinite(low_flat).all()
    assert relative(low_flat, flat) < 10 * HALF


@pytest.mark.parametrize("name", estimator_names())
def test_bf16_products_are_bf16(name):
    """No matrix product or convolution falls back to float32, which would cost what bfloat16 saves."""
    model, params = small("bfloat16")
    family = mean_field.build()
    through = estimators.build(name, model.module, family, 2, dtype=model.dtype)
    printed = str(jax.make_jaxpr(through)(jax.random.key(0), family.init(params), X))
    products = re.findall(r":(\w+)\[[^\]]*\] = (?:dot_general|conv_general_dilated)\[", printed)
    assert len(products) >= 4
    assert set(products) == {"bf16"}


def test_bf16_noise_of_local_reparam_is_normal():
    """One Dense layer with mean 0 and std 1 sees x = 1: outputs are standard normal, in the tails, too."""
    model = models.build("mlp", 10)._replace(module=mlp.MLP(1, ()))
    family = mean_field.build()
    phi = family.init({"Dense_0": {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}})
    rho = {"Dense_0": {"kernel": jnp.full((1, 1), float(np.log(np.expm1(1)))), "bias": jnp.full(1, -30.0)}}
    through = estimators.build("local_reparam", model.module, family, 1, dtype=jnp.bfloat16)
    count = 200_000
    outputs, _ = jax.jit(through)(jax.random.key(0), phi._replace(rho=rho), jnp.ones((count, 1)))
    z = np.asarray(outputs).ravel()
    assert abs(z.mean()) < SIGMAS / np.sqrt(count)
    assert abs((z**2).mean() - 1) < SIGMAS * np.sqrt(2 / count) + 2 * HALF**2
    beyond = 2 * 1.349898e-3  # beyond 3 to either side
    assert abs((np.abs(z) > 3).mean() - beyond) < SIGMAS * np.sqrt(beyond / count) + beyond * 3 * 3.3 * HALF


@pytest.mark.parametrize(("estimator", "kl"), [("flipout", "closed_form"), ("sampling", "monte_carlo")])
def test_bf16_leaves_the_kl_alone(estimator, kl):
    """The KL of float32 whatever the forward pass, which in bfloat16 would be off by 2^-9 of its terms."""
    params, family, found = small()[1], mean_field.build(), {}
    for compute in models.DTYPES:
        model, _ = small(compute)
        through = estimators.build(estimator, model.module, family, 1, dtype=model.dtype)
        bound = objectives.elbo(through, family, model.prior, model.likelihood, 100, kl)
        found[compute] = jax.jit(bound)(jax.random.key(0), family.init(params), Batch(X, LABELS), 1.0)[1]
    assert found["bfloat16"]["kl"].dtype == jnp.float32
    np.testing.assert_allclose(found["bfloat16"]["kl"], found["float32"]["kl"], rtol=1e-6)
    assert float(found["bfloat16"]["nll"]) != float(found["float32"]["nll"])


@pytest.mark.parametrize("name", ["map", "vi"])
def test_bf16_training_keeps_weights_and_optimizer_in_float32(name):
    model, params = small("bfloat16")
    algorithm = method(name, model, optimizer=optimizers.build("adam", 1e-3, 4))
    data = Batch(X, LABELS)
    state, history = loop.fit(jax.random.key(0), algorithm, params, data, num_steps=4, batch_size=3)
    assert dtypes(state) == {jnp.dtype("float32")}
    assert dtypes(algorithm.sample(jax.random.key(0), state)) == {jnp.dtype("float32")}
    assert all(np.isfinite(value).all() for value in history.values())


@pytest.mark.parametrize("name", estimator_names())
def test_gradients_are_finite_where_xla_computes_activations_twice(name):
    """With few optimisations the backward pass evaluates swish again, a last bit different: a pooling that
    looked for the entries that equal the maximum found none, and divided zero by zero."""
    model = models.build("digits", 10)
    x, y = jax.random.normal(jax.random.key(0), (64, 8, 8, 1)), jnp.arange(64) % 10
    family = mean_field.build()
    through = estimators.build(name, model.module, family, 2)
    elbo = objectives.elbo(through, family, model.prior, model.likelihood, 64)
    value = jax.jit(jax.grad(lambda phi: elbo(jax.random.key(2), phi, Batch(x, y), 1.0)[0]))
    grads = value(family.init(models.init(jax.random.key(1), model, x)))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(grads))
