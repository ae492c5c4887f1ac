"""Distances by hand, and bootstrap standard errors against their closed forms."""

import json
from itertools import pairwise

import numpy as np
import pytest

from bnn_jax import compare, distances, metrics
from bnn_jax.types import UserError

P = np.array([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5], [1.0, 0.0]])
Q = np.array([[0.6, 0.4], [0.6, 0.4], [0.5, 0.5], [0.0, 1.0]])


def ar1(rng, rho: float, shape: tuple) -> np.ndarray:
    """Stationary AR(1) chains (C, D, ...) with unit variance."""
    x = rng.normal(size=shape)
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits)
    return e / e.sum(axis=-1, keepdims=True)


def half_width(interval: list[float]) -> float:
    return (interval[1] - interval[0]) / 2


def test_floor_averages_over_pairs():
    """Chains P, P, Q: one pair agrees, two differ as P and Q do. The draws of a chain are averaged first."""
    chains = np.stack([[P, P], [P, P], [Q, Q]])
    chains[0] += np.array([[[0.05, -0.05]], [[-0.05, 0.05]]]) * [[1], [1], [1], [0]]
    result = compare.floor(chains, np.zeros(4, int))
    assert result["agreement"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert result["total_variation"] == pytest.approx((0 + 0.325 + 0.325) / 3)


def test_floor_of_exchangeable_chains():
    """p = 1/2 + s e: D-draw means differ by a normal of deviation s sqrt(2/D), and TV is its mean size."""
    rng = np.random.default_rng(0)
    s, draws = 0.02, 50
    p = 0.5 + s * rng.normal(size=(4, draws, 2000, 1))
    result = compare.floor(np.concatenate([p, 1 - p], axis=-1), np.zeros(2000, int))
    assert result["total_variation"] == pytest.approx(s * np.sqrt(2 / draws) * np.sqrt(2 / np.pi), rel=0.05)
    assert result["agreement"] == pytest.approx(0.5, abs=0.05)  # a coin at every point


@pytest.mark.parametrize("block", [1, 3, 5])
def test_draw_weights_sum_to_one_in_every_chain(block):
    weights = compare.draw_weights(np.random.default_rng(0), 3, 10, block, 50)
    assert weights.shape == (50, 30)
    np.testing.assert_allclose(weights.reshape(50, 3, 10).sum(axis=-1), 1 / 3)


def test_draw_weights_of_block_one_are_multinomial():
    """Counts of D draws: mean 1, variance 1 - 1/D, correlation of neighbours -1/D / (1 - 1/D)."""
    counts = 20 * compare.draw_weights(np.random.default_rng(0), 1, 20, 1, 20_000)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=5 * np.sqrt(0.95 / 20_000))
    covariance = np.cov(counts.T)
    np.testing.assert_allclose(np.diag(covariance), 0.95, atol=0.08)
    np.testing.assert_allclose(covariance[~np.eye(20, dtype=bool)], -0.05, atol=0.05)


def test_blocks_are_runs_that_wrap_around():
    """Two blocks of 5 of 10 draws: every count row is the sum of two circular runs of five ones."""
    runs = [np.roll([1] * 5 + [0] * 5, start) for start in range(10)]
    sums = {tuple(a + b) for a in runs for b in runs}
    counts = np.rint(10 * compare.draw_weights(np.random.default_rng(0), 1, 10, 5, 2000)).astype(int)
    assert {tuple(row) for row in counts.tolist()} == sums


@pytest.mark.parametrize("block", [0, 6])
def test_blocks_out_of_range(block):
    with pytest.raises(UserError, match="block"):
        compare.draw_weights(np.random.default_rng(0), 2, 10, block, 5)


def test_block_length():
    assert compare.block_length(500, 4, 2000) == 1  # independent draws
    assert compare.block_length(1, 1, 1) == 1
    lengths = [compare.block_length(500, 4, ess) for ess in (2000, 1500, 1000, 500, 100, 10)]
    assert all(a < b for a, b in pairwise(lengths))
    assert compare.block_length(500, 4, 1) == 250
    assert compare.block_length(500, 4, None) == compare.block_length(500, 4, np.nan) == 250
    # tau = 3, so rho = 1/2: (1.5 n (2 rho / (1 - rho^2))^2)^(1/3) = (3000 * 16/9)^(1/3) = 17.5
    assert compare.block_length(500, 4, 2000 / 3) == 18


