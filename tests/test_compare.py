"""Distances by hand, and bootstrap standard errors against their closed forms."""

import json
from itertools import pairwise

import numpy as np
import pytest

from bnn_jax import compare, metrics
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


def test_distances_by_hand():
    assert compare.agreement(P, Q) == 0.5
    assert compare.total_variation(P, Q) == pytest.approx((0.1 + 0.2 + 0.0 + 1.0) / 4)
    assert compare.agreement(P, P) == 1
    assert compare.total_variation(P, P) == 0


def test_weight_moments_and_std_ratio_by_hand():
    mean, std = compare.weight_moments(np.array([[1.0, 0.0], [3.0, 0.0]], np.float32))
    np.testing.assert_array_equal(mean, [2.0, 0.0])
    np.testing.assert_array_equal(std, [1.0, 0.0])
    np.testing.assert_array_equal(compare.weight_moments([[5.0, 6.0]])[1], 0)
    ratio = compare.std_ratio([[0.0, 0.0], [1.0, 1.0]], [[1.0, 2.0], [5.0, 2.0]])
    np.testing.assert_array_equal(ratio, [0.25, np.nan])


def test_floor_averages_over_pairs():
    """Chains P, P, Q: one pair agrees, two differ as P and Q do. The draws of a chain are averaged first."""
    chains = np.stack([[P, P], [P, P], [Q, Q]])
    chains[0] += np.array([[[0.05, -0.05]], [[-0.05, 0.05]]]) * [[1], [1], [1], [0]]
    result = compare.floor(chains)
    assert result["agreement"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert result["total_variation"] == pytest.approx((0 + 0.325 + 0.325) / 3)


def test_floor_of_exchangeable_chains():
    """p = 1/2 + s e: D-draw means differ by a normal of deviation s sqrt(2/D), and TV is its mean size."""
    rng = np.random.default_rng(0)
    s, draws = 0.02, 50
    p = 0.5 + s * rng.normal(size=(4, draws, 2000, 1))
    result = compare.floor(np.concatenate([p, 1 - p], axis=-1))
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


MEASURES = ["accuracy", "nll", "brier", "ece", "agreement", "total_variation"]


def test_summarise_reports_the_metrics_of_the_mean(study):
    probs, labels, block = study
    result = compare.summarise(probs, labels, "hmc", rng=np.random.default_rng(1), replicates=20, block=block)
    assert list(result) == ["map", "vi", "hmc"]
    mean = {name: p.mean(axis=(0, 1)) for name, p in probs.items()}
    for name, row in result.items():
        measures = MEASURES[:4] if name == "hmc" else MEASURES
        assert list(row) == [key for m in measures for key in (m, f"{m}_interval")]
        assert row["accuracy"] == metrics.accuracy(mean[name], labels)
        assert row["nll"] == pytest.approx(metrics.nll(mean[name], labels))
        assert row["brier"] == pytest.approx(metrics.brier(mean[name], labels))
        assert row["ece"] == pytest.approx(metrics.ece(mean[name], labels))
    assert result["vi"]["agreement"] == compare.agreement(mean["vi"], mean["hmc"])
    assert result["vi"]["total_variation"] == pytest.approx(compare.total_variation(mean["vi"], mean["hmc"]))
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
            assert 0 <= low <= row[name] <= high <= {"nll": np.inf, "brier": 2}.get(name, 1)
            assert low < high


def test_without_a_reference_nothing_is_compared(study):
    probs, labels, block = study
    result = compare.summarise(probs, labels, None, rng=np.random.default_rng(1), replicates=5, block=block)
    assert all("agreement" not in row and "total_variation" not in row for row in result.values())


def test_methods_share_the_resampled_points(study):
    """Twins without noise in their draws have equal intervals; were points drawn anew, they would differ."""
    probs, labels, _ = study
    twins = {"a": probs["map"], "b": probs["map"], "c": probs["map"]}
    blocks = dict.fromkeys(twins, 1)
    result = compare.summarise(twins, labels, "b", rng=np.random.default_rng(1), replicates=20, block=blocks)
    assert (
        result["a"]
        == result["c"]
        == result["b"]
        | {
            "agreement": 1.0,
            "agreement_interval": [1.0, 1.0],
            "total_variation": 0.0,
            "total_variation_interval": [0.0, 0.0],
        }
    )


def test_the_generator_is_the_only_randomness(study):
    probs, labels, block = study
    run = lambda seed: compare.summarise(
        probs, labels, "hmc", rng=np.random.default_rng(seed), replicates=5, block=block
    )
    assert run(1) == run(1) != run(2)


def test_floor_summary(study):
    probs = study[0]["hmc"]
    result = compare.floor_summary(probs, rng=np.random.default_rng(1), replicates=50, block=3)
    assert {name: result[name] for name in ("agreement", "total_variation")} == compare.floor(probs)
    for name in ("agreement", "total_variation"):
        low, high = result[f"{name}_interval"]
        assert 0 <= low < result[name] < high <= 1
    json.dumps(result, allow_nan=False)


def test_floor_standard_error_counts_the_draws():
    """Two chains whose means differ by much: TV = difference of means, error s sqrt(2 / D)."""
    rng = np.random.default_rng(0)
    centre = np.reshape([0.3, 0.7], (2, 1, 1, 1))
    p = centre + 0.05 * rng.normal(size=(2, 100, 1, 1)) * np.ones((1, 1, 20, 1))
    result = compare.floor_summary(np.concatenate([p, 1 - p], axis=-1), rng=rng, replicates=3000, block=1)
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
        compare.floor(probs["vi"])
    with pytest.raises(UserError, match="2 chains"):
        compare.floor_summary(probs["vi"], rng=np.random.default_rng(0), block=1)
    with pytest.raises(UserError, match="differ in shape"):
        compare.agreement(P, Q[:3])
    with pytest.raises(UserError, match="D, P"):
        compare.weight_moments(np.ones(3))
    with pytest.raises(UserError, match="3 weights"):
        compare.std_ratio(np.ones((2, 3)), np.ones((2, 4)))
