"""Methods around BlackJAX and NumPyro against exact answers, and against those libraries themselves."""

import math
import re
import sys
from types import SimpleNamespace

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from blackjax.adaptation.mclmc_adaptation import make_L_step_size_adaptation
from numpyro.contrib.ecs_proxies import perturbed_method, taylor_proxy
from numpyro.contrib.einstein import SVGD, RBFKernel
from problems import agrees, agrees_with_moments, linear, run_chains
from scipy.special import expit

from bnn_jax import diagnostics, loop, microcanonical, trees
from bnn_jax.infer import hmcecs, mclmc, mclmc_adjusted, svgd
from bnn_jax.infer import map as map_
from bnn_jax.likelihoods import bernoulli, gaussian
from bnn_jax.priors import isotropic
from bnn_jax.types import Batch, UserError

PROBLEM = linear()
PRIOR, LIKELIHOOD = isotropic.build(PROBLEM.std), gaussian.build(PROBLEM.sigma)

pytestmark = pytest.mark.usefixtures("quick_compile")


def spread(params):
    """Four starts."""
    return jax.tree.map(lambda a: a + jnp.arange(4.0).reshape(4, *[1] * a.ndim) / 4, params)


# Microcanonical dynamics: a short step, whose bias is below the Monte Carlo error, or a long one, rejected.

DYNAMICS = {
    "mclmc": (mclmc.build, dict(length=0.15, step_size=0.03), 8),
    "mclmc_adjusted": (mclmc_adjusted.build, dict(length=0.2, step_size=0.1), 1),
}


@pytest.mark.parametrize("name", DYNAMICS)
def test_microcanonical_chains_sample_the_linear_posterior(name):
    build, settings, thin = DYNAMICS[name]
    algorithm = build(PROBLEM.log_joint(), PRIOR.scale, 0, **settings)
    draws, trace = run_chains(algorithm, spread(PROBLEM.params(PROBLEM.mean)), PROBLEM.batch, 3000, thin=thin)
    assert diagnostics.chain_status(draws, trace) == ["ok"] * 4
    if name == "mclmc_adjusted":
        assert 0.4 < trace["accept_prob"].mean() < 0.85  # so that the rejections count
        assert set(np.unique(trace["num_steps"])) == {1, 2, 3}
    agrees_with_moments(draws, PROBLEM.mean, PROBLEM.cov)


@pytest.mark.parametrize("name", DYNAMICS)
def test_microcanonical_chains_sample_a_skewed_target(name):
    """Gumbel, in units of length that differ between the weights."""

    def log_joint(params, batch):
        return trees.tree_sum(jax.tree.map(lambda z: -z - jnp.exp(-z), params))

    widths = lambda params: {"a": jnp.full((1,), 2.0), "b": jnp.full((2,), 0.7)}
    settings = dict(length=1.0, step_size=0.2) if name == "mclmc" else dict(length=2.0)
    algorithm = DYNAMICS[name][0](log_joint, widths, 200 if name == "mclmc_adjusted" else 0, **settings)
    starts = {"a": jnp.zeros((4, 1)), "b": jnp.ones((4, 2))}
    thin = 12 if name == "mclmc" else 4
    draws, trace = run_chains(algorithm, starts, Batch(np.zeros((1, 1)), np.zeros(1)), 2000, thin=thin)
    if name == "mclmc_adjusted":  # whose step size adapted
        assert 0.85 < trace["accept_prob"].mean() < 0.98
        assert (trace["step_size"] == trace["step_size"][:, :1]).all()
    agrees(draws, np.full(3, np.euler_gamma))
    agrees(np.square(draws - np.euler_gamma), np.full(3, math.pi**2 / 6))


def test_a_long_unadjusted_step_is_biased():
    """So that the agreement above is the short step's, and the docs' warning is true."""
    algorithm = mclmc.build(PROBLEM.log_joint(), PRIOR.scale, 0, length=0.15, step_size=0.1)
    draws, _ = run_chains(algorithm, spread(PROBLEM.params(PROBLEM.mean)), PROBLEM.batch, 1000, thin=5)
    with pytest.raises(AssertionError, match="standard errors from the exact value"):
        agrees_with_moments(draws, PROBLEM.mean, PROBLEM.cov)