def test_block_bootstrap_knows_autocorrelation():
    """The mean of 4 AR(1) chains of 1000 draws, rho = 0.8, tau = 9: its standard error is sqrt(9 / 4000).

    Blocks come within 15 % of it (the mean over 32 series); single draws give a third of it.
    """
    rng = np.random.default_rng(0)
    x = ar1(rng, 0.8, (4, 1000, 32)).reshape(4000, 32)
    exact = np.sqrt(9 / 4000)

    def standard_error(block):
        return (compare.draw_weights(rng, 4, 1000, block, 400) @ x).std(axis=0).mean()

    block = compare.block_length(1000, 4, 4000 / 9)
    assert standard_error(1) == pytest.approx(exact / 3, rel=0.1)
    assert standard_error(block) == pytest.approx(exact, rel=0.15)


def test_standard_error_of_accuracy_is_binomial():
    """With one draw only test points vary: sqrt(p (1 - p) / T), within 5 sigma of 3000 replicates."""
    labels = np.repeat([0, 1], [70, 30])
    probs = {"map": np.tile([0.9, 0.1], (1, 1, 100, 1))}
    result = compare.summarise(
        probs, labels, None, rng=np.random.default_rng(0), replicates=3000, block={"map": 1}
    )["map"]
    assert result["accuracy"] == 0.7
    error = half_width(result["accuracy_interval"]) / 1.96
    assert error == pytest.approx(np.sqrt(0.7 * 0.3 / 100), rel=5 / np.sqrt(2 * 3000))


def test_standard_error_of_a_distance_counts_the_draws():
    """All points alike, so only draws vary: p = 1/2 + s e against 0.2, TV = mean p - 0.2 +- s / sqrt(D)."""
    rng = np.random.default_rng(0)
    p = 0.5 + 0.05 * rng.normal(size=(1, 100, 1, 1)) * np.ones((1, 1, 20, 1))
    probs = {"vi": np.concatenate([p, 1 - p], axis=-1), "hmc": np.tile([0.2, 0.8], (2, 5, 20, 1))}
    blocks = {"vi": 1, "hmc": 1}
    result = compare.summarise(probs, np.zeros(20, int), "hmc", rng=rng, replicates=3000, block=blocks)["vi"]
    assert result["total_variation"] == pytest.approx(p.mean() - 0.2)
    error = half_width(result["total_variation_interval"]) / 1.96
    assert error == pytest.approx(p[0, :, 0, 0].std() / 10, rel=5 / np.sqrt(2 * 3000))


@pytest.fixture
def study():
    """HMC (4 chains), VI with the same posterior, and MAP: 60 points, 3 classes."""
    rng = np.random.default_rng(0)
    centre = 2 * rng.normal(size=(60, 3))
    shapes = {"map": (1, 1), "vi": (1, 40), "hmc": (4, 30)}
    probs = {name: softmax(centre + rng.normal(size=(*shape, 60, 3))) for name, shape in shapes.items()}
    return probs, rng.integers(3, size=60), {"map": 1, "vi": 1, "hmc": 3}


SCORES = list(distances.CLASSIFICATION.scores)
MEASURES = [*SCORES, *distances.CLASSIFICATION.distances, "w2"]


