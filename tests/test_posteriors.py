"""Every variational family starts where it is told, samples what its density says, and states its KL."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import linear
from scipy import linalg, stats

from bnn_jax import estimators, loop, objectives, parts
from bnn_jax.infer import vi
from bnn_jax.likelihoods import gaussian
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import isotropic, laplace
from bnn_jax.types import Prior, UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

NAMES = parts.names("posterior")
RNG = np.random.default_rng(0)
PARAMS = {
    "Dense_0": {"kernel": RNG.standard_normal((3, 2)), "bias": RNG.standard_normal(2)},
    "scale": RNG.standard_normal(()),
}
PARAMS = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), PARAMS)
DRAWS = 4000


def flat(tree, lead: int = 0) -> np.ndarray:
    return np.concatenate([np.asarray(a).reshape(*a.shape[:lead], -1) for a in jax.tree.leaves(tree)], -1)


def sample_many(family, phi, seed=0):
    with jax.debug_key_reuse(True):
        draw = jax.jit(jax.vmap(family.sample, in_axes=(0, None)))
        return draw(jax.random.split(jax.random.key(seed), DRAWS), phi)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("init_std", [1e-6, 0.01, 2.0])
def test_starts_at_the_params_with_the_given_width(name, init_std):
    family = parts.find("posterior", name)(init_std=init_std)
    phi = family.init(PARAMS)
    draws = sample_many(family, phi)
    assert jax.tree.map(lambda a: a[0].shape, draws) == jax.tree.map(jnp.shape, PARAMS)
    centred = flat(jax.tree.map(jnp.subtract, draws, PARAMS), 1).astype(np.float64)
    rounding = 1e-7 * np.abs(flat(PARAMS))
    assert (np.abs(centred.mean(0)) < 5 * init_std / np.sqrt(DRAWS) + rounding).all()
    if init_std > 1e-4:  # else the rounding of the sum is as large
        np.testing.assert_allclose(centred.std(0), init_std, rtol=5 / np.sqrt(2 * DRAWS))
    if family.moments is not None:
        mean, std = family.moments(phi)
        jax.tree.map(np.testing.assert_array_equal, mean, PARAMS)
        np.testing.assert_allclose(flat(std), init_std, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("init_std", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_width(name, init_std):
    with pytest.raises(UserError, match="init_std"):
        parts.find("posterior", name)(init_std=init_std)


def spread(family):
    """phi away from its start, every entry different."""
    phi = family.init(PARAMS)
    keys = iter(jax.random.split(jax.random.key(5), len(jax.tree.leaves(phi))))
    return jax.tree.map(lambda a: a + 0.5 * jax.random.normal(next(keys), a.shape), phi)


@pytest.mark.parametrize("name", NAMES)
def test_density_and_samples_agree(name):
    """Where there are moments: samples have them (5 standard errors), the weights are uncorrelated. Anywhere:
    E_q[grad log q] = 0, which holds for the density of the samples and for hardly any other."""
    family = parts.find("posterior", name)(init_std=0.5)
    phi = spread(family)
    draws = sample_many(family, phi)
    weights = flat(draws, 1).astype(np.float64)
    if family.moments is not None:
        mean, std = map(flat, family.moments(phi))
        assert (np.abs(weights.mean(0) - mean) < 5 * std / np.sqrt(DRAWS)).all()
        np.testing.assert_allclose(weights.std(0), std, rtol=5 / np.sqrt(2 * DRAWS))
        correlation = np.corrcoef(weights.T) - np.eye(weights.shape[1])
        assert np.abs(correlation).max() < 5 / np.sqrt(DRAWS)
    scores = jax.jit(jax.vmap(jax.grad(family.log_prob), in_axes=(None, 0)))(phi, draws)
    scores = flat(scores, 1).astype(np.float64)
    assert (np.abs(scores.mean(0)) < 5 * scores.std(0) / np.sqrt(DRAWS) + 1e-6).all()
    assert scores.std() > 0


def test_mean_field_equals_scipy():
    family = mean_field.build(init_std=0.5)
    phi = spread(family)
    mean, std = map(flat, family.moments(phi))
    w = jax.tree.map(lambda a: a + 0.3, PARAMS)
    want = stats.norm.logpdf(flat(w), mean, std).sum()
    assert float(jax.jit(family.log_prob)(phi, w)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_kl(name):
    """Non-negative, the mean of log q - log p over samples, and 0 at q = p."""
    family = parts.find("posterior", name)(init_std=0.5)
    if family.kl is None:
        pytest.skip("no closed form")
    prior, phi = isotropic.build(0.8), spread(family)
    kl = float(jax.jit(lambda phi: family.kl(phi, prior))(phi))
    draws = sample_many(family, phi, seed=1)
    ratio = np.asarray(jax.jit(jax.vmap(lambda w: family.log_prob(phi, w) - prior.log_prob(w)))(draws))
    assert kl > 0
    assert kl == pytest.approx(ratio.mean(), abs=5 * ratio.std() / np.sqrt(DRAWS))
    at_prior = family.init(jax.tree.map(jnp.zeros_like, PARAMS))
    zero, grad = jax.value_and_grad(family.kl)(at_prior, isotropic.build(0.5))
    assert abs(float(zero)) < 1e-6
    np.testing.assert_allclose(flat(grad), 0, atol=1e-6)


def test_kl_to_any_gaussian_prior_sums_over_the_weights():
    """A prior whose every weight has another mean and width; the closed form by hand."""
    family = mean_field.build(init_std=0.5)
    phi = spread(family)
    prior_mean = jax.tree.map(lambda a: 0.2 * a + 0.1, PARAMS)
    prior_std = jax.tree.map(lambda a: 0.5 + jnp.abs(a), PARAMS)
    prior = Prior(None, None, None, moments=lambda like: (prior_mean, prior_std))
    (m, s), (pm, ps) = map(flat, family.moments(phi)), map(flat, (prior_mean, prior_std))
    want = np.sum(np.log(ps / s) + (s**2 + (m - pm) ** 2) / (2 * ps**2) - 0.5)
    assert float(family.kl(phi, prior)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_kl_needs_a_gaussian_prior(name):
    family = parts.find("posterior", name)()
    if family.kl is None:
        pytest.skip("no closed form")
    with pytest.raises(UserError, match="Gaussian prior"):
        family.kl(family.init(PARAMS), laplace.build())


# Families with correlations


def covariance(name, phi):
    """(P, P) in float64, from phi alone."""
    if name == "low_rank":
        std = np.log1p(np.exp(flat(phi.rho).astype(np.float64)))
        factor = flat(phi.directions, 1).astype(np.float64)
        return std[:, None] * (np.eye(len(std)) + factor.T @ factor) * std
    blocks = []
    for rows, columns in zip(jax.tree.leaves(phi.rows), jax.tree.leaves(phi.columns), strict=True):
        a, b = (
            np.asarray(raw, np.float64) for raw in (rows, columns if columns.ndim > 1 else np.diag(columns))
        )
        a, b = (np.tril(raw, -1) + np.diag(np.exp(np.diagonal(raw))) for raw in (a, b))
        if columns.ndim == 1:
            b = np.diag(np.diagonal(b))
        blocks.append(np.kron(a @ a.T, b @ b.T))  # of weights row by row
    return linalg.block_diag(*blocks)


@pytest.mark.parametrize("name", ["low_rank", "kronecker"])
def test_a_family_with_correlations_is_its_gaussian(name):
    """Density, KL and samples, against SciPy's multivariate normal."""
    family = parts.find("posterior", name)(init_std=0.5)
    phi = spread(family)
    mean, cov = flat(phi.mean).astype(np.float64), covariance(name, phi)
    w = jax.tree.map(lambda a: a + 0.3, PARAMS)
    exact = stats.multivariate_normal.logpdf(flat(w), mean, cov)
    assert float(jax.jit(family.log_prob)(phi, w)) == pytest.approx(exact, rel=1e-4)
    prior_mean = jax.tree.map(lambda a: 0.2 * a + 0.1, PARAMS)
    prior_std = jax.tree.map(lambda a: 0.5 + jnp.abs(a), PARAMS)
    prior = Prior(None, None, None, moments=lambda like: (prior_mean, prior_std))
    pm, ps = map(flat, (prior_mean, prior_std))
    kl = 0.5 * np.sum((np.diag(cov) + (mean - pm) ** 2) / ps**2 - 1) + np.log(ps).sum()
    kl -= 0.5 * np.linalg.slogdet(cov)[1]
    assert float(family.kl(phi, prior)) == pytest.approx(kl, rel=1e-4)
    away = flat(sample_many(family, phi), 1).astype(np.float64) - mean
    rows, columns = np.triu_indices(len(mean))
    products = away[:, rows] * away[:, columns]
    error = products.std(0) / np.sqrt(DRAWS)
    assert (np.abs(products.mean(0) - cov[rows, columns]) < 5 * error).all()
    assert np.abs(cov - np.diag(np.diag(cov))).max() > 0.05
    with pytest.raises(UserError, match="rank must be at least 1, not 0"):
        parts.find("posterior", "low_rank")(rank=0)