def test_adaptation_reaches_the_energy_error():
    algorithm = mclmc.build(PROBLEM.log_joint(), PRIOR.scale, 600, length=0.15)
    _, trace = run_chains(
        algorithm, spread(PROBLEM.params(PROBLEM.mean)), PROBLEM.batch, 1200, num_warmup=600
    )
    assert (trace["step_size"] == trace["step_size"][:, :1]).all()
    assert 2e-4 < np.mean(trace["energy_change"] ** 2) / 3 < 1.2e-3


def test_the_rule_for_the_step_size_is_that_of_blackjax():
    """On a kernel whose energy error is known: c_t eps^3, and not finite above a length."""
    target, limit = 5e-4, 0.12

    def kernel(rng_key, state, logdensity_fn, inverse_mass_matrix, L, step_size):
        finite = step_size < limit
        t = state.position[0]
        change = jnp.where(finite, (90 + 75 * jnp.sin(t)) * step_size**3, 0.0)
        return state._replace(position=state.position + 1), SimpleNamespace(
            energy_change=change, nonans=finite
        )

    start = blackjax.mcmc.integrators.IntegratorState(jnp.zeros(4), jnp.ones(4), jnp.zeros(()), jnp.zeros(4))
    params = blackjax.adaptation.mclmc_adaptation.MCLMCAdaptationState(1.0, 0.5, jnp.ones(4))
    for num_steps in (1, 5, 40):
        tune = make_L_step_size_adaptation(kernel, None, 4, 1.0, 0.0, False, target)
        theirs = tune(start, params, num_steps, jax.random.key(0))[1].step_size
        ours = jnp.asarray(0.5)
        averaging = microcanonical.Averaging(jnp.zeros(()), jnp.zeros(()), jnp.full((), jnp.inf))
        state = start
        for _ in range(num_steps):
            new, info = kernel(None, state, None, None, None, ours)
            state = new if info.nonans else state
            ours, averaging = microcanonical.adapt(
                averaging, ours, info.energy_change**2 / (4 * target), info.nonans
            )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert ours < 0.8 * limit  # the rule, and not the limit alone


