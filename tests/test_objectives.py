"""The log joint and the ELBO against independent computations in float64 NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import linear
from scipy.integrate import quad
from scipy.stats import norm

from bnn_jax import estimators, objectives, parts, trees
from bnn_jax.likelihoods import gaussian
from bnn_jax.nets import lenet
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import isotropic, laplace
from bnn_jax.types import Batch, UserError

SIGMAS = 5
PRIORS = {name: parts.find("prior", name)() for name in parts.names("prior")}
GAUSSIAN = [name for name, prior in PRIORS.items() if prior.moments is not None]


pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def problem():
    return linear()


def small_phi(seed=0):
    """Means and standard deviations of every size, in a kernel and a bias."""
    rng = np.random.default_rng(seed)
    mean = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    std = {"kernel": np.geomspace(1e-3, 3, 6).reshape(3, 2), "bias": np.array([0.5, 1.0])}
    return phi_of(mean, std), mean, std


def phi_of(mean, std):
    as_jax = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)
    rho = jax.tree.map(lambda s: s + np.log(-np.expm1(-s)), std)
    return mean_field.MeanField(as_jax(mean), as_jax(rho))


def prior_moments(prior, like):
    """The prior's moments in float64, leaf by leaf."""
    return [
        jax.tree.leaves(jax.tree.map(lambda a: np.asarray(a, np.float64), m)) for m in prior.moments(like)
    ]


def parts_of(problem, std=None):
    """The linear problem's apply, family, prior and likelihood."""
    family = mean_field.build(0.1)
    return problem.apply, family, isotropic.build(std or problem.std), gaussian.build(problem.sigma)


def log_lik(problem, w, batch=None):
    """Per example, in float64."""
    batch = batch or problem.batch
    return norm.logpdf(batch.y, np.asarray(batch.x, np.float64) @ np.ravel(w).astype(float), problem.sigma)


def test_gaussian_priors_are_found():
    assert {"isotropic", "fan_in"} <= set(GAUSSIAN)
    assert {"laplace", "scale_mixture", "student_t"} <= set(PRIORS) - set(GAUSSIAN)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_kl_is_the_integral(name):
    """KL(q || p), not KL(p || q), summed over the weights: by quadrature, weight by weight."""
    phi, mean, std = small_phi()
    prior_mean, prior_std = prior_moments(PRIORS[name], phi.mean)
    total = 0.0
    for m, s, a, b in zip(*map(jax.tree.leaves, (mean, std)), prior_mean, prior_std, strict=True):
        for m_i, s_i, a_i, b_i in zip(m.flat, s.flat, a.flat, b.flat, strict=True):
            f = lambda w, m=m_i, s=s_i, a=a_i, b=b_i: (
                norm.pdf(w, m, s) * (norm.logpdf(w, m, s) - norm.logpdf(w, a, b))
            )
            total += quad(f, m_i - 10 * s_i, m_i + 10 * s_i)[0]
    np.testing.assert_allclose(mean_field.build().kl(phi, PRIORS[name]), total, rtol=1e-5)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_kl_is_the_mean_log_ratio(name):
    phi, _, _ = small_phi()
    family, prior = mean_field.build(), PRIORS[name]

    def log_ratio(key):
        w = family.sample(key, phi)
        return family.log_prob(phi, w) - prior.log_prob(w)

    found = np.asarray(jax.jit(jax.vmap(log_ratio))(jax.random.split(jax.random.key(0), 20_000)), np.float64)
    error = found.std() / len(found) ** 0.5
    assert error < 0.1
    assert abs(found.mean() - family.kl(phi, prior)) < SIGMAS * error