@pytest.mark.parametrize("name", ["low_rank(rank=3)", "kronecker"])
def test_vi_with_correlations_reaches_the_exact_posterior(name):
    """Of a linear model, whose posterior both can be; mean field cannot."""
    problem = linear()
    family, prior = parts.find("posterior", name)(init_std=0.1), isotropic.build(problem.std)
    through = estimators.build("sampling", problem.module, family, 32, "vmap")
    bound = objectives.elbo(through, family, prior, gaussian.build(problem.sigma), 40)
    algorithm = vi.build(bound, family, 40, optax.adam(optax.cosine_decay_schedule(0.02, 4000)))
    settings = dict(num_steps=4000, batch_size=40, chunk_size=1000)
    start = problem.params(np.zeros(3))
    state, _ = loop.fit(jax.random.key(0), algorithm, start, problem.batch, **settings)
    cov = covariance(name.partition("(")[0], state.phi)
    np.testing.assert_allclose(flat(state.phi.mean), problem.mean, rtol=0.02)
    scale = np.sqrt(np.diag(problem.cov))
    np.testing.assert_allclose(cov / np.outer(scale, scale), problem.cov / np.outer(scale, scale), atol=0.08)
    assert np.abs(problem.cov / np.outer(scale, scale) - np.eye(3)).max() > 0.3