def test_a_step_is_blackjax_own():
    """From the same state, key and settings, in widths of 2; lengths are root mean squares."""
    algorithm = mclmc.build(PROBLEM.log_joint(), isotropic.build(2.0).scale, 0, 0.3, 0.02)
    state = algorithm.init(jax.random.key(0), PROBLEM.params(PROBLEM.mean))
    np.testing.assert_allclose(jnp.linalg.norm(state.velocity["kernel"]), 1, rtol=1e-6)
    density = lambda z: PROBLEM.log_joint()({"kernel": 2 * z}, PROBLEM.batch)
    theirs = blackjax.mclmc(density, L=0.3 * math.sqrt(3), step_size=0.02 * math.sqrt(3))
    z = state.z["kernel"]
    start = blackjax.mcmc.integrators.IntegratorState(
        z, state.velocity["kernel"], *jax.value_and_grad(density)(z)
    )
    want, told = theirs.step(jax.random.key(1), start)
    state, info = algorithm.step(jax.random.key(1), state, PROBLEM.batch)
    np.testing.assert_allclose(state.z["kernel"], want.position, rtol=1e-5)
    np.testing.assert_allclose(algorithm.sample(None, state)["kernel"], 2 * want.position, rtol=1e-5)
    np.testing.assert_allclose(state.velocity["kernel"], want.momentum, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(info["energy_change"], told.energy_change, atol=1e-3)
    np.testing.assert_allclose(info["log_joint"], want.logdensity, rtol=1e-5)


@pytest.mark.parametrize("name", DYNAMICS)
def test_a_chain_of_infinite_steps_stands_still_and_is_named(name):
    algorithm = DYNAMICS[name][0](PROBLEM.log_joint(), PRIOR.scale, 0, length=1e30, step_size=1e30)
    draws, trace = run_chains(algorithm, spread(PROBLEM.params(PROBLEM.mean)), PROBLEM.batch, 10, 0)
    assert diagnostics.chain_status(draws, trace) == ["frozen"] * 4


def test_an_adjusted_trajectory_ends_after_so_many_steps(monkeypatch):
    """The trap: after a row of rejections the step size is a millionth, and one draw takes hours."""
    monkeypatch.setattr(microcanonical, "MAX_STEPS", 8)
    algorithm = mclmc_adjusted.build(PROBLEM.log_joint(), PRIOR.scale, 0, step_size=1e-6)
    _, trace = run_chains(algorithm, spread(PROBLEM.params(PROBLEM.mean)), PROBLEM.batch, 200)
    assert trace["num_steps"].max() < 2 * 8
    assert 7 < trace["num_steps"].mean() < 9  # uniform on 1 to 15: 8, with an error of 0.15


def test_without_blackjax(monkeypatch):
    """The methods are listed and imported; only building one says what is missing."""
    monkeypatch.setitem(sys.modules, "blackjax", None)
    for build in (mclmc.build, mclmc_adjusted.build):
        with pytest.raises(UserError, match=r"not installed: pip install 'bnn_jax\[blackjax\]'") as error:
            build(None, None, 10)
        assert "\n" not in str(error.value)


# Stein variational gradient descent


def test_the_direction_is_that_of_numpyro():
    """Of its SVGD, on a model of its own, in widths of 1."""
    x, y = PROBLEM.batch

    def model():
        w = numpyro.sample("w", dist.Normal(jnp.zeros(3), PROBLEM.std).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, PROBLEM.sigma).to_event(1), obs=jnp.asarray(y))

    theirs = SVGD(model, numpyro.optim.SGD(1.0), RBFKernel(), num_stein_particles=5)
    state = theirs.init(jax.random.key(0))
    before = theirs.get_params(state)["w_auto_loc"]
    want = theirs.get_params(jax.jit(theirs.update)(state)[0])["w_auto_loc"] - before
    log_joint = PROBLEM.log_joint()
    grads = jax.vmap(jax.grad(lambda w: log_joint({"kernel": w[:, None]}, PROBLEM.batch)))(before)
    got = svgd.direction({"w": before}, {"w": grads}, {"w": jnp.ones(3)})["w"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
    attraction = grads.mean(0)
    assert np.abs(got - attraction).max() > 1  # neither a mean of gradients nor nothing


def test_distances_are_in_widths():
    """The direction is that of the problem told in prior widths, with the gradients of the weights."""
    rng = np.random.default_rng(0)
    w, g, widths = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), np.array([0.1, 1.0, 20.0])
    as_tree = lambda a: {"a": jnp.asarray(a[..., :1], jnp.float32), "b": jnp.asarray(a[..., 1:], jnp.float32)}
    plain = svgd.direction(as_tree(w / widths), as_tree(g * widths), as_tree(np.ones(3)))
    scaled = svgd.direction(as_tree(w), as_tree(g), as_tree(widths))
    together = lambda tree: np.concatenate([tree["a"], tree["b"]], -1)
    np.testing.assert_allclose(together(scaled) * widths, together(plain), rtol=1e-3, atol=1e-5)


def follow(algorithm, params, batch, num_steps):
    keys = dict(num_steps=num_steps, batch_size=len(batch.x), chunk_size=num_steps)
    return loop.fit(jax.random.key(0), algorithm, params, batch, **keys)[0]


def test_two_particles_find_their_distance():
    """At +a and -a of N(0, 1): |z_i - z_j| has the median a, so k = 1/16 and a^2 = 4 log 2 / 15."""
    log_joint = lambda params, batch: -0.5 * jnp.sum(params**2)
    algorithm = svgd.build(log_joint, jnp.ones_like, 1, optax.sgd(0.2), num_particles=2)
    state = follow(algorithm, jnp.asarray([0.3]), Batch(np.zeros((1, 1)), np.zeros(1)), 400)
    a = math.sqrt(4 * math.log(2) / 15)
    np.testing.assert_allclose(np.sort(np.ravel(state.particles)), [-a, a], rtol=1e-4)