@pytest.mark.parametrize("name", GAUSSIAN)
def test_kl_of_lenet_is_a_sum(name):
    """61,706 weights; a mean instead of the sum, or a division by the layers, is off by orders."""
    like = jax.eval_shape(lenet.build(10).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    assert trees.size(like) == 61_706
    rng = np.random.default_rng(0)
    mean = jax.tree.map(lambda a: 0.1 * rng.normal(size=a.shape), like)
    std = jax.tree.map(lambda a: rng.uniform(0.005, 0.1, a.shape), like)
    phi = phi_of(mean, std)
    exact = sum(
        np.sum(np.log(b / s) + (s**2 + (m - a) ** 2) / (2 * b**2) - 0.5)
        for m, s, a, b in zip(
            *map(jax.tree.leaves, (mean, std)), *prior_moments(PRIORS[name], phi.mean), strict=True
        )
    )
    assert exact > 10_000
    np.testing.assert_allclose(mean_field.build().kl(phi, PRIORS[name]), exact, rtol=2e-5)


def test_log_joint_is_prior_plus_likelihood(problem):
    apply, _, prior, likelihood = parts_of(problem, std=0.7)
    w = np.array([0.3, -1.2, 2.0], np.float32)
    exact = norm.logpdf(w, 0, 0.7).sum() + log_lik(problem, w).sum()
    target = objectives.log_joint(apply, prior, likelihood, len(problem.batch.x))
    np.testing.assert_allclose(target(problem.params(w), problem.batch), exact, rtol=1e-5)


def test_log_joint_of_minibatches(problem):
    """Each is on the scale of the full data; their mean is the full value."""
    apply, _, prior, likelihood = parts_of(problem)
    target = objectives.log_joint(apply, prior, likelihood, 40)
    w = np.array([0.3, -1.2, 2.0], np.float32)
    batches = [Batch(problem.batch.x[i : i + 8], problem.batch.y[i : i + 8]) for i in range(0, 40, 8)]
    found = [float(target(problem.params(w), batch)) for batch in batches]
    exact = norm.logpdf(w).sum() + 40 * log_lik(problem, w, batches[0]).mean()
    np.testing.assert_allclose(found[0], exact, rtol=1e-5)
    assert np.std(found) > 1
    np.testing.assert_allclose(np.mean(found), target(problem.params(w), problem.batch), rtol=1e-5)


@pytest.mark.parametrize("prior_name", ["gaussian", "laplace"])
@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_temperature_divides_prior_and_likelihood(problem, temperature, prior_name):
    """Up to a constant, which a Gaussian prior has so that it stays normalised."""
    apply, _, prior, likelihood = parts_of(problem)
    prior = prior if prior_name == "gaussian" else laplace.build()
    tempered = objectives.tempered(prior, likelihood, temperature)
    at = lambda parts, w: objectives.log_joint(apply, *parts, 40)(problem.params(w), problem.batch)
    a, b = [0.3, -1.2, 2.0], [1.0, 0.1, -0.4]
    change = at((prior, likelihood), a) - at((prior, likelihood), b)
    np.testing.assert_allclose(at(tempered, a) - at(tempered, b), change / temperature, rtol=1e-5)
    np.testing.assert_array_equal(tempered[1].mean(jnp.ones(3)), likelihood.mean(jnp.ones(3)))
    root = likelihood.fisher_root(jnp.ones((2, 1)), None) / temperature**0.5
    np.testing.assert_allclose(tempered[1].fisher_root(jnp.ones((2, 1)), None), root)
    assert objectives.tempered(prior, likelihood, 1.0) == (prior, likelihood)
    if prior_name == "laplace":
        with pytest.raises(UserError, match="a tempered prior that is not Gaussian cannot be sampled"):
            tempered[0].sample(jax.random.key(0), problem.params(a))


def test_a_tempered_gaussian_prior_is_a_wider_one(problem):
    likelihood = gaussian.build(problem.sigma)
    like = {"a": jnp.ones((40, 50)), "b": jnp.ones(3)}
    shifted = isotropic.build(0.5)
    shifted = shifted._replace(
        moments=lambda like: (jax.tree.map(jnp.ones_like, like), shifted.scale(like)),
        sample=lambda key, like: jax.tree.map(lambda w: 1 + w, isotropic.build(0.5).sample(key, like)),
    )
    prior, _ = objectives.tempered(shifted, likelihood, 4.0)
    wide = isotropic.build(1.0)
    away = jax.tree.map(lambda a: a - 1, prior.sample(jax.random.key(0), like))
    want = wide.sample(jax.random.key(0), like)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), away, want)
    at_mean = wide.log_prob(jax.tree.map(jnp.zeros_like, like))
    np.testing.assert_allclose(prior.log_prob(like), at_mean, rtol=1e-5)
    for found, want in zip((*prior.moments(like), prior.scale(like)), (1.0, 1.0, 1.0), strict=True):
        assert all((leaf == want).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("kl", ["closed_form", "monte_carlo"])
def test_elbo_by_hand(problem, kl):
    """N times the mean over samples and examples, minus the KL once."""
    apply, family, prior, likelihood = parts_of(problem)
    mean, std = np.array([[0.5], [-1.0], [1.5]]), np.array([[0.2], [0.05], [0.6]])
    phi = phi_of({"kernel": mean}, {"kernel": std})
    estimator = estimators.sampling(apply, family, 3)
    bound = objectives.elbo(estimator, family, prior, likelihood, 40, kl)
    value, info = bound(jax.random.key(0), phi, problem.batch, 1.0)

    _, weights = estimator(jax.random.split(jax.random.key(0))[0], phi, problem.batch.x)
    draws = np.asarray(weights["kernel"], np.float64)  # (S, 3, 1), those of the same key
    expected = np.mean([log_lik(problem, w).sum() for w in draws])
    if kl == "closed_form":
        divergence = np.sum(-np.log(std) + (std**2 + mean**2) / 2 - 0.5)
    else:
        divergence = np.mean([np.sum(norm.logpdf(w, mean, std) - norm.logpdf(w)) for w in draws])
    np.testing.assert_allclose(info["nll"], -expected / 40, rtol=1e-5)
    np.testing.assert_allclose(info["kl"], divergence, rtol=1e-4)
    np.testing.assert_allclose(value, expected - divergence, rtol=1e-5)
    assert info["elbo"] == value
    assert set(info) == {"elbo", "nll", "kl"}


def test_beta_scales_the_kl_alone(problem):
    apply, family, prior, likelihood = parts_of(problem)
    phi = family.init(problem.params([0.5, -1.0, 1.5]))
    bound = objectives.elbo(estimators.sampling(apply, family), family, prior, likelihood, 40)
    found = {beta: bound(jax.random.key(0), phi, problem.batch, beta) for beta in (0.0, 0.5, 1.0, 2.0)}
    default, _ = bound(jax.random.key(0), phi, problem.batch)
    assert default == found[1.0][0]
    for beta, (value, info) in found.items():
        assert info["kl"] == found[1.0][1]["kl"], "the reported KL is unweighted"
        assert info["nll"] == found[1.0][1]["nll"]
        np.testing.assert_allclose(value, -40 * info["nll"] - beta * info["kl"], rtol=1e-5)


def test_elbo_of_minibatches(problem):
    """With the same weight samples, the mean over all minibatches is the full data's ELBO."""
    apply, family, prior, likelihood = parts_of(problem)
    phi = family.init(problem.params([0.5, -1.0, 1.5]))
    bound = jax.jit(objectives.elbo(estimators.sampling(apply, family, 2), family, prior, likelihood, 40))
    key = jax.random.key(0)
    found = [
        bound(key, phi, Batch(problem.batch.x[i : i + 8], problem.batch.y[i : i + 8]))[0]
        for i in range(0, 40, 8)
    ]
    assert np.std(found) > 1
    np.testing.assert_allclose(np.mean(found), bound(key, phi, problem.batch)[0], rtol=1e-5)


@pytest.mark.parametrize("estimator_name", ["sampling", "local_reparam"])
@pytest.mark.parametrize("name", sorted(PRIORS))
def test_monte_carlo_kl_with_every_prior(problem, name, estimator_name):
    """Finite, differentiable, and where there is a closed form equal to it in the mean; with estimators
    that draw weights (S at a time) and with one that does not."""
    prior = PRIORS[name]
    _, family, _, likelihood = parts_of(problem)
    estimator = estimators.build(estimator_name, problem.module, family, 2)
    bound = objectives.elbo(estimator, family, prior, likelihood, 40, "monte_carlo")
    phi = family.init(problem.params([0.5, -1.0, 1.5]))

    def one(key):
        return jax.value_and_grad(lambda phi: bound(key, phi, problem.batch), has_aux=True)(phi)

    with jax.debug_key_reuse(True):
        (value, info), grads = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2000))
    assert np.isfinite(value).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.std(info["kl"]) > 0
    if prior.moments is not None:
        error = np.std(info["kl"]) / 2000**0.5
        assert abs(np.mean(info["kl"]) - family.kl(phi, prior)) < SIGMAS * error


