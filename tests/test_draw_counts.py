"""Scores against the number of draws: by hand, Jensen's order, and what is refused."""

import itertools

import numpy as np
import pytest

from bnn_jax import draw_counts, metrics
from bnn_jax.types import UserError

LABELS = np.array([0, 1, 1, 0, 1])


def draws(count=8, seed=0):
    logits = np.random.default_rng(seed).standard_normal((count, 5, 2))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_all_draws_are_the_mean_and_one_draw_is_a_draw():
    probs = draws()
    one, all_ = draw_counts.by_draws(probs, LABELS, [1, 8], repeats=200)
    for name, score in draw_counts.SCORES.items():
        assert all_[name] == pytest.approx(score(probs.mean(0), LABELS))
        assert all_[f"{name}_std"] == 0
        single = [score(p, LABELS) for p in probs]
        assert min(single) <= one[name] <= max(single)
        assert one[name] == pytest.approx(np.mean(single), abs=5 * np.std(single) / np.sqrt(200))
        assert one[f"{name}_std"] == pytest.approx(np.std(single), rel=0.3)
    assert [one["num_draws"], all_["num_draws"]] == [1, 8]


def test_the_expected_nll_falls_with_the_number_of_draws():
    """Jensen: the mean over all subsets of two is no worse than that over single draws."""
    probs = draws(5)
    pairs = [metrics.nll(probs[list(p)].mean(0), LABELS) for p in itertools.combinations(range(5), 2)]
    rows = draw_counts.by_draws(probs, LABELS, [1, 2, 5], repeats=400)
    assert rows[0]["nll"] > rows[1]["nll"] > rows[2]["nll"]
    assert rows[1]["nll"] == pytest.approx(np.mean(pairs), abs=5 * np.std(pairs) / np.sqrt(400))


def test_draws_that_agree_have_no_spread_and_the_seed_is_all_that_is_random():
    same = np.repeat(draws(1), 6, 0)
    for row in draw_counts.by_draws(same, LABELS, [1, 3]):
        assert row["nll_std"] == pytest.approx(0, abs=1e-9)
    args = (draws(), LABELS, [2, 4])
    assert draw_counts.by_draws(*args, seed=1) == draw_counts.by_draws(*args, seed=1)
    assert draw_counts.by_draws(*args, seed=1) != draw_counts.by_draws(*args, seed=2)


@pytest.mark.parametrize("count", [0, 9])
def test_counts_out_of_range(count):
    with pytest.raises(UserError, match=rf"^counts must lie in 1\.\.8, the number of draws, not {count}$"):
        draw_counts.by_draws(draws(), LABELS, [count])
    with pytest.raises(UserError, match="repeats must be at least 1"):
        draw_counts.by_draws(draws(), LABELS, [1], repeats=0)
