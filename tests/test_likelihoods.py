"""Every likelihood equals SciPy's, predicts what it says, and fits every estimator."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from bnn_jax import estimators, likelihoods, objectives, ops, parts
from bnn_jax.likelihoods import bernoulli, categorical, gaussian
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import isotropic
from bnn_jax.types import Batch, UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((7, 4))).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1, 3], np.int32)
BINARY = np.array([0, 1, 1, 0, 1, 0, 1], np.int32)
Y = RNG.standard_normal(7).astype(np.float32)
CASES = {  # likelihood, outputs, targets, SciPy's log density, mean, noise
    "categorical": (
        categorical.build(),
        LOGITS,
        LABELS,
        special.log_softmax(LOGITS, -1)[np.arange(7), LABELS],
        special.softmax(LOGITS, -1),
        stats.entropy(special.softmax(LOGITS, -1), axis=-1),
    ),
    "bernoulli": (
        bernoulli.build(),
        LOGITS[:, 0],
        BINARY,
        stats.bernoulli.logpmf(BINARY, special.expit(LOGITS[:, 0])),
        np.stack([special.expit(-LOGITS[:, 0]), special.expit(LOGITS[:, 0])], -1),
        stats.bernoulli.entropy(special.expit(LOGITS[:, 0])),
    ),
    "gaussian, known noise": (
        gaussian.build(0.4),
        LOGITS[:, 0],
        Y,
        stats.norm.logpdf(Y, LOGITS[:, 0], 0.4),
        LOGITS[:, 0],
        np.full(7, 0.16),
    ),
    "gaussian, noise of the input": (
        gaussian.build(),
        LOGITS[:, :2],
        Y,
        stats.norm.logpdf(Y, LOGITS[:, 0], np.exp(LOGITS[:, 1])),
        LOGITS[:, 0],
        np.exp(2 * LOGITS[:, 1]),
    ),
}


def test_every_likelihood_is_tested():
    assert {name.split(",")[0] for name in CASES} == set(parts.names("likelihood"))


@pytest.mark.parametrize("name", CASES)
def test_equals_scipy(name):
    likelihood, outputs, y, log_prob, mean, noise = CASES[name]
    everything = jax.jit(lambda o, y: (likelihood.log_prob(o, y), likelihood.mean(o), likelihood.noise(o)))
    for got, want in zip(everything(outputs, y), (log_prob, mean, noise), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    if outputs.ndim == 1:
        np.testing.assert_array_equal(
            likelihood.log_prob(outputs[:, None], y), likelihood.log_prob(outputs, y)
        )
    if likelihood.task == "classification":
        np.testing.assert_allclose(likelihood.mean(outputs).sum(-1), 1, rtol=1e-6)
    else:
        assert likelihood.task == "regression"


@pytest.mark.parametrize("build", [categorical.build, bernoulli.build])
def test_extreme_logits_stay_finite(build):
    """Saturated classes: finite values and gradients, probabilities 0 and 1, entropy 0."""
    likelihood = build()
    column = jnp.array([1e4, -1e4, 1e30, -1e30, 0.0])
    outputs = column if build is bernoulli.build else jnp.stack([column, -column, 0 * column], -1)
    for y in (0, 1):
        targets = jnp.full(5, y)
        value, grad = jax.value_and_grad(lambda o, y=targets: likelihood.log_prob(o, y).sum())(outputs)
        assert jnp.isfinite(value)
        assert jnp.isfinite(grad).all()
    assert jnp.isfinite(likelihood.noise(outputs)).all()
    np.testing.assert_allclose(likelihood.noise(outputs)[:4], 0, atol=1e-6)
    np.testing.assert_allclose(likelihood.mean(outputs).sum(-1), 1, rtol=1e-6)
    grad = jax.grad(lambda o: likelihood.noise(o).sum())(outputs)
    assert jnp.isfinite(grad).all()


def test_gradients_equal_the_gather_form():
    gather = lambda o: jnp.take_along_axis(jax.nn.log_softmax(o), LABELS[:, None], -1).sum()
    ours = lambda o: categorical.build().log_prob(o, LABELS).sum()
    np.testing.assert_allclose(jax.grad(ours)(LOGITS), jax.grad(gather)(LOGITS), atol=1e-6)
    one_logit = LOGITS[:, 1]
    two = lambda o: jnp.take_along_axis(
        jax.nn.log_softmax(jnp.stack([0 * o, o], -1)), BINARY[:, None], -1
    ).sum()
    ours = lambda o: bernoulli.build().log_prob(o, BINARY).sum()
    np.testing.assert_allclose(jax.grad(ours)(one_logit), jax.grad(two)(one_logit), atol=1e-6)


def test_entropy_of_certainty_is_zero():
    assert likelihoods.entropy(jnp.array([0.0, -jnp.inf])) == 0


@pytest.mark.parametrize(
    ("likelihood", "shape"),
    [
        (categorical.build(), (7,)),
        (categorical.build(), (7, 1)),
        (categorical.build(), (7, 2, 4)),
        (bernoulli.build(), (7, 2)),
        (bernoulli.build(), (7, 1, 1)),
        (gaussian.build(0.4), (7, 2)),
        (gaussian.build(), (7,)),
        (gaussian.build(), (7, 3)),
    ],
)
def test_wrong_output_shapes(likelihood, shape):
    outputs, y = jnp.zeros(shape), jnp.zeros(7, jnp.int32)
    for call in (likelihood.mean, likelihood.noise, lambda o: likelihood.log_prob(o, y)):
        with pytest.raises(UserError, match="needs network outputs of shape") as error:
            call(outputs)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_noise(sigma):
    with pytest.raises(UserError, match="sigma"):
        gaussian.build(sigma)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(3)(x)))


@pytest.mark.parametrize(
    ("estimator", "net"),
    [
        ("sampling", Small()),
        ("antithetic", nn.Dense(1)),
        ("local_reparam", nn.Dense(1)),
        ("flipout", nn.Dense(1)),
        ("flipout", Small()),
    ],
)
def test_learned_noise_is_a_weight_like_any_other(estimator, net):
    """`log_sigma` is one more parameter; every estimator passes its own draw of it, shared by the batch, and
    the ELBO has a gradient in it."""
    module = gaussian.LearnedNoise(net)
    x = jnp.asarray(LOGITS[:, :2])
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda s: jnp.asarray(RNG.standard_normal(s.shape), jnp.float32), shapes)
    assert params["log_sigma"].shape == ()
    assert set(params) == {"net", "log_sigma"}
    params["log_sigma"] = jnp.asarray(-0.7)
    outputs = ops.apply_fn(module)(params, x)
    np.testing.assert_allclose(outputs[:, 1], -0.7)
    np.testing.assert_allclose(outputs[:, 0], net.apply({"params": params["net"]}, x)[:, 0], rtol=1e-6)

    family = mean_field.build(init_std=0.1)
    phi = family.init(params)
    estimate = estimators.build(estimator, module, family, 4, "vmap")
    bound = objectives.elbo(estimate, family, isotropic.build(), gaussian.build(), 7)

    @jax.jit
    def outputs_and_grads(key, phi):
        return estimate(key, phi, x)[0], jax.grad(lambda phi: bound(key, phi, Batch(x, Y))[0])(phi)

    outputs, grads = outputs_and_grads(jax.random.key(1), phi)
    assert outputs.shape == (4, 7, 2)
    log_sigma = np.asarray(outputs[..., 1])
    np.testing.assert_array_equal(log_sigma, log_sigma[:, :1].repeat(7, 1))
    assert len(np.unique(log_sigma[:, 0])) == 4
    assert np.abs(log_sigma + 0.7).max() < 0.5  # 5 standard deviations
    for grad in (grads.mean, grads.rho):
        assert float(grad["log_sigma"]) != 0
        assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grad))