def test_errors(problem):
    apply, family, prior, likelihood = parts_of(problem)
    estimator = estimators.sampling(apply, family)
    for bad in (0, -1):
        with pytest.raises(UserError, match=f"num_data must be a positive number, not {bad}"):
            objectives.log_joint(apply, prior, likelihood, bad)
        with pytest.raises(UserError, match=f"num_data must be a positive number, not {bad}"):
            objectives.elbo(estimator, family, prior, likelihood, bad)
        with pytest.raises(UserError, match=f"temperature must be a positive number, not {bad}"):
            objectives.tempered(prior, likelihood, bad)
    with pytest.raises(UserError, match="temperature must be a positive number, not nan"):
        objectives.tempered(prior, likelihood, float("nan"))
    with pytest.raises(UserError, match="unknown kl 'exact': choose from closed_form, monte_carlo"):
        objectives.elbo(estimator, family, prior, likelihood, 40, "exact")
    with pytest.raises(UserError, match="use kl='monte_carlo'"):
        objectives.elbo(estimator, family._replace(kl=None), prior, likelihood, 40)
    with pytest.raises(UserError, match="needs a Gaussian prior; use kl='monte_carlo'"):
        objectives.elbo(estimator, family, laplace.build(), likelihood, 40)
    with pytest.raises(UserError, match="needs a Gaussian prior; use kl='monte_carlo'"):
        family.kl(family.init(problem.params([0.0, 0.0, 0.0])), laplace.build())
