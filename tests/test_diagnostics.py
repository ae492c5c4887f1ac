"""Diagnostics against ArviZ and processes of known autocorrelation, and chains that are broken on purpose."""

import json
import warnings

import numpy as np
import pytest
from scipy.stats import norm

from bnn_jax import diagnostics
from bnn_jax.types import UserError

STATISTICS = [diagnostics.rhat, diagnostics.ess_bulk, diagnostics.ess_mean, diagnostics.ess_tail]

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def reference(name: str, x: np.ndarray) -> float:
    """ArviZ's `rhat`, `bulk`, `mean` or `tail` of one array (C, D), alike in ArviZ 0.23 and 1.x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces its refactor
        arviz = pytest.importorskip("arviz", reason="ArviZ is the independent implementation to compare with")
        options = {"prob": (0.05, 0.95)} if name == "tail" else {}  # 1.x has no default
        return float(arviz.rhat(x) if name == "rhat" else arviz.ess(x, method=name, **options))


def ar1(rng, rho: float, shape: tuple) -> np.ndarray:
    """Stationary AR(1) chains (C, D, ...) with unit variance: autocorrelation time (1 + rho) / (1 - rho)."""
    x = rng.normal(size=shape)
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


CASES = {
    "independent": lambda rng: rng.normal(size=(4, 200)),
    "slow": lambda rng: ar1(rng, 0.9, (4, 400)),
    "shifted": lambda rng: rng.normal(size=(4, 200)) + np.array([[0.0], [0.0], [0.0], [1.0]]),
    "wider": lambda rng: rng.normal(size=(4, 200)) * np.array([[1.0], [1.0], [1.0], [3.0]]),
    "heavy tails": lambda rng: rng.standard_cauchy(size=(3, 300)),
    "one chain": lambda rng: ar1(rng, 0.5, (1, 300)),
    "odd length": lambda rng: ar1(rng, 0.5, (2, 301)),
    "ties": lambda rng: rng.integers(20, size=(2, 300)).astype(float),
}


@pytest.mark.parametrize("case", sorted(set(CASES) - {"one chain"}))  # where ArviZ refuses
def test_rhat_is_arviz(case):
    x = CASES[case](np.random.default_rng(0))
    assert diagnostics.rhat(x) == pytest.approx(reference("rhat", x), rel=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_ess_is_arviz_but_for_the_cut(case):
    x = CASES[case](np.random.default_rng(0))
    assert diagnostics.ess_bulk(x) == pytest.approx(reference("bulk", x), rel=0.08)
    assert diagnostics.ess_mean(x) == pytest.approx(reference("mean", x), rel=0.08)
    assert diagnostics.ess_tail(x) == pytest.approx(reference("tail", x), rel=0.08)


def test_rhat_of_one_chain_compares_its_halves():
    """Written out for 0, 1, ..., 7: the bulk's halves stand apart, the folded ones do not."""
    low, high = np.split(norm.ppf((np.arange(1, 9) - 3 / 8) / 8.25), 2)
    within = (low.var(ddof=1) + high.var(ddof=1)) / 2
    between = 4 * np.var([low.mean(), high.mean()], ddof=1)
    exact = np.sqrt((3 / 4 * within + between / 4) / within)
    assert exact > 1.5
    assert diagnostics.rhat(np.arange(8.0)[None]) == pytest.approx(exact)


def test_folding_sees_a_difference_in_scale_only():
    x = CASES["wider"](np.random.default_rng(0))
    folded = np.abs(x - np.median(x))
    assert diagnostics.rhat(x) == pytest.approx(reference("rhat", folded), rel=0.05)
    assert diagnostics.rhat(x) > 1.1


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_ess_of_ar1(rho):
    """ESS = N (1 - rho) / (1 + rho): the mean of 64 independent estimates within 5 % of it."""
    x = ar1(np.random.default_rng(1), rho, (4, 1000, 64))
    exact = 4000 * (1 - rho) / (1 + rho)
    assert diagnostics.ess_bulk(x).mean() == pytest.approx(exact, rel=0.05)
    assert diagnostics.ess_mean(x).mean() == pytest.approx(exact, rel=0.05)