def test_summarise_reports_the_metrics_of_the_mean(study):
    probs, labels, block = study
    result = compare.summarise(probs, labels, "hmc", rng=np.random.default_rng(1), replicates=20, block=block)
    assert list(result) == ["map", "vi", "hmc"]
    mean = {name: p.mean(axis=(0, 1)) for name, p in probs.items()}
    for name, row in result.items():
        measures = SCORES if name == "hmc" else MEASURES
        assert list(row) == [key for m in measures for key in (m, f"{m}_interval")]
        assert row["accuracy"] == metrics.accuracy(mean[name], labels)
        assert row["nll"] == pytest.approx(metrics.nll(mean[name], labels))
        assert row["brier"] == pytest.approx(metrics.brier(mean[name], labels))
        assert row["ece"] == pytest.approx(metrics.ece(mean[name], labels))
    for name in ("agreement", "total_variation", "symmetric_kl", "entropy_gap"):
        want = getattr(distances, name)(mean["vi"], mean["hmc"])
        assert result["vi"][name] == pytest.approx(want)
    gap = result["vi"]["ece"] - result["hmc"]["ece"]
    assert result["vi"]["calibration_gap"] == pytest.approx(gap)
    want = distances.w2(*(probs[name].reshape(-1, 60, 3) for name in ("vi", "hmc"))).mean()
    assert result["vi"]["w2"] == pytest.approx(want)
    assert result["vi"]["total_variation"] < result["map"]["total_variation"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_intervals_hold_their_estimate_and_keep_to_the_range(study):
    """VI draws from HMC's posterior: TV is all noise, and a percentile interval would miss its estimate."""
    probs, labels, block = study
    result = compare.summarise(
        probs, labels, "hmc", rng=np.random.default_rng(1), replicates=100, block=block
    )
    for row in result.values():
        for name in (m for m in MEASURES if m in row):
            low, high = row[f"{name}_interval"]
            least = -1 if name.endswith("_gap") else 0
            assert least <= low <= row[name] <= high
            assert high <= {"nll": np.inf, "symmetric_kl": np.inf, "w2": np.inf, "brier": 2}.get(name, 1)
            assert low < high


def test_without_a_reference_nothing_is_compared(study):
    probs, labels, block = study
    result = compare.summarise(probs, labels, None, rng=np.random.default_rng(1), replicates=5, block=block)
    assert all(set(row) == {key for m in SCORES for key in (m, f"{m}_interval")} for row in result.values())


def test_methods_share_the_resampled_points(study):
    """Twins without noise in their draws have equal intervals; were points drawn anew, they would differ."""
    probs, labels, _ = study
    twins = {"a": probs["map"], "b": probs["map"], "c": probs["map"]}
    blocks = dict.fromkeys(twins, 1)
    result = compare.summarise(twins, labels, "b", rng=np.random.default_rng(1), replicates=20, block=blocks)
    none = dict.fromkeys(MEASURES[4:], 0.0) | {"agreement": 1.0}
    none |= {f"{name}_interval": [value, value] for name, value in none.items()}
    assert result["a"] == result["c"] == result["b"] | none


def test_the_generator_is_the_only_randomness(study):
    probs, labels, block = study
    run = lambda seed: compare.summarise(
        probs, labels, "hmc", rng=np.random.default_rng(seed), replicates=5, block=block
    )
    assert run(1) == run(1) != run(2)


def test_floor_summary(study):
    probs, labels, _ = study
    result = compare.floor_summary(probs["hmc"], labels, rng=np.random.default_rng(1), replicates=50, block=3)
    floor = compare.floor(probs["hmc"], labels)
    assert {name: result[name] for name in floor} == floor
    assert set(result) == {key for name in MEASURES[4:] for key in (name, f"{name}_interval")}
    for name in MEASURES[4:]:
        low, high = result[f"{name}_interval"]
        assert low < result[name] < high
        assert result[name] > 0
    pairs = [distances.w2(probs["hmc"][a], probs["hmc"][b]).mean() for a in range(4) for b in range(a)]
    assert result["w2"] == pytest.approx(np.mean(pairs))
    json.dumps(result, allow_nan=False)


def test_the_floor_of_a_gap_is_its_size():
    """Three chains, surer and surer: the signed gaps of the pairs would depend on their order."""
    p = np.reshape([0.9, 0.7, 0.5], (3, 1, 1, 1)) * np.ones((1, 2, 5, 1))
    found = compare.floor(np.concatenate([p, 1 - p], axis=-1), np.zeros(5, int))
    h = [metrics.entropy(np.array([[q, 1 - q]]))[0] for q in (0.9, 0.7, 0.5)]
    assert found["entropy_gap"] == pytest.approx((h[2] - h[0]) * 2 / 3)


def test_standard_error_of_w2_counts_points_and_draws():
    """Draws N(m_t, s^2) against a point mass at 0, m_t far from it: W2 at t is about the draws' root mean
    square; its error has the spread of m_t over points and that of the common shift of the draws."""
    rng = np.random.default_rng(0)
    m, s, draws, points = 5 + rng.normal(size=100), 0.8, 250, 100
    shift = s * rng.normal(size=(1, draws, 1, 1))
    values = {"a": m[:, None] + shift, "b": np.zeros((1, 1, points, 1))}
    probs = {name: np.full((*v.shape[:3], 2), 0.5) for name, v in values.items()}
    found = compare.summarise(
        probs,
        np.zeros(points, int),
        "b",
        rng=rng,
        replicates=2,
        block={"a": 1, "b": 1},
        values=values,
    )["a"]
    assert found["w2"] == pytest.approx(np.sqrt((m + shift.mean()) ** 2 + shift.var()).mean(), rel=1e-2)
    error = half_width(found["w2_interval"]) / 1.96
    exact = np.hypot(m.std(ddof=1) / 10, shift.std() / np.sqrt(draws))
    assert error == pytest.approx(exact, rel=5 / np.sqrt(2 * 50))


def test_regressions_are_compared_by_their_densities():
    """Gaussian predictions, for which scores and distances are known; the intervals hold their estimates."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=40)
    at = lambda shape, shift: (shift + 0.3 * rng.normal(size=(*shape, 40)), np.full((*shape, 40), 0.5))
    own = {"map": (np.full((1, 1, 40), 1.0), np.full((1, 1, 40), 0.5)), "vi": at((1, 60), 0.0)}
    own["hmc"] = at((2, 60), 0.2)
    cuts = distances.edges(list(own.values()))
    probs = {name: distances.features(*parts, y, cuts) for name, parts in own.items()}
    values = {name: mean[..., None] for name, (mean, _) in own.items()}
    settings = dict(rng=rng, replicates=20, measures=distances.REGRESSION)
    blocks = {"map": 1, "vi": 1, "hmc": 2}
    found = compare.summarise(probs, y, "hmc", block=blocks, values=values, **settings)
    for name, (means, variances) in own.items():
        pooled = means.reshape(-1, 40)
        want = metrics.gaussian_mixture_nll(pooled, variances.reshape(-1, 40), y)
        assert found[name]["nll"] == pytest.approx(want, rel=1e-4)
        assert found[name]["rmse"] == pytest.approx(metrics.rmse(pooled.mean(0), y), rel=1e-4)
        for row in (found[name],):
            for measure in (m for m in row if not m.endswith("_interval")):
                low, high = row[f"{measure}_interval"]
                assert low <= row[measure] <= high
    assert found["vi"]["total_variation"] < found["map"]["total_variation"]
    assert found["vi"]["w2"] == pytest.approx(
        distances.w2(values["vi"][0], values["hmc"].reshape(-1, 40, 1)).mean()
    )
    assert "agreement" not in found["vi"]
    floor = compare.floor_summary(probs["hmc"], y, block=2, values=values["hmc"], **settings)
    assert floor["total_variation"] < found["vi"]["total_variation"]
    with pytest.raises(UserError, match="finite values"):
        compare.summarise({"a": np.full((1, 1, 2, 5), np.nan)}, y[:2], None, block={"a": 1}, **settings)


def test_floor_standard_error_counts_the_draws():
    """Two chains whose means differ by much: TV = difference of means, error s sqrt(2 / D)."""
    rng = np.random.default_rng(0)
    centre = np.reshape([0.3, 0.7], (2, 1, 1, 1))
    p = centre + 0.05 * rng.normal(size=(2, 100, 1, 1)) * np.ones((1, 1, 20, 1))
    probs = np.concatenate([p, 1 - p], axis=-1)
    result = compare.floor_summary(probs, np.zeros(20, int), rng=rng, replicates=3000, block=1)
    error = half_width(result["total_variation_interval"]) / 1.96
    exact = np.hypot(*p[:, :, 0, 0].std(axis=1)) / 10
    assert error == pytest.approx(exact, rel=5 / np.sqrt(2 * 3000))


def test_wrong_input(study):
    probs, labels, block = study
    run = lambda probs=probs, labels=labels, reference="hmc", block=block, replicates=5: compare.summarise(
        probs, labels, reference, rng=np.random.default_rng(0), replicates=replicates, block=block
    )
    with pytest.raises(UserError, match="'nuts' is not among"):
        run(reference="nuts")
    with pytest.raises(UserError, match="no length for: hmc"):
        run(block={"map": 1, "vi": 1})
    with pytest.raises(UserError, match="same test points"):
        run(probs | {"vi": probs["vi"][:, :, :50]})
    with pytest.raises(UserError, match="same test points"):
        run({}, reference=None)
    with pytest.raises(UserError, match="60 integers"):
        run(labels=labels[:50])
    with pytest.raises(UserError, match="logits"):
        run(probs | {"vi": np.log(probs["vi"])})
    with pytest.raises(UserError, match="C, D, T, K"):
        run(probs | {"vi": probs["vi"][0]})
    with pytest.raises(UserError, match="2 bootstrap replicates"):
        run(replicates=1)
    with pytest.raises(UserError, match="2 chains"):
        compare.floor(probs["vi"], labels)
    with pytest.raises(UserError, match="2 chains"):
        compare.floor_summary(probs["vi"], labels, rng=np.random.default_rng(0), block=1)
