"""The log evidence against closed forms, quadrature and exact draws of power posteriors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import linear
from scipy.integrate import quad
from scipy.stats import norm
from scipy.stats import t as student

from bnn_jax import evidence
from bnn_jax.likelihoods import gaussian
from bnn_jax.priors import isotropic, student_t
from bnn_jax.types import UserError

SIGMAS = 5
PROBLEM = linear()
X, Y = (np.asarray(a, np.float64) for a in PROBLEM.batch)
GRAM = X.T @ X / PROBLEM.sigma**2

pytestmark = pytest.mark.usefixtures("quick_compile")


def exact_evidence():
    """log N(y; 0, std^2 X X^T + sigma^2)."""
    cov = PROBLEM.std**2 * X @ X.T + PROBLEM.sigma**2 * np.eye(len(Y))
    return -0.5 * (Y @ np.linalg.solve(cov, Y) + np.linalg.slogdet(2 * math.pi * cov)[1])


def power_posterior(t):
    """Mean (3,) and covariance (3, 3) at temperature t."""
    cov = np.linalg.inv(t * GRAM + np.eye(3) / PROBLEM.std**2)
    return cov @ X.T @ Y * t / PROBLEM.sigma**2, cov


def log_likelihood(w):
    """(..., 3) -> (...), nats."""
    away = (Y - w @ X.T) / PROBLEM.sigma
    return -0.5 * np.sum(away**2, -1) - len(Y) * math.log(PROBLEM.sigma * math.sqrt(2 * math.pi))


def moments(t):
    """Mean and variance of the log likelihood at temperature t, a quadratic form of a Gaussian."""
    mean, cov = power_posterior(t)
    spread, slope = GRAM @ cov, X.T @ (Y - X @ mean) / PROBLEM.sigma**2
    variance = slope @ cov @ slope + 0.5 * np.trace(spread @ spread)
    return log_likelihood(mean) - 0.5 * np.trace(spread), variance


def corrected(num_rungs):
    """What the corrected trapezoid rule makes of the exact moments, and the correction."""
    t = (np.arange(num_rungs + 1) / num_rungs) ** 5
    mean, variance = np.array([moments(at) for at in t]).T
    correction = -np.sum(np.diff(t) ** 2 * np.diff(variance)) / 12
    return np.sum(np.diff(t) * (mean[1:] + mean[:-1])) / 2 + correction, correction


def exact_draws(rng, num_rungs, chains, draws):
    """The ladder, log likelihoods (R, C, D) at independent draws, and a status for each chain."""
    t = (np.arange(num_rungs + 1) / num_rungs) ** 5
    own = lambda at: rng.multivariate_normal(*power_posterior(at), size=(chains, draws))
    return t, np.stack([log_likelihood(own(at)) for at in t]), [["ok"] * chains] * len(t)


def test_the_ladder_of_exact_moments():
    """The correction has the right sign and size, and leaves what the docstring says."""
    plain = [abs(corrected(n)[0] - corrected(n)[1] - exact_evidence()) for n in (10, 20, 30)]
    left = [abs(corrected(n)[0] - exact_evidence()) for n in (10, 20, 30)]
    assert np.all(np.divide(left, plain) < [0.2, 0.05, 0.025])
    np.testing.assert_allclose(np.divide(left[1], left[2]), 1.5**4, rtol=0.1)


def test_sums_by_hand():
    """Two intervals of unlike length; the variances are those of +-1 and +-2 with ddof = 1."""
    t, trace = np.array([0, 0.25, 1]), np.array([[-1.0, 1], [1, 3], [2, 6]]).repeat(4, 1)[:, None]
    found = evidence.integrate(t, trace, [["ok"]] * 3)
    variance = np.array([8, 8, 32]) / 7
    correction = -(0.25**2 * 0 + 0.75**2 * 24 / 7) / 12
    np.testing.assert_allclose(found.rungs.mean, [0, 2, 4])
    np.testing.assert_allclose(found.rungs.variance, variance)
    np.testing.assert_allclose(found.correction, correction)
    np.testing.assert_allclose(found.log_evidence, 0.25 * 1 + 0.75 * 3 + correction)


def test_the_standard_error_is_that_of_repetitions():
    """Of independent draws, where the variances have a large part in it: five rungs only."""
    rng = np.random.default_rng(0)
    found = [evidence.integrate(*exact_draws(rng, 5, 2, 200)) for _ in range(400)]
    values, errors = np.array([each[:2] for each in found]).T
    # The variance of a variance of 400 values is 2 / 400 of its square for Gaussian values.
    np.testing.assert_allclose(np.mean(errors**2), values.var(), rtol=SIGMAS * math.sqrt(2 / 400))
    assert abs(values.mean() - corrected(5)[0]) < SIGMAS * values.std() / 20
    assert max(np.max(each.rungs.ess) for each in found) <= 400


def test_the_standard_error_knows_autocorrelation():
    """Each draw four times over: a quarter of the effective draws, twice the error."""
    t, traces, status = exact_draws(np.random.default_rng(1), 10, 4, 500)
    once = evidence.integrate(t, traces, status)
    held = evidence.integrate(t, traces.repeat(4, -1), status)
    np.testing.assert_allclose(held.standard_error, once.standard_error, rtol=0.1)
    np.testing.assert_allclose(held.rungs.ess.mean(), once.rungs.ess.mean(), rtol=0.1)


def test_chains_that_are_not_ok_are_left_out():
    t, traces, _ = exact_draws(np.random.default_rng(2), 10, 2, 200)
    alone = evidence.integrate(t, traces[:, :1], [["ok"]] * 11)
    traces[:, 1] = np.nan
    other = evidence.integrate(t, traces, [["ok", "nan"]] * 11)
    assert other[:3] == alone[:3]
    lost = evidence.integrate(t, traces, [["ok", "nan"]] * 10 + [["frozen", "nan"]])
    assert np.isnan(lost[:3]).all()
    assert np.isfinite(lost.rungs.mean).tolist() == [True] * 10 + [False]
    assert lost.rungs.status[-1] == ["frozen", "nan"]


def test_a_likelihood_that_knows_no_weights():
    """Constant: its value is the evidence, without an error."""
    found = evidence.integrate([0.0, 0.1, 1.0], np.full((3, 2, 9), -0.1), [["ok"] * 2] * 3)
    np.testing.assert_allclose(found[:3], (-0.1, 0, 0), atol=1e-12)


def test_the_linear_problem():
    """A known evidence, within 5 standard errors, which are small enough to tell."""
    likelihood = gaussian.build(PROBLEM.sigma)
    fit = lambda w: jnp.sum(likelihood.log_prob(PROBLEM.apply(w, PROBLEM.batch.x), PROBLEM.batch.y))
    prior, like = isotropic.build(PROBLEM.std), PROBLEM.params(np.zeros(3))
    found = evidence.thermodynamic(
        jax.random.key(0), fit, prior, jax.eval_shape(lambda: like), num_rungs=20, num_warmup=100
    )
    assert found.standard_error < 0.1
    assert abs(found.log_evidence - exact_evidence()) < SIGMAS * found.standard_error
    np.testing.assert_allclose(found.correction, corrected(20)[1], rtol=0.2)
    assert found.rungs.status == [["ok"] * 4] * 21
    want = np.array([moments(t)[0] for t in found.rungs.t])
    error = np.sqrt(found.rungs.variance / found.rungs.ess)
    assert found.rungs.ess.min() > 200
    assert np.all(np.abs(found.rungs.mean - want) < SIGMAS * error)


def test_two_modes_and_heavy_tails():
    """y = w^2 + noise, w from Student's t, against quadrature; the weight's unit of length is not 1."""
    y, sigma, width = np.array([3.0, 4.5, 3.6]), 0.8, 1.5
    log_prob = lambda w: norm.logpdf(y, w**2, sigma).sum()
    density = lambda w: math.exp(log_prob(w)) * student.pdf(w, 10, scale=width)
    exact = math.log(2 * quad(density, 0, 6)[0])
    fit = lambda params: jnp.sum(jax.scipy.stats.norm.logpdf(y, params["w"] ** 2, sigma))
    found = evidence.thermodynamic(
        jax.random.key(1), fit, student_t.build(width, 10.0), {"w": jnp.zeros(())}, num_rungs=20
    )
    assert found.standard_error < 0.1
    assert abs(found.log_evidence - exact) < SIGMAS * found.standard_error


def test_the_gap_of_an_elbo_is_a_divergence():
    """ELBO of N(m, C) against the posterior, from draws: KL of two Gaussians."""
    rng = np.random.default_rng(3)
    mean, cov = PROBLEM.mean + 0.05, np.diag(1 / np.diag(np.linalg.inv(PROBLEM.cov)))
    w = rng.multivariate_normal(mean, cov, size=4000)
    prior = norm.logpdf(w, scale=PROBLEM.std).sum(-1)
    elbos = log_likelihood(w) + prior - norm.logpdf(w, mean, np.sqrt(np.diag(cov))).sum(-1)
    known = evidence.Evidence(exact_evidence(), 0.01, 0.0, None)
    gap, error = evidence.elbo_gap(known, elbos)
    precision, away = np.linalg.inv(PROBLEM.cov), mean - PROBLEM.mean
    log_ratio = np.linalg.slogdet(PROBLEM.cov)[1] - np.linalg.slogdet(cov)[1]
    divergence = 0.5 * (np.trace(precision @ cov) + away @ precision @ away - 3 + log_ratio)
    assert abs(gap - divergence) < SIGMAS * error
    np.testing.assert_allclose(error, math.hypot(0.01, elbos.std(ddof=1) / math.sqrt(4000)))
    assert divergence > 10 * error


def thermodynamic_with(**changes):
    fit = changes.pop("log_likelihood", lambda params: -jnp.sum(params["w"] ** 2))
    return evidence.thermodynamic(
        jax.random.key(0), fit, isotropic.build(), {"w": jnp.zeros(2)}, **dict(num_rungs=2) | changes
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_rungs=0), "at least 1 rung, 1 chain and 4 draws, not 0, 4 and 500"),
        (dict(num_chains=0), "at least 1 rung, 1 chain and 4 draws, not 2, 0 and 500"),
        (dict(num_draws=3), "at least 1 rung, 1 chain and 4 draws, not 2, 4 and 3"),
        (dict(trajectory_length=0.0), "trajectory_length must be a positive number, not 0.0"),
        (dict(num_warmup=-1), "num_warmup must not be negative, not -1"),
        (dict(step_size=math.nan), "step_size must be a positive number, not nan"),
        (
            dict(log_likelihood=lambda params: jnp.log(params["w"][0]), num_draws=4, num_warmup=0),
            "the log likelihood is not finite at a draw of the prior",
        ),
    ],
)
def test_a_mistake_in_a_setting(changes, message):
    with pytest.raises(UserError, match=message):
        thermodynamic_with(**changes)


@pytest.mark.parametrize("t", [[0.0, 0.5], [0.1, 1.0], [0.0, 0.5, 0.5, 1.0], [1.0], [[0.0, 1.0]]])
def test_a_ladder_that_is_none(t):
    with pytest.raises(UserError, match="must rise from 0 to 1"):
        evidence.integrate(t, np.zeros((len(t), 1, 4)), [["ok"]] * len(t))


def test_shapes_that_do_not_fit():
    for traces, status in (
        (np.zeros((3, 1, 4)), [["ok"]] * 2),
        (np.zeros((2, 4)), [["ok"]] * 2),
        (np.zeros((3, 1, 4)), [["ok"]] * 3),
    ):
        with pytest.raises(UserError, match=r"need shape \(R, C, D\) with R = 2 and a status each"):
            evidence.integrate([0.0, 1.0], traces, status)
    known = evidence.Evidence(0.0, 0.1, 0.0, None)
    for elbos in ([1.0], np.ones((2, 2))):
        with pytest.raises(UserError, match=r"needs shape \(S,\) with S >= 2 values of the ELBO"):
            evidence.elbo_gap(known, elbos)