def test_the_error_of_a_skewed_mean_is_in_its_own_units():
    """The mean of exp(2 z), z AR(1): its own autocorrelation, which ranks do not have."""
    x = np.exp(2 * ar1(np.random.default_rng(1), 0.9, (2, 2000, 400)))
    error = x.var(axis=(0, 1)).mean() / x.mean(axis=(0, 1)).var()
    lags = 0.9 ** np.arange(1, 200)
    exact = 4000 / (1 + 2 * np.sum(np.expm1(4 * lags) / np.expm1(4)))
    assert error == pytest.approx(exact, rel=0.5)  # of the variance of so long a tail
    assert diagnostics.ess_mean(x).mean() == pytest.approx(exact, rel=0.3)
    assert diagnostics.ess_bulk(x).mean() < 0.5 * exact


def test_ess_of_antithetic_chains_is_capped():
    """rho = -0.99 would give 199 N; the estimate stays at N log10 N as in Stan, finite and positive."""
    x = ar1(np.random.default_rng(1), -0.99, (4, 500))
    assert diagnostics.ess_bulk(x) == pytest.approx(2000 * np.log10(2000))


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_ebfmi(rho):
    """The ratio of sums, as ArviZ has it; 2 (1 - rho) of an AR(1) energy, one number a chain."""
    energy = 100 + 3 * ar1(np.random.default_rng(4), rho, (3, 2000))
    energy[2] *= 10
    found = diagnostics.ebfmi(energy)
    for own, value in zip(energy, found, strict=True):
        steps = sum((own[n] - own[n - 1]) ** 2 for n in range(1, 2000))
        assert value == pytest.approx(steps / sum((e - own.mean()) ** 2 for e in own), rel=1e-10)
    # The error of a lag-one autocorrelation is sqrt((1 - rho^2) / D).
    np.testing.assert_allclose(found, 2 * (1 - rho), atol=5 * 2 * np.sqrt((1 - rho**2) / 2000) + 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz", reason="ArviZ is the independent implementation to compare with")
        np.testing.assert_allclose(arviz.bfmi(energy), found)


def test_an_energy_that_has_no_ebfmi():
    energy = np.random.default_rng(5).normal(size=(3, 20))
    alone = diagnostics.ebfmi(energy[2:])
    energy[0], energy[1, 3] = 0.1, np.nan
    np.testing.assert_array_equal(diagnostics.ebfmi(energy), [np.nan, np.nan, *alone])
    for wrong in (energy[0], energy[:, :3]):
        with pytest.raises(UserError, match=r"energies need shape \(C, D\) with D >= 4 draws"):
            diagnostics.ebfmi(wrong)


def test_trailing_axes_are_independent_columns(monkeypatch):
    x = ar1(np.random.default_rng(2), 0.5, (2, 50, 3, 4))
    for statistic in STATISTICS:
        whole = statistic(x)
        assert whole.shape == (3, 4)
        assert whole[1, 2] == pytest.approx(statistic(x[..., 1, 2]))
        with monkeypatch.context() as patch:
            patch.setattr(diagnostics, "BLOCK_VALUES", 500)  # five columns at a time, then two
            np.testing.assert_allclose(statistic(x), whole)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_undefined_is_nan_and_touches_nothing_else(statistic):
    x = np.random.default_rng(3).normal(size=(2, 20, 4))
    alone = statistic(x[..., 3])
    x[..., 0], x[0, 3, 1], x[1, 5, 2] = 0.1, np.nan, np.inf
    result = statistic(x)
    assert np.isnan(result[:3]).all()
    assert result[3] == alone


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("shape", [(1, 4), (1, 7), (3, 10), (3, 333), (7, 1001)])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 1 / 3])
def test_constants_are_nan_at_every_length(statistic, shape, value):
    assert np.isnan(statistic(np.full(shape, value)))


def test_rhat_where_folding_leaves_nothing():
    """Draws of +-1 in equal number: |x - median| is constant, the bulk's R-hat stands alone."""
    x = np.tile([-1.0, 1.0, 1.0, -1.0], (2, 25))
    assert diagnostics.rhat(x) == pytest.approx(1, abs=0.02)


def test_rhat_of_chains_that_stand_apart_is_infinite():
    assert diagnostics.rhat(np.repeat([[0.1], [0.7]], 10, axis=1)) > 1e6


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("shape", [(2, 3), (7,), (0, 9)])
def test_too_few_draws(statistic, shape):
    with pytest.raises(UserError, match="4 draws"):
        statistic(np.ones(shape))


def test_function_values():
    values = diagnostics.function_values(np.array([[[[0.5, 0.5], [0.8, 0.2], [1.0, 0.0]]]]))
    half = [0.0, np.log(4) / 2, 63 * np.log(2)]  # TINY is 2^-126
    np.testing.assert_allclose(values[0, 0], np.stack([half, np.negative(half)], axis=-1))