def test_many_particles_reach_the_posterior():
    """In two dimensions: the mean, and the covariance to a tenth."""
    problem = linear(num_data=5, features=2, sigma=1.0)
    algorithm = svgd.build(
        problem.log_joint(), PRIOR.scale, 5, optax.adam(0.05), num_particles=100, jitter=1.0
    )
    state = follow(algorithm, problem.params(np.zeros(2)), problem.batch, 600)
    particles = np.asarray(state.particles["kernel"])[..., 0]
    std = np.sqrt(np.diag(problem.cov))
    np.testing.assert_allclose((particles.mean(0) - problem.mean) / std, 0, atol=0.05)
    np.testing.assert_allclose(
        np.cov(particles.T) / np.outer(std, std), problem.cov / np.outer(std, std), atol=0.12
    )
    draws = jax.vmap(algorithm.sample, (0, None))(jax.random.split(jax.random.key(1), 4000), state)["kernel"]
    which = (np.asarray(draws)[:, None, :, 0] == particles).all(-1)
    assert (which.sum(1) == 1).all()
    assert which.any(0).all()  # (1 - 1/100)^4000: all are drawn


def test_one_particle_is_map():
    """From where the particle starts, step by step, minibatches included."""
    batch = Batch(PROBLEM.batch.x[:7], PROBLEM.batch.y[:7])
    settings = (40, optax.sgd(0.1, momentum=0.9))
    one = svgd.build(PROBLEM.log_joint(), PRIOR.scale, *settings, num_particles=1)
    start = one.init(jax.random.key(0), PROBLEM.params(np.ones(3)))
    assert np.abs(start.particles["kernel"] - 1).max() > 0.01
    plain = map_.build(PROBLEM.log_joint(), *settings)
    state = plain.init(jax.random.key(0), jax.tree.map(lambda a: a[0], start.particles))
    for _ in range(5):
        start, info = one.step(jax.random.key(1), start, batch)
        state, told = plain.step(jax.random.key(1), state, batch)
        np.testing.assert_allclose(start.particles["kernel"][0], state.params["kernel"], rtol=1e-5)
        np.testing.assert_allclose(info["log_joint"], told["log_joint"], rtol=1e-5)


# HMC with energy-conserving subsampling


def subsampled(problem, likelihood, **settings):
    given = (
        dict(num_warmup=200, batch_size=8, num_blocks=4, trajectory_length=0.15, step_size=0.05) | settings
    )
    prior = isotropic.build(problem.std)
    return hmcecs.build(problem.apply, likelihood, prior, prior.scale, len(problem.batch.x), **given)


def test_subsampling_is_exact_where_the_expansion_is():
    """8 of 40 examples, an expansion far from the mode: the linear posterior, to Monte Carlo error."""
    algorithm = subsampled(PROBLEM, LIKELIHOOD)
    draws, trace = run_chains(algorithm, spread(PROBLEM.params(PROBLEM.mean)), PROBLEM.batch, 3000)
    assert diagnostics.chain_status(draws, trace) == ["ok"] * 4
    assert trace["variance"].max() < 1e-3
    assert trace["accept_rows"].min() > 0.9
    agrees_with_moments(draws, PROBLEM.mean, PROBLEM.cov)


def logistic(num_data, seed=0):
    """Inputs (N, 1) or labels that one weight tells, as `linear`'s fields."""
    rng = np.random.default_rng(seed)
    problem = linear(num_data, features=1)
    x = problem.batch.x
    y = (rng.random(num_data) < expit(1.5 * x[:, 0])).astype(np.int32)
    return problem._replace(batch=Batch(x, y))


GRID = np.linspace(-6, 12, 4001)


def moments(log_density):
    """Mean and (1, 1) variance of a density on the grid."""
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    mean = (weight * GRID).sum()
    return np.array([mean]), np.array([[(weight * (GRID - mean) ** 2).sum()]])


