"""Pareto smoothed importance sampling against ArviZ's numbers, exact tails, and Gaussians of unlike width."""

import jax
import numpy as np
import optax
import pytest
from problems import linear
from scipy.special import logsumexp
from scipy.stats import norm

from bnn_jax import psis
from bnn_jax.infer import vi
from bnn_jax.posteriors import mean_field
from bnn_jax.types import UserError

SIGMAS = 5

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def ratios(heavy):
    """400 log ratios without a generator, in no order."""
    n = np.arange(400)
    return -heavy * np.log(((7 * n) % 400 + 0.5) / 400) + 0.3 * np.sin(n)


# From `arviz.psislw` 0.23.4, which 1.x has moved: k of `ratios`, and the log weights of the draws `SHOWN`.
SHOWN = [0, 1, 115, 57, 172, 343]  # among them the four largest
ARVIZ = {
    0.3: (
        0.3822517759111408,
        [
            *(-4.362682451754777, -5.105052034354115, -4.561210073749452),
            *(-6.236841308910312, -4.737882185008763, -5.0033970245124335),
        ],
    ),
    0.9: (
        0.7750483811201685,
        [
            *(-1.9512607822751071, -4.088927107906111, -3.8389543612891135),
            *(-7.484261772834126, -3.678379843581473, -2.8099053723174228),
        ],
    ),
    2.0: (
        1.584101438228486,
        [
            *(-0.4073057291101385, -4.713969113460774, -4.215991692498008),
            *(-12.158601122688507, -3.8952638112709814, -2.1487100200246636),
        ],
    ),
}


@pytest.mark.parametrize("heavy", ARVIZ)
@pytest.mark.parametrize("shift", [0.0, -3000.0])
def test_shape_and_weights_are_arviz(heavy, shift):
    """Whatever constant is left out of the ratios."""
    k, log_weights = ARVIZ[heavy]
    found = psis.smooth(ratios(heavy) + shift)
    np.testing.assert_allclose(found.k, k, rtol=1e-9)
    np.testing.assert_allclose(found.log_weights[SHOWN], log_weights, rtol=1e-9)
    np.testing.assert_allclose(logsumexp(found.log_weights), 0, atol=1e-12)
    np.testing.assert_allclose(found.ess, 1 / np.sum(np.exp(found.log_weights) ** 2))


def pareto(k, size, rng):
    """Ratios with P(r > y) = y^(-1/k), whose excesses over any threshold have the shape k exactly; for k < 0
    those of a bounded one."""
    u = rng.random(size)
    return -k * np.log(u) if k > 0 else np.log(3 - u**-k)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 1.0, 3.0])
def test_the_shape_of_exact_pareto_tails(k):
    """The asymptotic error of a shape from M excesses is (1 + k) / sqrt(M); the prior counts as 10 of 1/2."""
    rng, draws, repeats = np.random.default_rng(0), 40_000, 40
    tail = 3 * np.sqrt(draws)
    found = np.array([psis.smooth(pareto(k, draws, rng)).k for _ in range(repeats)])
    error = (1 + k) / np.sqrt(tail)
    expected = (tail * k + 5) / (tail + 10)
    np.testing.assert_allclose(found.mean(), expected, atol=SIGMAS * error / np.sqrt(repeats))
    np.testing.assert_allclose(found.std(ddof=1), error, rtol=SIGMAS / np.sqrt(2 * repeats))


@pytest.mark.parametrize(("draws", "tail"), [(25, 5), (100, 20), (226, 46), (10_000, 300)])
def test_only_the_tail_is_smoothed(draws, tail):
    """min(S / 5, 3 sqrt S) draws, rounded up; all others keep their ratios to one another."""
    given = pareto(0.9, draws, np.random.default_rng(1))
    change = psis.smooth(given).log_weights - given
    rest = np.argsort(given)[:-tail]
    np.testing.assert_allclose(change[rest], change[rest[0]], atol=1e-12)
    assert np.sum(np.abs(change - change[rest[0]]) > 1e-12) > 0.8 * tail


def test_smoothing_keeps_the_order_and_caps_the_largest():
    given = pareto(2.0, 2000, np.random.default_rng(2))
    found = psis.smooth(given)
    order = np.argsort(given)
    assert (np.diff(found.log_weights[order]) >= 0).all()
    spread = lambda a: a[order[-1]] - a[order[0]]
    assert spread(found.log_weights) <= spread(given) + 1e-12


def gaussian_ratios(width, draws, dimensions, rng):
    """log p - log q at draws of q = N(0, width^2), p = N(0, 1)."""
    w = width * rng.normal(size=(draws, dimensions))
    return (norm.logpdf(w) - norm.logpdf(w, scale=width)).sum(-1)