def run(chains: int = 2, draws: int = 40, seed: int = 0):
    """Healthy chains: draws (C, D, 6), probs (C, D, 5, 3) and a trace."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(chains, draws, 6)).astype(np.float32)
    logits = w @ rng.normal(size=(6, 15)).astype(np.float32)
    probs = np.exp(logits).reshape(chains, draws, 5, 3)
    trace = {
        "accept_prob": rng.uniform(0.7, 0.9, size=(chains, draws)),
        "step_size": np.full((chains, draws), 0.1, np.float32),
        "num_steps": np.full((chains, draws), 16),
        "diverging": np.zeros((chains, draws), bool),
    }
    return w, probs / probs.sum(axis=-1, keepdims=True), trace


def test_a_regression_is_judged_by_its_means():
    draws, probs, trace = run()
    means = probs[..., 0]
    found = diagnostics.summary(draws, means, trace)
    assert found["rhat_function_median"] == pytest.approx(np.median(diagnostics.rhat(means)))
    means = means.copy()
    means[1, 3, 0] = np.inf
    assert diagnostics.summary(draws, means, trace)["status"] == ["ok", "nan"]
    with pytest.raises(UserError, match=r"need shape \(C, D, T, K\) or \(C, D, T\) with C, D = \(2, 40\)"):
        diagnostics.summary(draws, means[:, :, 0], trace)


def test_healthy_chains_are_ok():
    draws, _, trace = run()
    assert diagnostics.chain_status(draws, trace) == ["ok", "ok"]
    np.testing.assert_array_equal(diagnostics.moved(draws), [True, True])


def freeze(draws, trace):
    """NumPyro's trap: a huge step size, no steps, acceptance 1 and identical draws."""
    draws[1] = draws[1, 0]
    trace["step_size"][1], trace["num_steps"][1], trace["accept_prob"][1] = 3e38, 0, 1.0


