"""The streaming predictive equals the direct computation over stacked draws."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import ConvNet

from bnn_jax import ops, predict
from bnn_jax.likelihoods import bernoulli, categorical, gaussian
from bnn_jax.types import Algorithm, UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

D, T = 9, 11
X = np.random.default_rng(0).standard_normal((T, 4)).astype(np.float32)
CASES = {
    "categorical": (categorical.build(), 3),
    "bernoulli": (bernoulli.build(), 1),
    "gaussian": (gaussian.build(), 2),
}
CASES |= {"known noise": (gaussian.build(0.3), 1)}


def problem(name):
    likelihood, outputs = CASES[name]
    rng = np.random.default_rng(1)
    draws = {"kernel": rng.standard_normal((D, 4, outputs)), "bias": rng.standard_normal((D, outputs))}
    if likelihood.task == "regression":
        draws["bias"][:, 0] += 30
    draws = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), draws)
    apply = ops.apply_fn(nn.Dense(outputs))
    return likelihood, apply, draws


def drawn(sample):
    """A method that is nothing but its draws."""
    return Algorithm(None, None, sample)


def direct(likelihood, apply, draws):
    """mean, std, total, aleatoric, epistemic in float64 from the predictions of every draw."""
    outputs = np.stack([np.asarray(apply(jax.tree.map(lambda a, d=d: a[d], draws), X)) for d in range(D)])
    each = np.stack([np.asarray(likelihood.mean(o)) for o in outputs]).astype(np.float64)
    mean, std = each.mean(0), each.std(0)
    if likelihood.task == "classification":
        entropy = lambda p: -np.sum(p * np.log(np.maximum(p, 1e-300)), -1)
        return mean, std, entropy(mean), entropy(each).mean(0), entropy(mean) - entropy(each).mean(0)
    aleatoric = np.mean([np.asarray(likelihood.noise(o)) for o in outputs], 0)
    return mean, std, aleatoric + std**2, aleatoric, std**2


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch_size", [T, 4, 1, 500])
def test_equals_the_direct_computation(name, batch_size):
    """For every batch size: 4 pads the last batch of 11 points. Regression means lie near 30, where sums of
    squares in float32 would lose the variance."""
    likelihood, apply, draws = problem(name)
    found = predict.build(apply, likelihood, predict.stacked, batch_size)(draws, X, D)
    for got, want in zip(found, direct(likelihood, apply, draws), strict=True):
        assert isinstance(got, np.ndarray)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic, rtol=1e-5, atol=2e-6)
    if likelihood.task == "classification":
        np.testing.assert_allclose(found.mean.sum(-1), 1, rtol=1e-6)
        assert (found.epistemic >= 0).all()
        assert found.epistemic.max() > 0.01


def test_number_of_draws_does_not_compile_again():
    """Nor do fresh draws of the same shape; another number of points may."""
    likelihood, apply, draws = problem("categorical")
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return apply(params, x)

    predictive = predict.build(counted, likelihood, predict.stacked, batch_size=4)
    few = predictive(draws, X, 2)
    once = len(traces)
    many = predictive(draws, X, D)
    predictive(jax.tree.map(lambda a: a + 1, draws), X[:8], 5)
    assert len(traces) == once > 0
    assert np.abs(few.mean - many.mean).max() > 0.01
    np.testing.assert_allclose(
        few.mean, predict.build_each(apply, likelihood)(draws, X)[0][:2].mean(0), rtol=1e-4, atol=1e-6
    )


def test_one_draw_has_no_epistemic_part():
    for name in CASES:
        likelihood, apply, draws = problem(name)
        found = predict.build(apply, likelihood, predict.stacked)(draws, X, 1)
        np.testing.assert_array_equal(found.std, 0)
        np.testing.assert_allclose(found.epistemic, 0, atol=1e-6)
    with pytest.raises(UserError, match="num_draws"):
        predict.build(apply, likelihood, predict.stacked)(draws, X, 0)


def test_sampled_draws_are_fresh_and_reproducible():
    """Draw i is sample(fold_in(key, i), state): the same as stacking them first."""
    likelihood, apply, draws = problem("categorical")
    state = jax.tree.map(lambda a: a[0], draws)
    noise = lambda key, state: jax.tree.map(lambda a: a + 0.5 * jax.random.normal(key, a.shape), state)
    predictive = predict.build(apply, likelihood, predict.sampled(drawn(noise)), batch_size=4)
    found = predictive((jax.random.key(3), state), X, D)
    keys = [jax.random.fold_in(jax.random.key(3), i) for i in range(D)]
    fixed = jax.tree.map(lambda *a: jnp.stack(a), *[noise(key, state) for key in keys])
    want = predict.build(apply, likelihood, predict.stacked)(fixed, X, D)
    for got, w in zip(found, want, strict=True):
        np.testing.assert_allclose(got, w, rtol=1e-4, atol=1e-6)
    assert found.std.max() > 0.01
    other = predictive((jax.random.key(4), state), X, D)
    assert np.abs(other.mean - found.mean).max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_build_each_keeps_the_draws_apart(name):
    likelihood, apply, draws = problem(name)
    found, noise = predict.build_each(apply, likelihood, batch_size=4)(draws, X)
    assert noise.shape == (D, T)
    assert found.shape == ((D, T, found.shape[-1]) if likelihood.task == "classification" else (D, T))
    for d in range(D):
        outputs = apply(jax.tree.map(lambda a, d=d: a[d], draws), X)
        np.testing.assert_allclose(found[d], likelihood.mean(outputs), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(noise[d], likelihood.noise(outputs), rtol=1e-5, atol=1e-6)


def test_members_take_turns():
    """Draw i is one of member i mod M, with the key of i."""
    likelihood, apply, draws = problem("categorical")
    states = jax.tree.map(lambda a: a[:3], draws)
    noise = lambda key, state: jax.tree.map(lambda a: a + 0.5 * jax.random.normal(key, a.shape), state)
    found = predict.build(apply, likelihood, predict.members(drawn(noise), 3))(
        (jax.random.key(3), states), X, 5
    )
    keys = [jax.random.fold_in(jax.random.key(3), i) for i in range(5)]
    each = [noise(key, jax.tree.map(lambda a, i=i: a[i % 3], states)) for i, key in enumerate(keys)]
    fixed = jax.tree.map(lambda *a: jnp.stack(a), *each)
    want = predict.build(apply, likelihood, predict.stacked)(fixed, X, 5)
    np.testing.assert_allclose(found.mean, want.mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_build_mixture_keeps_mean_and_noise_of_every_draw(name):
    likelihood, apply, draws = problem(name)
    means, noises = predict.build_mixture(apply, likelihood, predict.stacked, batch_size=4)(draws, X, 6)
    assert noises.shape == (6, T)
    for d in range(6):
        outputs = apply(jax.tree.map(lambda a, d=d: a[d], draws), X)
        np.testing.assert_allclose(means[d], likelihood.mean(outputs), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(noises[d], likelihood.noise(outputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [predict.build, predict.build_mixture])
def test_over_averages_what_a_draw_predicts(build):
    """Here over an input and its mirror image: of each draw first, then over draws."""
    likelihood, apply, draws = problem("categorical")
    over = lambda f: lambda x: jax.tree.map(lambda a, b: (a + b) / 2, f(x), f(-x))
    found = build(apply, likelihood, predict.stacked, batch_size=4, over=over)(draws, X, D)
    both = jax.vmap(lambda p, x: (likelihood.mean(apply(p, x)), likelihood.noise(apply(p, x))), (0, None))
    means, noises = jax.tree.map(lambda a, b: np.asarray(a + b) / 2, both(draws, X), both(draws, -X))
    if build is predict.build:
        np.testing.assert_allclose(found.mean, means.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.std, means.std(0), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.aleatoric, noises.mean(0), rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_allclose(found[0], means, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[1], noises, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", [3, 128])
def test_convolutions_are_called_draw_by_draw(block, monkeypatch):
    """On CPU, where they are slow in loops: the same predictions, block by block, one of them padded, and
    nothing is compiled again."""
    monkeypatch.setattr(predict, "BLOCK", block)
    module, rng = ConvNet(), np.random.default_rng(0)
    x = rng.standard_normal((T, 6, 6, 2)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    draws = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal((D, *a.shape)), jnp.float32), shapes)
    apply, traced = ops.apply_fn(module), []

    def counted(params, x):
        traced.append(ops.loop_safe())
        return apply(params, x)

    likelihood = categorical.build()
    built = [
        build(counted, likelihood, predict.stacked, 7) for build in (predict.build, predict.build_mixture)
    ]
    got = [predictive(draws, x, D) for predictive in built]
    assert not all(traced)
    once = len(traced)
    built[0](draws, x, D - 2)
    assert len(traced) == once
    monkeypatch.setattr(ops, "slow_in_loops", lambda jaxpr: False)
    want = [predictive(draws, x, D) for predictive in built]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    jax.tree.map(close, got, want)


def test_a_tangent_is_linear_in_its_params():
    """Exact at the centre, the derivative beside it, and a network that is linear is its own tangent."""
    module = ConvNet()
    x = jax.random.normal(jax.random.key(0), (5, 6, 6, 2))
    centre, other = (module.init(jax.random.key(seed), x)["params"] for seed in (1, 2))
    apply = ops.apply_fn(module)
    along = lambda t: jax.tree.map(lambda a, b: a + t * (b - a), centre, other)
    at = lambda t: predict.outputs(apply, predict.Tangent(centre, along(t)), x)
    np.testing.assert_allclose(at(0.0), apply(centre, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at(2.0) - at(1.0), at(1.0) - at(0.0), rtol=1e-3, atol=1e-5)
    step = 1e-2
    slope = (apply(along(step), x) - apply(along(-step), x)) / (2 * step)
    np.testing.assert_allclose(at(1.0) - at(0.0), slope, rtol=1e-2, atol=1e-2)
    assert np.abs(at(1.0) - apply(other, x)).max() > 0.1
    likelihood, linear, draws = problem("categorical")
    middle = jax.tree.map(lambda a: a.mean(0), draws)
    each = predict.build_each(linear, likelihood)
    np.testing.assert_allclose(each(draws, X, middle)[0], each(draws, X)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("members", [None, 2])
def test_methods_may_predict_by_their_tangent(members):
    module = ConvNet()
    x = np.asarray(jax.random.normal(jax.random.key(0), (5, 6, 6, 2)))
    starts = [module.init(jax.random.key(seed), x)["params"] for seed in (1, 2)]
    state = starts[0] if members is None else jax.tree.map(lambda *a: jnp.stack(a), *starts)
    noise = lambda key, state: jax.tree.map(lambda a: a + 0.5 * jax.random.normal(key, a.shape), state)
    method = Algorithm(None, None, noise, linearise_at=lambda state: state)
    draw = predict.sampled(method) if members is None else predict.members(method, members)
    apply, likelihood = ops.apply_fn(module), categorical.build()
    found = predict.build(apply, likelihood, draw)((jax.random.key(3), state), x, 4)
    probs = []
    for i in range(4):
        own = starts[0 if members is None else i % 2]
        tangent = predict.Tangent(own, noise(jax.random.fold_in(jax.random.key(3), i), own))
        probs.append(jax.nn.softmax(predict.outputs(apply, tangent, x)))
    np.testing.assert_allclose(found.mean, np.mean(probs, 0), rtol=1e-4, atol=1e-6)
