"""Methods on noisy gradients: chains against their exact stationary distribution, SWAG against moments."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import linear
from scipy.linalg import solve_discrete_lyapunov

from bnn_jax import chains, checkpoint, diagnostics, langevin, loop, trees
from bnn_jax.infer import ivon, psgld, sghmc, sgld, swag
from bnn_jax.likelihoods import gaussian
from bnn_jax.priors import isotropic, laplace
from bnn_jax.types import Batch, UserError

SIGMAS = 5
MIN_ESS = 1500
PROBLEM = linear()
PRECISION = np.linalg.inv(PROBLEM.cov)
EPS = 1 / math.sqrt(np.linalg.eigvalsh(PRECISION)[-1])  # half of what is stable
SAMPLERS = {
    "sgld": sgld.build,
    "psgld": psgld.build,
    "sghmc": lambda *a, **k: sghmc.build(*a, friction=0.3, **k),
}

pytestmark = pytest.mark.usefixtures("quick_compile")


def scale(params):
    return jax.tree.map(lambda a: jnp.full_like(a, 1.0), params)


def build(name, **settings):
    warmup = {"num_warmup": 200} if name == "psgld" else {}
    return SAMPLERS[name](PROBLEM.log_joint(), scale, **{"step_size": EPS, **warmup, **settings})


def stationary(eps, friction=1.0, precondition=None):
    """The covariance of z of the discrete chain, a linear map with Gaussian noise."""
    size = len(PRECISION)
    p = np.eye(size) if precondition is None else np.diag(precondition)
    keep = 1 - friction
    # State (m, z): m' = keep m - (1 + keep)/2 eps A z + noise, z' = z + eps m'; of a metric P, z / sqrt(P).
    root = np.sqrt(p)
    a = root @ PRECISION @ root
    kick = -(1 + keep) / 2 * eps * a
    move = np.block([[keep * np.eye(size), kick], [eps * keep * np.eye(size), np.eye(size) + eps * kick]])
    enter = np.vstack([np.eye(size), eps * np.eye(size)]) * math.sqrt(1 - keep**2)
    cov = solve_discrete_lyapunov(move, enter @ enter.T)[size:, size:]
    return root @ cov @ root


@pytest.mark.parametrize("friction", [0.1, 0.3, 1.0])
def test_short_steps_leave_the_posterior_invariant(friction):
    """The equations that the chains are held against below: their error is of second order."""
    errors = [np.abs(stationary(eps * EPS, friction) / PROBLEM.cov - 1).max() for eps in (0.2, 0.1, 0.05)]
    assert errors[-1] < 0.005
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, rtol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_chains_have_their_stationary_distribution(name):
    """With long steps, whose bias is far larger than the Monte Carlo error."""
    starts = jax.tree.map(lambda a: a + jnp.arange(4.0)[:, None, None] / 2, PROBLEM.params(np.zeros(3)))
    algorithm = build(name)
    blocks = list(
        chains.collect(
            jax.random.key(0),
            algorithm,
            starts,
            PROBLEM.batch,
            num_warmup=200,
            num_draws=8000,
            thin=3,
            block_size=200,
        )
    )
    draws = np.concatenate([block.draws["kernel"][..., 0] for block in blocks], 1).astype(np.float64)
    trace = {key: np.concatenate([block.trace[key] for block in blocks], 1) for key in blocks[0].trace}
    assert diagnostics.chain_status(draws, trace) == ["ok"] * 4
    for chain in range(4):  # of psgld each has a metric of its own
        metric = {}
        if name == "psgld":
            square = np.asarray(blocks[-1].state.dynamics.square["kernel"])[chain]
            metric["precondition"] = np.ravel(langevin._inverse_root({"k": square}, 1e-3)["k"])
            assert metric["precondition"].mean() == pytest.approx(1, rel=1e-4)
        cov = stationary(EPS, 0.3 if name == "sghmc" else 1.0, **metric)
        assert np.abs(cov / PROBLEM.cov - 1).max() > 0.05
        own = draws[chain : chain + 1] - PROBLEM.mean
        rows, columns = np.triu_indices(3)
        values = np.concatenate([own, own[..., rows] * own[..., columns]], -1)
        exact = np.concatenate([np.zeros(3), cov[rows, columns]])
        ess = np.minimum(diagnostics.ess_bulk(values), 8000)
        assert ess.min() > MIN_ESS
        assert np.all(np.abs(values.mean((0, 1)) - exact) < SIGMAS * values.std((0, 1)) / np.sqrt(ess))


@pytest.mark.parametrize("name", SAMPLERS)
def test_minibatches_do_not_shift_the_step(name):
    """On average over rows and noise a step is that of all data."""
    start = PROBLEM.params([0.5, -1.0, 2.0])

    def moved(key, batch_size):
        algorithm = build(name, batch_size=batch_size, **({"num_warmup": 0} if name == "psgld" else {}))
        state = algorithm.init(key, start)
        after = algorithm.step(key, state, PROBLEM.batch)[0]
        return algorithm.sample(key, after)["kernel"] - start["kernel"]

    keys = jax.random.split(jax.random.key(1), 20000)
    few = np.asarray(jax.jit(jax.vmap(lambda key: moved(key, 7)))(keys), np.float64)
    whole = np.asarray(jax.jit(jax.vmap(lambda key: moved(key, None)))(keys), np.float64)
    assert (few.std(0) > 1.01 * whole.std(0)).all()
    error = np.hypot(few.std(0), whole.std(0)) / math.sqrt(len(keys))
    assert (np.abs(few.mean(0) - whole.mean(0)) < SIGMAS * error).all()
    assert (np.abs(whole.mean(0)) > SIGMAS * error).all()  # or a step of nothing would do


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_cycle_explores_without_noise(name):
    """eps^2 falls along a cosine, in cycles that begin after the warm-up."""
    algorithm = build(name, cycle=4, explore=0.5, num_warmup=6)
    step = jax.jit(algorithm.step)
    ways = []
    for seed in (0, 1):
        state, sizes, places = algorithm.init(jax.random.key(0), PROBLEM.params(np.ones(3))), [], []
        for t in range(7):
            state, info = step(jax.random.fold_in(jax.random.key(seed), t), state, PROBLEM.batch)
            sizes.append(float(info["step_size"]))
            places.append(np.ravel(state.z["kernel"]))
        place = (np.arange(7) - 6) % 4 / 4
        np.testing.assert_allclose(np.square(sizes), EPS**2 * (1 + np.cos(np.pi * place)) / 2, rtol=1e-5)
        ways.append(places)
    quiet = [step(jax.random.key(seed), state, PROBLEM.batch)[0].z["kernel"] for seed in (0, 1)]  # at 1/4
    np.testing.assert_array_equal(*quiet)
    assert (ways[0][0] != ways[1][0]).all()  # at 1/2


def test_the_metric_is_learned_in_the_warm_up():
    """Running mean squares, kept afterwards; the metric goes as the inverse root."""
    dynamics = langevin.preconditioned(num_warmup=3, decay=0.5, damping=1e-6)
    grads = [{"a": jnp.full(2, g), "b": jnp.full(1, 100 * g)} for g in (1.0, 2.0, 3.0, 50.0)]
    state, expected = dynamics.init(grads[0]), 0.0
    for t, grad in enumerate(grads):
        told = dict(key=jax.random.key(t), step_size=0.1, temperature=0.0)
        move, state = dynamics.update(grad, state, None, **told)
        if t < 3:
            weight = max(0.5, 1 / (t + 1))
            expected += weight * (float(grad["a"][0]) ** 2 - expected)
        np.testing.assert_allclose(state.square["a"], expected, rtol=1e-6)
        np.testing.assert_allclose(state.square["b"], 1e4 * expected, rtol=1e-6)
        np.testing.assert_allclose(move["a"][0], move["b"][0], rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("sgld", step_size=0.0), "step_size must be a positive number, not 0.0"),
        (lambda: build("sgld", step_size=math.nan), "step_size must be a positive number, not nan"),
        (lambda: build("psgld", batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: build("sghmc", cycle=1), "a cycle has at least 2 steps, not 1"),
        (lambda: build("sghmc", cycle=6, thin=9), "cycle of 6 steps: thin by a multiple of it, not by 9"),
        (lambda: build("sghmc", explore=1.0), r"explore must lie in \[0, 1\), not 1.0"),
        (lambda: langevin.underdamped(0.0), r"friction must lie in \(0, 1\], not 0.0"),
        (lambda: langevin.preconditioned(1, decay=1.0), "decay must lie between 0 and 1, not 1.0"),
        (lambda: langevin.preconditioned(1, damping=0.0), "damping must be a positive number, not 0.0"),
        (lambda: averaged(start=1.0), r"SWAG's start must lie in \[0, 1\), not 1.0"),
        (lambda: averaged(number=1), "2 iterates or more and rank 0 or 2 to 1, not 1 and 5"),
        (lambda: averaged(rank=1), "2 iterates or more and rank 0 or 2 to 10, not 10 and 1"),
        (lambda: averaged(num_steps=12), "6 steps from SWAG's start on are too few for 10 iterates"),
    ],
)
def test_a_mistake_is_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# SWAG


def averaged(num_steps=46, start=0.5, number=10, rank=5):
    """SGD whose gradient is random noise around the posterior."""
    return swag.build(PROBLEM.log_joint(), 40, num_steps, optax.sgd(0.05), start, number, rank)


def walk(algorithm, num_steps):
    """The iterates (num_steps, 3) of minibatches, and the last state."""
    state, places = algorithm.init(jax.random.key(0), PROBLEM.params(np.ones(3))), []
    step = jax.jit(algorithm.step)
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        rows = rng.integers(0, 40, 4)
        batch = Batch(PROBLEM.batch.x[rows], PROBLEM.batch.y[rows])
        state, _ = step(jax.random.key(0), state, batch)
        places.append(np.ravel(state.params["kernel"]))
    return np.array(places, np.float64), state


@pytest.mark.parametrize("rank", [0, 5])
def test_swag_samples_the_moments_of_its_iterates(rank):
    """Every second of the last 23 steps, ten and no more; the deviations are from the mean of their time."""
    algorithm = averaged(rank=rank)
    places, state = walk(algorithm, 46)
    taken = places[24:43:2]
    assert int(state.taken) == len(taken) == 10
    means = np.cumsum(taken, 0) / np.arange(1, len(taken) + 1)[:, None]
    cov = np.diag(taken.var(0))
    if rank:
        last = (taken - means)[-5:]
        cov = (cov + last.T @ last / 4) / 2
    draws = jax.jit(jax.vmap(algorithm.sample, (0, None)))(jax.random.split(jax.random.key(1), 40000), state)
    draws = np.asarray(draws["kernel"], np.float64)[..., 0]
    own = draws - means[-1]
    rows, columns = np.triu_indices(3)
    values = np.concatenate([own, own[:, rows] * own[:, columns]], -1)
    exact = np.concatenate([np.zeros(3), cov[rows, columns]])
    assert (np.abs(values.mean(0) - exact) < SIGMAS * values.std(0) / 200).all()


@pytest.mark.parametrize("rank", [0, 5])
def test_swag_resumes_from_a_checkpoint(rank, tmp_path):
    """An array without elements would not be kept."""
    _, state = walk(averaged(rank=rank), 46)
    checkpoint.save(tmp_path / "state", state)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load(tmp_path / "state", state), state)


def test_swag_of_weights_at_rest():
    """Those of a dead unit shrink, then stay: no rounding makes their variance negative."""
    algorithm = swag.build(lambda params, slope: jnp.sum(params * slope), 1, 46, optax.sgd(1.0), 0.5, 10, 5)
    start, end = jnp.array([[1.0], [1e-3]]) * jax.random.normal(jax.random.key(0), (2, 1000))
    state, step = algorithm.init(jax.random.key(0), start), jax.jit(algorithm.step)
    for slope in (-start, end, *[jnp.zeros_like(start)] * 44):
        state, _ = step(jax.random.key(0), state, slope)
    assert int(state.taken) == 10
    assert (np.asarray(state.square) >= 0).all()
    np.testing.assert_allclose(algorithm.sample(jax.random.key(1), state), end, atol=1e-6)


def test_swag_before_its_start_is_map():
    algorithm = averaged()
    places, state = walk(algorithm, 20)
    draw = algorithm.sample(jax.random.key(1), state)
    np.testing.assert_array_equal(np.ravel(draw["kernel"]), places[-1].astype(np.float32))


# IVON


@pytest.mark.parametrize("batch_size", [40, 10])
def test_ivon_reaches_the_mean_field_optimum(batch_size):
    """q = N(posterior mean, 1 / diag(precision)), as any other way to the best of the family."""
    prior, likelihood = isotropic.build(PROBLEM.std), gaussian.build(PROBLEM.sigma)
    settings = dict(num_data=40, num_steps=4000, num_samples=8, beta2=0.998)
    algorithm = ivon.build(PROBLEM.apply, likelihood, prior, **settings)
    state, _ = loop.fit(
        jax.random.key(0),
        algorithm,
        PROBLEM.params(np.zeros(3)),
        PROBLEM.batch,
        num_steps=4000,
        batch_size=batch_size,
        chunk_size=1000,
    )
    std = 1 / np.sqrt(40 * (np.ravel(state.hess["kernel"]) + 1 / 40))
    np.testing.assert_allclose(np.ravel(state.mean["kernel"]), PROBLEM.mean, rtol=0.02)
    np.testing.assert_allclose(std, 1 / np.sqrt(np.diag(PRECISION)), rtol=0.05)
    draws = jax.vmap(algorithm.sample, (0, None))(jax.random.split(jax.random.key(1), 20000), state)
    draws = np.asarray(draws["kernel"], np.float64)[..., 0]
    np.testing.assert_allclose(draws.std(0), std, rtol=SIGMAS / math.sqrt(2 * 20000))
    assert (np.abs(draws.mean(0) - np.ravel(state.mean["kernel"])) < SIGMAS * std / math.sqrt(20000)).all()


def test_a_step_of_ivon_by_hand():
    """One weight, loss (w - 3)^2 / 2 a example, prior N(1, 0.5^2), N = 8: all four lines of the method."""
    likelihood = gaussian.build(1.0)
    prior = isotropic.build(0.5)._replace(moments=lambda like: (jnp.ones_like(like), 0.5 + 0 * like))
    settings = dict(num_data=8, num_steps=10, learning_rate=0.2, beta1=0.6, beta2=0.7, hess_init=0.3)
    algorithm = ivon.build(lambda w, x: w * x, likelihood, prior, **settings)
    state = algorithm.init(jax.random.key(0), jnp.asarray([2.0]))
    batch = Batch(jnp.ones((4, 1)), jnp.full(4, 3.0))
    mean, h, g, delta = 2.0, 0.3, 0.0, 1 / (8 * 0.25)
    for t in range(3):
        key = jax.random.key(t + 1)
        noise = float(trees.normal_like(jax.random.split(key, 1)[0], jnp.zeros(1))[0])
        variance = 1 / (8 * (h + delta))
        w = mean + math.sqrt(variance) * noise
        seen = w - 3
        g = 0.6 * g + 0.4 * seen
        curved = seen * (w - mean) / variance
        h = 0.7 * h + 0.3 * curved + 0.3**2 * (h - curved) ** 2 / (2 * (h + delta))
        rate = 0.1 * (1 + math.cos(math.pi * t / 10))
        mean -= rate * (g / (1 - 0.6 ** (t + 1)) + delta * (mean - 1)) / (h + delta)
        state, info = algorithm.step(key, state, batch)
        np.testing.assert_allclose([state.mean[0], state.hess[0]], [mean, h], rtol=1e-4)
    assert int(state.t) == 3
    assert set(info) == {"nll"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prior=laplace.build()), "IVON needs a Gaussian prior"),
        (dict(num_samples=0), "IVON needs at least one sample a step, not 0"),
        (dict(learning_rate=0.0), "IVON's learning_rate must be a positive number, not 0.0"),
        (dict(hess_init=math.inf), "IVON's hess_init must be a positive number, not inf"),
        (dict(beta2=1.0), "beta1 and beta2 must lie between 0 and 1, not 0.9 and 1.0"),
    ],
)
def test_a_mistake_with_ivon(changes, message):
    given = dict(prior=isotropic.build(), num_data=8, num_steps=10) | changes
    with pytest.raises(UserError, match=message):
        ivon.build(None, None, **given)