def log_lik_on_grid(problem):
    """(N, grid)"""
    sign = 2 * problem.batch.y[:, None] - 1
    return -np.logaddexp(0, -sign * problem.batch.x[:, :1] * GRID)


def test_subsampling_a_logistic_regression():
    """30 of 300 examples around the mode, against the posterior on a grid."""
    problem = logistic(300)
    exact = log_lik_on_grid(problem).sum(0) - 0.5 * GRID**2
    mode = GRID[exact.argmax()]
    algorithm = subsampled(problem, bernoulli.build(), batch_size=30, trajectory_length=0.3)
    starts = jax.tree.map(lambda a: jnp.stack([a] * 4), problem.params([mode]))
    draws, trace = run_chains(algorithm, starts, problem.batch, 3000)
    assert 0 < trace["variance"].mean() < 0.1
    agrees_with_moments(draws, *moments(exact))


def test_subsampling_samples_its_perturbed_posterior():
    """Two of three examples, an expansion that does not hold: the sum over all nine subsamples, on a grid,
    which is far from the posterior."""
    batch = Batch(np.array([[2.0], [4.0], [-3.0]], np.float32), np.array([1, 0, 0], np.int32))
    problem = logistic(3)._replace(batch=batch)
    x, y, reference = problem.batch.x[:, 0], problem.batch.y, 1.0
    each = log_lik_on_grid(problem)
    at = expit(x * reference)[:, None]
    away, x_ = GRID - reference, x[:, None]
    value = -np.logaddexp(0, -(2 * y - 1) * x * reference)[:, None]
    proxy = value + (y[:, None] - at) * x_ * away - 0.5 * at * (1 - at) * (x_ * away) ** 2
    difference = each - proxy
    parts = []
    for i in range(3):
        for j in range(3):
            pair = difference[[i, j]]
            parts.append(proxy.sum(0) + 3 * pair.mean(0) - 0.5 * 9 / 2 * pair.var(0))
    perturbed = moments(np.logaddexp.reduce(parts) - 0.5 * GRID**2)
    exact = moments(each.sum(0) - 0.5 * GRID**2)
    algorithm = subsampled(problem, bernoulli.build(), batch_size=2, num_blocks=2, trajectory_length=1.0)
    starts = jax.tree.map(lambda a: jnp.stack([a] * 4), problem.params([reference]))
    draws, _ = run_chains(algorithm, starts, problem.batch, 3000, thin=2)
    agrees_with_moments(draws, *perturbed)
    with pytest.raises(AssertionError, match="standard errors from the exact value"):
        agrees_with_moments(draws, *exact)


def test_the_estimate_is_that_of_numpyro():
    """Its value and variance of the proxy's error, at a point away from the reference."""
    rng = np.random.default_rng(0)
    x, w, reference = (
        rng.normal(size=(20, 2)).astype(np.float32),
        jnp.array([0.4, -1.0]),
        jnp.array([1.0, 0.3]),
    )
    y, rows = (rng.random(20) < 0.5).astype(np.int32), jnp.array([3, 3, 7, 11, 19])

    def model():
        w = numpyro.param("w", reference)
        with numpyro.plate("N", 20, subsample_size=5) as chosen:
            numpyro.sample("y", dist.Bernoulli(logits=jnp.asarray(x)[chosen] @ w), obs=jnp.asarray(y)[chosen])

    sizes = {"N": (20, 5)}

    @jax.jit
    def theirs(w):
        proxy, start, _ = taylor_proxy({"w": reference}, 2)({"w": {"type": "param"}}, sizes, model, (), {})
        likelihoods = {"y": (dist.Bernoulli(logits=x[rows] @ w), jnp.asarray(y)[rows], "N", -1)}
        return perturbed_method(sizes, proxy)(likelihoods, {"w": w}, start(None, {"N": rows}))

    log_lik = lambda w, batch: bernoulli.build().log_prob((batch.x @ w)[:, None], batch.y)
    whole = Batch(jnp.asarray(x), jnp.asarray(y))
    expansion = hmcecs.expand(lambda w: log_lik(w, whole).mean(), reference)
    value, variance = hmcecs.estimate(log_lik, w, expansion, Batch(whole.x[rows], whole.y[rows]), 20)
    assert variance > 0.01
    np.testing.assert_allclose(value - 0.5 * variance, theirs(w), rtol=1e-5)