BREAKAGES = {
    "the trap": (freeze, "frozen"),
    "identical draws alone": (lambda w, _: w[1].__setitem__(..., w[1, 0]), "frozen"),
    "frozen for most of its draws": (lambda w, _: w[1, 18:].__setitem__(..., w[1, 18]), "frozen"),
    "one trajectory without a step": (lambda _, t: t["num_steps"][1].__setitem__(7, 0), "frozen"),
    "infinite step size": (lambda _, t: t["step_size"][1].__setitem__(7, np.inf), "frozen"),
    "nan step size": (lambda _, t: t["step_size"][1].__setitem__(..., np.nan), "frozen"),
    "one nan weight": (lambda w, _: w[1, 5].__setitem__(2, np.nan), "nan"),
    "all nan": (lambda w, _: w[1].__setitem__(..., np.nan), "nan"),
    "an overflow": (lambda w, _: w[1, 39].__setitem__(0, np.inf), "nan"),
    "5 of 40 diverge": (lambda _, t: t["diverging"][1].__setitem__(slice(5), True), "diverging"),
    "4 of 40 diverge": (lambda _, t: t["diverging"][1].__setitem__(slice(4), True), "ok"),
    "some rejections": (lambda w, _: w[1, 1:10].__setitem__(..., w[1, 0]), "ok"),
    "moves too small to square": (lambda w, _: w[1].__imul__(np.float32(1e-30)), "ok"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_chain_is_named_and_the_other_is_not(name):
    breakage, status = BREAKAGES[name]
    draws, _, trace = run()
    breakage(draws, trace)
    assert diagnostics.chain_status(draws, trace) == ["ok", status]


def test_moved_needs_most_transitions():
    draws = np.zeros((4, 9, 1))
    draws[1, :, 0] = np.arange(9)
    draws[2, :, 0] = [0, 1, 2, 3, 4, 4, 4, 4, 4]  # 4 of 8
    draws[3, :, 0] = [0, 1, 2, 3, 3, 3, 3, 3, 3]  # 3 of 8
    np.testing.assert_array_equal(diagnostics.moved(draws), [False, True, True, False])


def test_wrong_traces_and_shapes():
    draws, probs, trace = run()
    for name in trace:
        with pytest.raises(UserError, match=name):
            diagnostics.chain_status(draws, {k: v for k, v in trace.items() if k != name})
        with pytest.raises(UserError, match=name):
            diagnostics.chain_status(draws, trace | {name: [0.1, 0.1]})
    with pytest.raises(UserError, match="C, D, P"):
        diagnostics.moved(draws[0])
    with pytest.raises(UserError, match="C, D, T, K"):
        diagnostics.summary(draws, probs[:1], trace)


NUMBERS = [
    *("rhat_function_median", "rhat_function_q95", "rhat_weight_median", "rhat_weight_q95"),
    *("ess_function_min", "ess_function_median", "ess_tail_function_min"),
    *("ess_weight_median", "ess_tail_weight_median", "acceptance"),
]


def test_summary_of_healthy_chains():
    draws, probs, trace = run(chains=4, draws=250)
    trace["diverging"][2, :3] = True
    report = diagnostics.summary(draws, probs, trace)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    values = diagnostics.function_values(probs)
    assert report["rhat_function_q95"] == np.quantile(diagnostics.rhat(values), 0.95) < 1.05
    assert report["rhat_weight_median"] == np.median(diagnostics.rhat(draws))
    assert report["ess_function_min"] == diagnostics.ess_bulk(values).min()
    assert report["ess_tail_function_min"] == diagnostics.ess_tail(values).min()
    assert report["ess_tail_weight_median"] == np.median(diagnostics.ess_tail(draws))
    assert report["ess_weight_median"] == pytest.approx(1000, rel=0.2)
    assert report["acceptance"] == pytest.approx(trace["accept_prob"].mean())
    assert report["step_size"] == pytest.approx([0.1] * 4)
    assert report["num_steps"] == [16.0] * 4
    assert report["divergences"] == 3
    assert report["moved"] == [True] * 4
    assert report["status"] == ["ok"] * 4


def test_summary_has_the_ebfmi_of_single_steps_only():
    draws, probs, trace = run()
    trace["energy"] = np.random.default_rng(6).normal(size=(2, 40))
    trace["energy"][1] = 3.0
    single = diagnostics.summary(draws, probs, trace, thin=1)
    assert single["ebfmi"] == [float(diagnostics.ebfmi(trace["energy"])[0]), None]
    assert json.loads(json.dumps(single, allow_nan=False)) == single
    for thin in (2, None):
        assert diagnostics.summary(draws, probs, trace, thin=thin) == single | {"ebfmi": None}
    del trace["energy"]
    assert "ebfmi" not in diagnostics.summary(draws, probs, trace, thin=1)


def test_chains_that_reject_nothing_have_no_acceptance():
    """Nor divergences or a length of trajectories; a chain that stands still is named all the same."""
    draws, probs, trace = run()
    draws[1] = draws[1, 0]
    short = {"step_size": trace["step_size"]}
    assert diagnostics.chain_status(draws, short) == ["ok", "frozen"]
    report = diagnostics.summary(draws, probs, short)
    whole = diagnostics.summary(draws, probs, trace)
    left = {"acceptance", "num_steps", "divergences"}
    assert report == {name: value for name, value in whole.items() if name not in left}


@pytest.mark.parametrize("name", ["the trap", "all nan", "nan step size"])
def test_summary_leaves_a_broken_chain_out(name):
    """The numbers are those of the healthy chain alone: acceptance 1 of a frozen one would flatter."""
    draws, probs, trace = run()
    alone = diagnostics.summary(draws[:1], probs[:1], {k: v[:1] for k, v in trace.items()})
    breakage, status = BREAKAGES[name]
    breakage(draws, trace)
    if status == "nan":
        probs[1] = np.nan
    report = diagnostics.summary(draws, probs, trace)
    assert [report[k] for k in NUMBERS] == [alone[k] for k in NUMBERS]
    assert report["status"] == ["ok", status]
    json.dumps(report, allow_nan=False)


def test_summary_names_a_chain_whose_network_overflows():
    draws, probs, trace = run()
    probs[1, 7] = np.nan
    assert diagnostics.summary(draws, probs, trace)["status"] == ["ok", "nan"]


def test_summary_with_no_chain_left():
    draws, probs, trace = run()
    report = diagnostics.summary(np.full_like(draws, np.nan), np.full_like(probs, np.nan), trace)
    assert [report[k] for k in NUMBERS] == [None] * len(NUMBERS)
    assert report["status"] == ["nan", "nan"]
    assert report["moved"] == [False, False]
    json.dumps(report, allow_nan=False)


def test_summary_skips_constant_weights_and_saturated_points():
    draws, probs, trace = run()
    draws[..., 0], probs[:, :, 0] = 0.0, [1.0, 0.0, 0.0]
    report = diagnostics.summary(draws, probs, trace)
    assert report["rhat_weight_median"] == np.median(diagnostics.rhat(draws[..., 1:]))
    assert (
        report["ess_function_min"] == diagnostics.ess_bulk(diagnostics.function_values(probs[:, :, 1:])).min()
    )
