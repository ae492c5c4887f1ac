"""Fusion: by hand, equal models, odds that multiply, classes that are excluded, and pools as minima of KL."""

from functools import partial

import numpy as np
import pytest
from scipy.special import rel_entr

from bnn_jax import fusion
from bnn_jax.types import UserError

PROBS = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 50))  # (M, T, K)
WEIGHTS = np.array([0.5, 0.3, 0.2])
HALVES = np.array([[[0.8, 0.2]], [[0.5, 0.5]]])  # one example
RULES = pytest.mark.parametrize("rule", [fusion.average, fusion.product])


def test_by_hand():
    np.testing.assert_allclose(fusion.average(HALVES), [[0.65, 0.35]])
    np.testing.assert_allclose(fusion.average(HALVES, [0.25, 0.75]), [[0.575, 0.425]])
    np.testing.assert_allclose(fusion.product(HALVES), [[0.8, 0.2]])  # even odds say nothing
    np.testing.assert_allclose(fusion.product(HALVES, [0.5, 0.5]), [[2 / 3, 1 / 3]])  # odds sqrt(4 * 1)
    np.testing.assert_allclose(fusion.product([[[0.8, 0.2]]] * 2), [[16 / 17, 1 / 17]])  # odds 4 * 4


@RULES
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_the_result_is_a_distribution_and_the_order_does_not_matter(rule, weights):
    found = rule(PROBS, weights)
    assert (found.shape, found.dtype) == ((50, 4), np.float64)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=1), 1)
    turned = rule(PROBS[[2, 0, 1]], None if weights is None else WEIGHTS[[2, 0, 1]])
    np.testing.assert_allclose(turned, found)
    np.testing.assert_allclose(rule(PROBS[..., ::-1], weights), found[:, ::-1])


@pytest.mark.parametrize(
    "rule",
    [fusion.average, *(partial(f, weights=WEIGHTS) for f in (fusion.average, fusion.product))],
    ids=["average", "weighted average", "weighted product"],
)
def test_equal_models_give_their_prediction_back(rule):
    np.testing.assert_allclose(rule(np.repeat(PROBS[:1], 3, axis=0)), PROBS[0])


def test_the_product_of_equal_experts_is_surer():
    found = fusion.product(np.repeat(PROBS[:1], 3, axis=0))
    np.testing.assert_allclose(found, PROBS[0] ** 3 / np.sum(PROBS[0] ** 3, axis=1, keepdims=True))
    assert (found.max(axis=1) > PROBS[0].max(axis=1)).all()


@RULES
@pytest.mark.parametrize("m", range(3))
def test_all_weight_on_one_model_returns_it(rule, m):
    np.testing.assert_allclose(rule(PROBS, np.eye(3)[m]), PROBS[m])


def test_each_pool_is_closest_to_the_models():
    """The linear pool minimises sum_m w_m KL(p_m || p), the log-linear one sum_m w_m KL(p || p_m)."""
    away = lambda p: WEIGHTS @ rel_entr(PROBS, p).sum(axis=-1)
    towards = lambda p: WEIGHTS @ rel_entr(p, PROBS).sum(axis=-1)
    linear, log_linear = fusion.average(PROBS, WEIGHTS), fusion.product(PROBS, WEIGHTS)
    for other in (linear, log_linear, PROBS[0], 0.99 * linear + 0.0025, 0.99 * log_linear + 0.0025):
        assert (away(linear) <= away(other) + 1e-12).all()
        assert (towards(log_linear) <= towards(other) + 1e-12).all()


def test_a_class_that_one_model_excludes():
    probs = [[[0.5, 0.5, 0.0]], [[0.2, 0.2, 0.6]]]
    np.testing.assert_allclose(fusion.product(probs), [[0.5, 0.5, 0]])
    np.testing.assert_allclose(fusion.product(probs, [0.1, 0.9]), [[0.5, 0.5, 0]])
    np.testing.assert_allclose(fusion.product(probs, [0, 1]), probs[1])  # weight 0 excludes nothing
    np.testing.assert_allclose(fusion.average(probs), [[0.35, 0.35, 0.3]])


def test_tiny_probabilities_do_not_underflow():
    """200 models that give 1e-300 and 3e-300 to two classes and rule the third out between them."""
    probs = np.tile([1e-300, 3e-300, 1.0], (200, 1, 1))
    probs[0] = [0.5, 0.5, 0.0]
    found = fusion.product(probs)
    np.testing.assert_allclose(found, [[3.0**-199, 1, 0]])


def test_contradicting_models_are_told_by_example():
    probs = np.tile(np.eye(2)[0], (2, 5, 1))
    probs[1, 3] = [0, 1]
    with pytest.raises(UserError, match=r"^example 3: each class has probability 0 under some model"):
        fusion.product(probs)
    np.testing.assert_array_equal(fusion.average(probs)[3], [0.5, 0.5])
    np.testing.assert_array_equal(fusion.product(probs, [0, 1])[3], [0, 1])


@RULES
@pytest.mark.parametrize(
    ("probs", "weights", "message"),
    [
        (PROBS[0], None, r"shape \(M, T, K\)"),
        (np.log(PROBS), None, "not logits"),
        (PROBS, [0.5, 0.5], "weights need 3 numbers"),
        (PROBS, [1, 1, 1], "of sum 1"),
        (PROBS, [1.5, 0, -0.5], "none negative"),
        (PROBS, [0.5, 0.5, np.nan], "none negative"),
    ],
)
def test_mistakes_are_told(rule, probs, weights, message):
    with pytest.raises(UserError, match=message):
        rule(probs, weights)