def test_the_expansion_is_made_once():
    """In the first step, at the start, and kept whatever the data; of all rows one block changes."""
    problem = logistic(40)
    algorithm = subsampled(problem, bernoulli.build(), batch_size=8, num_blocks=4)
    step = jax.jit(algorithm.step)
    state = algorithm.init(jax.random.key(0), problem.params([0.7]))
    first, _ = step(jax.random.key(1), state, problem.batch)
    second, _ = step(jax.random.key(2), first, problem.batch._replace(y=1 - problem.batch.y))
    x = problem.batch.x[:, 0]
    at = expit(0.7 * x)
    np.testing.assert_allclose(first.expansion.grad, np.mean((problem.batch.y - at) * x), rtol=1e-4)
    np.testing.assert_allclose(first.expansion.hess, [[-np.mean(at * (1 - at) * x**2)]], rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, first.expansion, second.expansion)
    changed = np.flatnonzero(first.rows != second.rows)
    assert 1 <= len(changed) <= 2
    assert len({row % 4 for row in changed.tolist()}) == 1


@pytest.mark.parametrize("chains", [None, 2])
def test_later_steps_skip_the_expansion(chains):
    """It lies in a branch of the compiled program: what is in a loop XLA may take out of it, and compute in
    every step."""
    algorithm = subsampled(PROBLEM, LIKELIHOOD)
    state, step = algorithm.init(jax.random.key(0), PROBLEM.params(np.zeros(3))), algorithm.step
    if chains:
        state = jax.tree.map(lambda a: jnp.stack([a] * chains), state)
        step = jax.vmap(step, in_axes=(None, 0, None))
    program = jax.jit(step).lower(jax.random.key(1), state, PROBLEM.batch).compile().as_text()
    assert re.search(r"f32\[3,3\][^=]* conditional\(", program)  # the Hessian


LENGTH = dict(num_warmup=1, length=math.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mclmc.build(None, None, -1), "num_warmup must not be negative, not -1"),
        (lambda: mclmc.build(None, None, **LENGTH), "length must be a positive number, not nan"),
        (lambda: mclmc.build(None, None, 1, step_size=0.0), "step_size must be a positive number, not 0.0"),
        (
            lambda: mclmc.build(None, None, 1, energy_variance=-1.0),
            "energy_variance must be a positive number",
        ),
        (lambda: mclmc_adjusted.build(None, None, **LENGTH), "length must be a positive number, not nan"),
        (
            lambda: mclmc_adjusted.build(None, None, 1, target_accept_prob=1.0),
            "target_accept_prob must lie between 0 and 1, not 1.0",
        ),
        (
            lambda: mclmc.build(None, jnp.ones_like, 1).init(jax.random.key(0), jnp.ones(1)),
            "they need at least 2 weights, not 1",
        ),
        (lambda: svgd.build(None, None, 1, None, num_particles=0), "at least one particle, not 0"),
        (lambda: svgd.build(None, None, 1, None, jitter=0.0), "jitter must be a positive number, not 0.0"),
        (lambda: subsampled(PROBLEM, LIKELIHOOD, batch_size=1), "batch_size of at least 2 .* not 1"),
        (lambda: subsampled(PROBLEM, LIKELIHOOD, num_blocks=0), "num_blocks must be at least 1, not 0"),
        (
            lambda: subsampled(PROBLEM, LIKELIHOOD, trajectory_length=math.inf),
            "trajectory_length must be a positive number, not inf",
        ),
        (
            lambda: subsampled(PROBLEM, LIKELIHOOD).init(jax.random.key(0), {"w": jnp.ones((50, 41))}),
            "2050 weights are more than the 2000 it takes; use hmc or a smaller network",
        ),
    ],
)
def test_a_mistake_is_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