@pytest.mark.parametrize("width", [0.4, 0.6])
def test_a_gaussian_narrower_than_the_posterior(width):
    """log r = (1/width^2 - 1) |w|^2 / 2, and in two dimensions P(|w|^2 > a) = exp(-a / (2 width^2)): r has a
    Pareto tail with k = 1 - width^2. In d dimensions a power of log r, d/2 - 1, bends it, down in one and up
    in more than two, and a shape at finite depth lies near only."""
    rng, draws, repeats = np.random.default_rng(3), 40_000, 20
    tail, exact = 3 * np.sqrt(draws), 1 - width**2
    mean = lambda dimensions: np.mean(
        [psis.smooth(gaussian_ratios(width, draws, dimensions, rng)).k for _ in range(repeats)]
    )
    error = (1 + exact) / np.sqrt(tail * repeats)
    np.testing.assert_allclose(mean(2), (tail * exact + 5) / (tail + 10), atol=SIGMAS * error)
    assert 0.75 * exact < mean(1) < exact < mean(4) < 1.25 * exact


def test_a_gaussian_as_wide_or_wider_is_good():
    rng = np.random.default_rng(4)
    for width in (1.0, 1.0 + 1e-6, 1.2, 2.0):
        found = psis.smooth(gaussian_ratios(width, 4000, 3, rng))
        assert found.k < 0.5
    assert psis.smooth(gaussian_ratios(1.0, 4000, 3, rng)).ess == pytest.approx(4000)


def test_weights_make_draws_of_q_those_of_p():
    """Mean squares, 1 of p; k = 1 - 0.8^2 = 0.36, so that the weights have a variance. That says how many
    draws they are worth: E_q r^2 = width / sqrt(2 - 1 / width^2)."""
    rng, width, draws = np.random.default_rng(5), 0.8, 40_000
    w = width * rng.normal(size=draws)
    found = psis.smooth(norm.logpdf(w) - norm.logpdf(w, scale=width))
    weights = np.exp(found.log_weights)
    mean = weights @ w**2
    error = np.sqrt(np.sum(weights**2 * (w**2 - mean) ** 2))
    assert error < 0.05
    assert abs(mean - 1) < SIGMAS * error
    assert found.ess / draws == pytest.approx(np.sqrt(2 - width**-2) / width, rel=0.03)


@pytest.mark.usefixtures("quick_compile")
def test_an_algorithm_at_and_off_the_posterior():
    """VI whose mean field is the posterior of orthogonal inputs; then half as wide."""
    problem = linear()
    x = np.linalg.qr(problem.batch.x)[0] * 3
    variance = 1 / (9 / problem.sigma**2 + 1)
    centre = problem.params(x.T @ np.asarray(problem.batch.y) / problem.sigma**2 * variance)

    def log_joint(params):
        w = params["kernel"][:, 0]
        return -0.5 * (((problem.batch.y - x @ w) / problem.sigma) ** 2).sum() - 0.5 * (w**2).sum()

    def found(width):
        family = mean_field.build(width * variance**0.5)
        algorithm = vi.build(None, family, 40, optax.sgd(0.1))
        state = algorithm.init(jax.random.key(0), centre)

        def ratio(key):
            w = algorithm.sample(key, state)
            return log_joint(w) - algorithm.log_prob(state, w)

        return psis.smooth(jax.jit(jax.vmap(ratio))(jax.random.split(jax.random.key(1), 4000)))

    assert found(1.0).k < 0.5
    assert found(1.0).ess == pytest.approx(4000, rel=1e-3)
    assert found(0.5).k > 0.55  # 0.75 but for the depth of the tail


def test_no_tail_and_hardly_one():
    """All equal: nothing can be heavy. Few that stand out, or lie too far out: nothing can be told."""
    equal = psis.smooth(np.full(50, -7.0))
    assert (equal.k, equal.ess) == (-np.inf, pytest.approx(50))
    few = np.zeros(50)
    few[:4] = [1.0, 2.0, 3.0, 4.0]
    found = psis.smooth(few)
    assert found.k == np.inf
    np.testing.assert_allclose(found.log_weights, few - logsumexp(few))
    far = psis.smooth(-800.0 * np.arange(50))
    assert far.k == np.inf
    assert far.ess == pytest.approx(1)


def test_a_weight_of_zero():
    given = ratios(0.9)
    given[3] = -np.inf
    found = psis.smooth(given)
    assert found.log_weights[3] == -np.inf
    assert np.isfinite([found.k, found.ess]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros(24), r"log ratios need shape \(S,\) with S >= 25 draws, got \(24,\)"),
        (np.zeros((2, 50)), r"got \(2, 50\)"),
        ([*np.zeros(50), np.nan], "log ratios must not be nan or inf, nor all -inf"),
        ([*np.zeros(50), np.inf], "log ratios must not be nan or inf, nor all -inf"),
        (np.full(50, -np.inf), "log ratios must not be nan or inf, nor all -inf"),
    ],
)
def test_ratios_that_are_none(given, message):
    with pytest.raises(UserError, match=message):
        psis.smooth(given)
