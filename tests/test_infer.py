"""Inference methods against exact answers, and what every method must be (found by name, no list to edit)."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import SIGMAS, agrees, agrees_with_moments, conv_problem, estimator_names, linear, run_chains
from scipy.stats import chisquare, multivariate_normal

from bnn_jax import diagnostics, ensemble, estimators, hamiltonian, loop, objectives, parts, trees
from bnn_jax.infer import dropout, hmc, nuts, rank_one, vi
from bnn_jax.infer import map as map_
from bnn_jax.likelihoods import gaussian
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import isotropic
from bnn_jax.types import Algorithm, Batch, UserError

METHODS = parts.names("method")
SAMPLERS = {"hmc": hmc.build, "nuts": nuts.build}


pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def problem():
    return linear()


def target(problem, temperature=1.0):
    parts = objectives.tempered(isotropic.build(problem.std), gaussian.build(problem.sigma), temperature)
    return objectives.log_joint(problem.apply, *parts, len(problem.batch.x))


def scale(params, width=1.0):
    return jax.tree.map(lambda a: jnp.full_like(a, width), params)


@pytest.mark.parametrize("name", SAMPLERS)
def test_chains_sample_the_linear_posterior(name, problem):
    algorithm = SAMPLERS[name](target(problem), isotropic.build(problem.std).scale, num_warmup=200)
    starts = problem.params(np.zeros(3))
    starts = jax.tree.map(lambda a: a + jnp.arange(4.0)[:, None, None] / 2, starts)
    draws, trace = run_chains(algorithm, starts, problem.batch, 3000)
    assert diagnostics.chain_status(draws, trace) == ["ok"] * 4
    assert np.max(diagnostics.rhat(draws)) < 1.02
    assert 0.6 < trace["accept_prob"].mean() < 0.99
    agrees_with_moments(draws, problem.mean, problem.cov)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_temperature_scales_the_covariance(problem, temperature):
    algorithm = hmc.build(
        target(problem, temperature), scale, num_warmup=200, trajectory_length=0.15 * temperature**0.5
    )
    starts = jax.tree.map(lambda a: jnp.stack([a] * 4), problem.params(problem.mean))
    draws, _ = run_chains(algorithm, starts, problem.batch, 3000)
    agrees_with_moments(draws, problem.mean, temperature * problem.cov)


@pytest.mark.parametrize("name", SAMPLERS)
def test_chains_sample_a_skewed_target(name):
    """Gumbel, whose mean is 0.577 and variance pi^2 / 6; a wrong sign is invisible on symmetric targets.
    The unit of length is not 1, and differs between the weights."""

    def log_joint(params, batch):
        return trees.tree_sum(jax.tree.map(lambda z: -z - jnp.exp(-z), params))

    widths = lambda params: {"a": jnp.full((1,), 2.0), "b": jnp.full((2,), 0.7)}
    algorithm = SAMPLERS[name](log_joint, widths, num_warmup=200)
    starts = {"a": jnp.zeros((4, 1)), "b": jnp.ones((4, 2))}
    draws, _ = run_chains(algorithm, starts, Batch(np.zeros((1, 1)), np.zeros(1)), 3000, thin=2)
    agrees(draws, np.full(3, np.euler_gamma))
    agrees(np.square(draws - np.euler_gamma), np.full(3, math.pi**2 / 6))
    agrees((draws - np.euler_gamma) ** 3, np.full(3, 2 * 1.2020569))


def adam(rate, steps):
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


@pytest.mark.parametrize("batch_size", [40, 10])
@pytest.mark.parametrize("name", estimator_names())
def test_vi_reaches_the_mean_field_optimum(problem, name, batch_size):
    """q = N(posterior mean, 1 / diag(precision)): what the family can do best, for every estimator."""
    family, prior = mean_field.build(0.3), isotropic.build(problem.std)
    estimator = estimators.build(name, problem.module, family, 16, "vmap")
    bound = objectives.elbo(estimator, family, prior, gaussian.build(problem.sigma), 40)
    steps = 2500
    algorithm = vi.build(bound, family, 40, adam(0.03, steps))
    state, _ = loop.fit(
        jax.random.key(0),
        algorithm,
        problem.params(np.zeros(3)),
        problem.batch,
        num_steps=steps,
        batch_size=batch_size,
        chunk_size=500,
    )
    mean, std = (np.ravel(tree["kernel"]) for tree in family.moments(state.phi))
    np.testing.assert_allclose(mean, problem.mean, rtol=0.01)
    np.testing.assert_allclose(std, 1 / np.sqrt(np.diag(np.linalg.inv(problem.cov))), rtol=0.05)
    assert state.t == steps


def test_vi_at_a_temperature(problem):
    """The optimum has the mean of the posterior and sqrt(T) times the widths at T = 1."""
    family, temperature, steps = mean_field.build(0.3), 4.0, 2500
    parts = objectives.tempered(isotropic.build(problem.std), gaussian.build(problem.sigma), temperature)
    estimator = estimators.build("antithetic", problem.module, family, 16, "vmap")
    algorithm = vi.build(objectives.elbo(estimator, family, *parts, 40), family, 40, adam(0.03, steps))
    start = problem.params(np.zeros(3))
    given = dict(num_steps=steps, batch_size=40, chunk_size=500)
    state, _ = loop.fit(jax.random.key(0), algorithm, start, problem.batch, **given)
    mean, std = (np.ravel(tree["kernel"]) for tree in family.moments(state.phi))
    np.testing.assert_allclose(mean, problem.mean, rtol=0.01)
    want = np.sqrt(temperature / np.diag(np.linalg.inv(problem.cov)))
    np.testing.assert_allclose(std, want, rtol=0.05)


def test_vi_knows_the_evidence(problem):
    """At the optimum of independent weights the bound is tight: ELBO = log p(y)."""
    x = np.linalg.qr(problem.batch.x)[0] * 3
    covariance = x @ x.T + problem.sigma**2 * np.eye(40)
    y = np.asarray(problem.batch.y, np.float64)
    evidence = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * math.pi * covariance)[1])
    precision = 9 / problem.sigma**2 + 1
    family, std = mean_field.build(), precision**-0.5
    phi = mean_field.build(std).init(problem.params(x.T @ y / problem.sigma**2 / precision))
    estimator = estimators.build("antithetic", problem.module, family, 2000, "vmap")
    bound = objectives.elbo(estimator, family, isotropic.build(), gaussian.build(problem.sigma), 40)
    value, _ = bound(jax.random.key(0), phi, Batch(x.astype(np.float32), problem.batch.y))
    np.testing.assert_allclose(value, evidence, atol=0.15)


def test_beta_schedule(problem):
    """`beta` may be a schedule; the step counts, and the trace says which weight it used."""
    bound = lambda key, phi, batch, beta: (-beta * jnp.sum(phi.mean["kernel"] ** 2), {})
    algorithm = vi.build(bound, mean_field.build(), 1, optax.sgd(0.1), beta=optax.linear_schedule(0, 1, 2))
    state = algorithm.init(jax.random.key(0), problem.params(np.ones(3)))
    seen = []
    for _ in range(4):
        state, info = algorithm.step(jax.random.key(1), state, problem.batch)
        seen.append((float(info["beta"]), float(state.phi.mean["kernel"][0, 0])))
    np.testing.assert_allclose(seen, [(0.0, 1.0), (0.5, 0.9), (1.0, 0.72), (1.0, 0.576)], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [40, 10])
def test_map_is_the_posterior_mean(problem, batch_size):
    algorithm = map_.build(target(problem), 40, adam(0.05, 2000))
    state, history = loop.fit(
        jax.random.key(0),
        algorithm,
        problem.params(np.zeros(3)),
        problem.batch,
        num_steps=2000,
        batch_size=batch_size,
        chunk_size=500,
    )
    rtol = 1e-3 if batch_size == 40 else 1e-2
    np.testing.assert_allclose(np.ravel(state.params["kernel"]), problem.mean, rtol=rtol)
    if batch_size == 40:
        np.testing.assert_allclose(
            history["log_joint"][-1], target(problem)(problem.params(problem.mean), problem.batch), rtol=1e-4
        )


def test_simulation_based_calibration():
    """w ~ p(w), y ~ p(y | w), draws ~ p(w | y): the rank of w among the draws is uniform. So is that of the
    log likelihood, which alone would see a posterior that forgot the data, and of the log prior.
    (Talts et al., arXiv:1804.06788; Modrak et al., arXiv:2211.02383.)"""
    count, num_draws, thin, num_warmup = 600, 15, 3, 40
    problem = linear(num_data=5, features=2, sigma=1.0)
    prior, likelihood = isotropic.build(problem.std), gaussian.build(problem.sigma)
    log_joint = objectives.log_joint(problem.apply, prior, likelihood, 5)
    algorithm = hmc.build(log_joint, prior.scale, num_warmup, trajectory_length=0.9, step_size=0.3)
    like = problem.params(np.zeros(2))

    def quantities(params, batch):
        fit = jnp.sum(likelihood.log_prob(problem.apply(params, batch.x), batch.y))
        return jnp.stack([*jnp.ravel(params["kernel"]), fit, prior.log_prob(params)])

    def simulate(key):
        key_w, key_y, key_start, key_init, key_steps = jax.random.split(key, 5)
        truth = prior.sample(key_w, like)
        x = jnp.asarray(problem.batch.x)
        y = problem.apply(truth, x)[:, 0] + problem.sigma * jax.random.normal(key_y, (5,))
        batch = Batch(x, y)
        state = algorithm.init(key_init, prior.sample(key_start, like))

        def step(state, t):
            state, _ = algorithm.step(jax.random.fold_in(key_steps, t), state, batch)
            return state, quantities(algorithm.sample(key_steps, state), batch)

        _, trace = jax.lax.scan(step, state, jnp.arange(num_warmup + num_draws * thin))
        return jnp.sum(trace[num_warmup + thin - 1 :: thin] < quantities(truth, batch), 0)

    ranks = np.asarray(jax.jit(jax.vmap(simulate))(jax.random.split(jax.random.key(0), count)))
    assert ranks.shape == (count, 4)
    for number, name in enumerate(["weight 0", "weight 1", "log likelihood", "log prior"]):
        counts = np.bincount(ranks[:, number], minlength=num_draws + 1)
        assert chisquare(counts).pvalue > 1e-4, f"the ranks of the {name} are not uniform: {counts}"


# What becomes of a chain that does not move, is told by `diagnostics.chain_status`.


def guarded(problem, starts=None, **settings) -> tuple[list[str], dict]:
    algorithm = hmc.build(target(problem), isotropic.build(problem.std).scale, num_warmup=0, **settings)
    if starts is None:
        starts = jax.tree.map(lambda a: jnp.stack([a] * 2), problem.params(problem.mean))
    draws, trace = run_chains(algorithm, starts, problem.batch, 10, num_warmup=0)
    return diagnostics.chain_status(draws, trace), trace


def test_a_huge_step_size_freezes_and_is_named(problem):
    status, trace = guarded(problem, step_size=1e30)
    assert status == ["frozen"] * 2
    assert trace["accept_prob"].max() == 0


def test_a_trajectory_without_steps_is_named(problem):
    """The trap: 0 leapfrog steps, every 'proposal' the current point, acceptance 1."""
    status, trace = guarded(problem, step_size=3e37, trajectory_length=0.1)
    assert status == ["frozen"] * 2
    assert trace["num_steps"].min() == 0
    assert trace["accept_prob"].min() == 1


def test_a_trajectory_ends_after_so_many_steps(problem, monkeypatch):
    """The trap: after a row of rejections the step size is a millionth, and one draw takes hours."""
    monkeypatch.setattr(hamiltonian, "MAX_LEAPFROGS", 64)
    for step_size, num_steps in ((1e-6, 64), (0.1, 15)):
        _, trace = guarded(problem, step_size=step_size, trajectory_length=1.5)
        assert set(np.unique(trace["num_steps"])) == {num_steps}


def test_a_chain_that_starts_at_nan_is_named(problem):
    starts = jax.tree.map(lambda a: jnp.stack([a, a * jnp.nan]), problem.params(problem.mean))
    assert guarded(problem, starts, step_size=0.05)[0] == ["ok", "nan"]


def test_rejected_steps_leave_the_draw_bit_identical(problem):
    """So that a jump of zero is told from a short one."""
    algorithm = hmc.build(target(problem), functools.partial(scale, width=0.3), 0, step_size=1e30)
    start = problem.params([0.1, 0.7, -1.3])
    state = algorithm.init(jax.random.key(0), start)
    before = algorithm.sample(jax.random.key(1), state)
    state, _ = jax.jit(algorithm.step)(jax.random.key(2), state, problem.batch)
    after = algorithm.sample(jax.random.key(1), state)
    np.testing.assert_array_equal(after["kernel"], before["kernel"])
    np.testing.assert_allclose(after["kernel"], start["kernel"], rtol=1e-6)


def test_errors(problem):
    log_joint = target(problem)
    for build in SAMPLERS.values():
        for bad in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(UserError, match="step_size must be a positive number"):
                build(log_joint, scale, 10, step_size=bad)
        for bad in (0.0, 1.0, math.nan):
            with pytest.raises(UserError, match="target_accept_prob must lie between 0 and 1"):
                build(log_joint, scale, 10, target_accept_prob=bad)
        with pytest.raises(UserError, match="num_warmup must not be negative, not -1"):
            build(log_joint, scale, -1)
    for bad in (0.0, math.inf, math.nan):
        with pytest.raises(UserError, match="trajectory_length must be a positive number"):
            hmc.build(log_joint, scale, 10, trajectory_length=bad)
    with pytest.raises(UserError, match="max_tree_depth must be at least 1, not 0"):
        nuts.build(log_joint, scale, 10, max_tree_depth=0)


def test_dropout_reaches_its_ridge_regression(problem):
    """E_z |y - X (z w) / (1 - p)|^2 = |y - X w|^2 + p / (1 - p) sum_j w_j^2 |x_j|^2; the prior likewise."""
    p, (x, y) = 0.3, problem.batch
    algorithm = dropout.build(target(problem), (("data",), ()), 40, adam(0.03, 6000), rate=p)
    state, _ = loop.fit(
        jax.random.key(0),
        algorithm,
        problem.params(np.zeros(3)),
        problem.batch,
        num_steps=6000,
        batch_size=40,
        chunk_size=1000,
    )
    gram, decay = x.T @ x, problem.sigma**2 / problem.std**2 / (1 - p)
    ridge = gram + p / (1 - p) * np.diag(np.diag(gram)) + decay * np.eye(3)
    np.testing.assert_allclose(np.ravel(state.params["kernel"]), np.linalg.solve(ridge, x.T @ y), rtol=0.03)


def test_dropout_without_rate_is_map(problem):
    settings = (40, optax.adam(0.05))
    plain = map_.build(target(problem), *settings)
    dropped = dropout.build(target(problem), (("data",), ()), *settings, rate=0.0)
    fit = lambda algorithm: (
        loop.fit(
            jax.random.key(0),
            algorithm,
            problem.params(np.ones(3)),
            problem.batch,
            num_steps=20,
            batch_size=10,
        )[0].params
    )
    jax.tree.map(np.testing.assert_array_equal, fit(plain), fit(dropped))


def test_dropout_drops_whole_units_of_all_layers_but_the_first():
    params = {
        "Conv_0": {"kernel": jnp.ones((2, 2, 1, 3)), "bias": jnp.ones(3)},
        "inner": {"Conv_1": {"kernel": jnp.ones((2, 2, 400, 3))}},
        "Dense_0": {"kernel": jnp.ones((400, 5)), "bias": jnp.ones(5)},
    }
    layers = (("Conv_0",), ("inner", "Conv_1"), ("Dense_0",))
    algorithm = dropout.build(None, layers, 1, optax.sgd(0.1), rate=0.25)
    draw = algorithm.sample(jax.random.key(0), algorithm.init(jax.random.key(0), params))
    jax.tree.map(np.testing.assert_array_equal, draw["Conv_0"], params["Conv_0"])
    np.testing.assert_array_equal(draw["Dense_0"]["bias"], params["Dense_0"]["bias"])
    masks = []
    for kernel in (draw["inner"]["Conv_1"]["kernel"], draw["Dense_0"]["kernel"]):
        kept = np.asarray(kernel) > 0
        units = np.moveaxis(kept, -2, 0).reshape(400, -1)
        assert (units.all(1) | ~units.any(1)).all()
        np.testing.assert_allclose(np.asarray(kernel)[kept], 1 / 0.75, rtol=1e-6)
        assert abs(units.all(1).mean() - 0.75) < SIGMAS * np.sqrt(0.25 * 0.75 / 400)
        masks.append(units.all(1))
    assert not np.array_equal(*masks)


# Rank-1 networks


def test_a_step_of_rank_one_by_hand():
    """Plain gradient descent on (nll - (log p(M) - KL) / N), the KL summed by hand; draws M * s r^T."""
    likelihood, prior = gaussian.build(0.5), isotropic.build(2.0)
    params = {"kernel": jnp.asarray([[0.5], [-1.0], [2.0]])}
    apply = lambda params, x: x @ params["kernel"]
    sgd = optax.sgd(0.1)
    algorithm = rank_one.build(apply, ((),), likelihood, prior, 40, sgd, prior_std=0.3, init_std=0.2)
    state = algorithm.init(jax.random.key(0), params)
    batch = linear().batch

    def vectors(key, mean, rho):
        noise = trees.normal_like(key, mean)
        return [
            m + jnp.log1p(jnp.exp(r)) * e
            for m, r, e in zip(*map(jax.tree.leaves, (mean, rho, noise)), strict=True)
        ]

    def loss(learned, key):
        kernel, mean, rho = learned
        s, r = vectors(key, mean, rho)
        error = batch.x @ (kernel * jnp.outer(s, r)) - batch.y[:, None]
        nll = jnp.mean(0.5 * (error / 0.5) ** 2) + math.log(0.5 * math.sqrt(2 * math.pi))
        divergence = 0.0
        for m, p in zip(jax.tree.leaves(mean), jax.tree.leaves(rho), strict=True):
            std = jnp.log1p(jnp.exp(p))
            divergence += jnp.sum(jnp.log(0.3 / std) + (std**2 + (m - 1) ** 2) / (2 * 0.09) - 0.5)
        penalty = jnp.sum(kernel**2) / 8 + 3 * math.log(2 * math.sqrt(2 * math.pi))
        return nll + (divergence + penalty) / 40, (nll, divergence)

    key = jax.random.key(1)
    learned = (params["kernel"], state.mean, state.rho)
    grads, (nll, divergence) = jax.grad(loss, has_aux=True)(learned, key)
    want = jax.tree.map(lambda a, g: a - 0.1 * g, learned, grads)
    after, info = algorithm.step(key, state, batch)
    close((after.params["kernel"], after.mean, after.rho), want)
    np.testing.assert_allclose([info["nll"], info["kl"]], [nll, divergence], rtol=1e-5)
    s, r = vectors(key, after.mean, after.rho)
    close(algorithm.sample(key, after)["kernel"], after.params["kernel"] * jnp.outer(s, r))


def test_rank_one_turns_inputs_and_outputs_of_the_layers_it_is_told():
    """The ratio of a draw and M is an outer product over (inputs, outputs), one for all window entries."""
    params = conv_problem()[1]
    algorithm = rank_one.build(
        None, (("Conv_0",), ("Dense_0",)), None, isotropic.build(), 1, optax.sgd(0.1), init_std=0.5
    )
    draw = algorithm.sample(jax.random.key(0), algorithm.init(jax.random.key(1), params))
    ratio = {
        name: np.asarray(draw[name]["kernel"] / params[name]["kernel"]) for name in ("Conv_0", "Dense_0")
    }
    np.testing.assert_allclose(
        ratio["Conv_0"], np.broadcast_to(ratio["Conv_0"][0, 0], (3, 3, 2, 4)), rtol=1e-4
    )
    for matrix in (ratio["Conv_0"][0, 0], ratio["Dense_0"]):
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert singular[1] < 1e-4 * singular[0]
        assert matrix.std(0).max() > 0.05
        assert matrix.std(1).max() > 0.05
    jax.tree.map(np.testing.assert_array_equal, draw["Conv_1"], params["Conv_1"])
    np.testing.assert_array_equal(draw["Dense_0"]["bias"], params["Dense_0"]["bias"])


@pytest.mark.parametrize("changes", [{"prior_std": 0.0}, {"init_std": math.inf}])
def test_a_width_of_rank_one_that_is_none(changes):
    (name,) = changes
    with pytest.raises(UserError, match=f"rank_one's {name} must be a positive number, not"):
        rank_one.build(None, (), None, None, 1, optax.sgd(0.1), **changes)


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_a_rate_of_dropout_that_is_none(rate):
    with pytest.raises(UserError, match=r"the rate of dropout must lie in \[0, 1\), not"):
        dropout.build(None, (), 1, optax.sgd(0.1), rate=rate)


# Conformance: every file in bnn_jax/infer, built from what scripts offer.


class Case(NamedTuple):
    algorithm: Algorithm
    params: dict
    data: Batch


@functools.cache
def offered_methods() -> dict[str, Algorithm]:
    problem = linear()
    family, prior, likelihood = (
        mean_field.build(),
        isotropic.build(problem.std),
        gaussian.build(problem.sigma),
    )
    estimator = estimators.build("sampling", problem.module, family, 2)
    offered = {
        "apply": problem.apply,
        "module": problem.module,
        "prior": prior,
        "scale": prior.scale,
        "likelihood": likelihood,
        "posterior": family,
        "log_joint": target(problem),
        "elbo": objectives.elbo(estimator, family, prior, likelihood, 40),
        "num_data": 40,
        "layers": ((), ()),  # the problem's only layer, twice: dropout leaves the first one alone
        "optimizer": optax.adam(0.01),
        "constant_optimizer": optax.adam(0.01),
        "num_warmup": 2,
        "num_steps": 100,
        "batch_size": 10,
        "trajectory_length": 0.1,
        "max_tree_depth": 3,
    }
    return {name: parts.call(parts.find("method", name), offered) for name in METHODS}


@pytest.fixture(params=METHODS)
def case(request, problem):
    return Case(offered_methods()[request.param], problem.params([0.1, -0.2, 0.3]), problem.batch)


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol), a, b)


def close_infos(a, b):
    """As `close`; an energy change, the small difference of two log joints, to a few roundings of these."""
    change = "energy_change"
    plain = lambda info: {name: value for name, value in info.items() if name != change}
    close(plain(a), plain(b))
    if change in b:
        close(a[change], b[change], atol=1e-5 + 4 * np.spacing(np.abs(np.float32(b["log_joint"]))))


def test_a_step_is_a_pure_function(case):
    """The same inputs give the same outputs, compiled or not, and no key is used twice."""
    step = jax.jit(case.algorithm.step)
    with jax.debug_key_reuse(True):
        state = case.algorithm.init(jax.random.key(0), case.params)
        first = step(jax.random.key(1), state, case.data)
        again = step(jax.random.key(1), state, case.data)
        plain = case.algorithm.step(jax.random.key(1), state, case.data)
        params = case.algorithm.sample(jax.random.key(2), first[0])
    jax.tree.map(np.testing.assert_array_equal, first, again)
    close(plain, first)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state, first[0])
    assert any(jax.tree.leaves(moved)), "the step did nothing"
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), params, case.params
    )


def test_the_state_holds_no_key_and_keeps_its_type(case):
    """A state that keeps shapes and dtypes can be carried by loops and restored from a checkpoint."""
    state = jax.eval_shape(case.algorithm.init, jax.random.key(0), case.params)
    after, info = jax.eval_shape(case.algorithm.step, jax.random.key(0), state, case.data)
    for leaf in jax.tree.leaves((state, after)):
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key), "a key in the state"
        assert leaf.dtype != jnp.uint32, "a raw key in the state"
    assert jax.tree.structure(state) == jax.tree.structure(after)
    kind = lambda a: (a.shape, a.dtype, a.weak_type)  # another weak type would compile the step once more
    same = jax.tree.map(lambda a, b: kind(a) == kind(b), state, after)
    assert all(jax.tree.leaves(same))
    assert info
    assert all(isinstance(name, str) and leaf.shape == () for name, leaf in info.items())


def test_scan_and_vmap(case):
    """A scan of steps in two vmapped chains equals the steps one by one."""
    keys = jax.random.split(jax.random.key(0), 2)

    def run(key, params):
        state = case.algorithm.init(key, params)
        take = lambda state, t: case.algorithm.step(jax.random.fold_in(key, t), state, case.data)
        state, infos = jax.lax.scan(take, state, jnp.arange(3))
        return case.algorithm.sample(key, state), infos

    starts = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), case.params)
    many, infos = jax.jit(jax.vmap(run))(keys, starts)
    assert {leaf.shape for leaf in infos.values()} == {(2, 3)}
    assert all(np.isfinite(leaf).all() for leaf in infos.values())
    step = jax.jit(case.algorithm.step)
    state = case.algorithm.init(keys[1], jax.tree.map(lambda a: a[1], starts))
    for t in range(3):
        state, info = step(jax.random.fold_in(keys[1], t), state, case.data)
        close_infos({name: leaf[1, t] for name, leaf in infos.items()}, info)
    close(jax.tree.map(lambda a: a[1], many), case.algorithm.sample(keys[1], state))


def test_densities_are_those_of_the_draws(case):
    """Where a method has one: on the linear problem a Gaussian, normalised, from which the draws are."""
    if case.algorithm.log_prob is None:
        return
    state, _ = loop.fit(
        jax.random.key(0), case.algorithm, case.params, case.data, num_steps=100, batch_size=10
    )
    log_prob = lambda w: case.algorithm.log_prob(state, {"kernel": w[:, None]})
    start = jnp.asarray([0.3, -0.1, 0.2])
    slope, precision = jax.grad(log_prob)(start), -np.asarray(jax.hessian(log_prob)(start), np.float64)
    cov = np.linalg.inv((precision + precision.T) / 2)
    mean = np.asarray(start, np.float64) + cov @ np.asarray(slope, np.float64)
    keys = jax.random.split(jax.random.key(1), 20000)
    draws = np.asarray(jax.jit(jax.vmap(case.algorithm.sample, (0, None)))(keys, state)["kernel"])[..., 0]
    known = multivariate_normal(mean, cov).logpdf(draws[:50])
    np.testing.assert_allclose(jax.vmap(log_prob)(draws[:50]), known, atol=2e-3)
    agrees_with_moments(draws[None].astype(np.float64), mean, cov)


def test_which_methods_have_a_density():
    """Those whose draws come from a density that is known; not chains, nor an ensemble of any."""
    offered = offered_methods()
    assert {name for name in METHODS if offered[name].log_prob} == {"vi", "ivon", "laplace"}
    assert ensemble.build(offered["vi"], 2).log_prob is None


def test_points_are_those_whose_draws_do_not_differ(case):
    """`trained` predicts with as many draws as there are different ones."""
    if case.algorithm.chain:
        return
    state, _ = loop.fit(
        jax.random.key(0), case.algorithm, case.params, case.data, num_steps=100, batch_size=10
    )
    draws = jax.vmap(case.algorithm.sample, (0, None))(jax.random.split(jax.random.key(1), 50), state)
    assert bool((draws["kernel"] == draws["kernel"][0]).all()) == case.algorithm.point


def test_ensembles(case):
    """Three members: own starts, own keys, the same batch. (The check for reused keys refuses a vmapped
    `cond` between keys, of which NumPyro's NUTS has one.)"""
    members = ensemble.build(case.algorithm, 3)
    starts = jax.tree.map(lambda a: jnp.stack([a, a, 2 * a]), case.params)
    with jax.debug_key_reuse(not case.algorithm.chain):
        state = members.init(jax.random.key(0), starts)
        state, info = jax.jit(members.step)(jax.random.key(1), state, case.data)
        params = members.sample(jax.random.key(2), state)
    assert {leaf.shape for leaf in info.values()} == {(3,)}
    assert params["kernel"].shape == (3, *case.params["kernel"].shape)
    same = lambda one: (one.chain, one.linearise_at, one.point, one.whole)
    assert same(members) == same(case.algorithm)
    key_init, key_step = (jax.random.split(jax.random.key(seed), 3)[2] for seed in (0, 1))
    alone = case.algorithm.init(key_init, jax.tree.map(lambda a: a[2], starts))
    _, info_alone = case.algorithm.step(key_step, alone, case.data)
    close_infos({name: leaf[2] for name, leaf in info.items()}, info_alone)


def test_ensembles_have_members():
    with pytest.raises(UserError, match="an ensemble needs at least one member, not 0"):
        ensemble.build(offered_methods()["map"], 0)
