"""Noise: the numbers of the generator, normal and independent, wherever they are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from jax.sharding import NamedSharding, PartitionSpec
from scipy import special, stats

from bnn_jax import noise, sharding

SHAPES = [(2**17,), (2**17 - 1,), (1, 2**16), (7, 5, 5, 400), (6, 24, 24, 32)]


@pytest.mark.parametrize("size", [2, 7, 1000])
def test_numbers_are_those_of_threefry(size):
    """Its public form gives two words a block, in halves, too; u and erfinv here in float64."""
    key = jax.random.key(3)
    even = size + size % 2
    bits = threefry_2x32(jax.random.bits(key, (2,)), jnp.arange(even, dtype=jnp.uint32))
    uniform = (np.asarray(bits) >> 9) * 2.0**-22 - 1
    expected = np.sqrt(2) * special.erfinv(uniform[:size])
    np.testing.assert_allclose(noise.normal(key, (size,)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_are_normal_and_independent(shape):
    """Kolmogorov-Smirnov; correlations of numbers and of their squares, of halves that share blocks and of
    neighbours. All at five standard errors."""
    drawn = np.asarray(noise.normal(jax.random.key(0), shape), np.float64)
    assert drawn.shape == shape
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 5.7e-7
    half = shape[0] // 2
    pairs = [(drawn.ravel()[1:], drawn.ravel()[:-1])]
    if half:
        pairs.append((drawn[:half].ravel(), drawn[-(-shape[0] // 2) :].ravel()))
    for a, b in pairs:
        for f in (np.asarray, np.square):
            assert abs(stats.pearsonr(f(a), f(b)).statistic) < 5 / np.sqrt(len(a))


def test_the_ends_are_finite():
    """Bits of zeros and of ones only: erfinv is infinite at -1 and 1, which are left out."""
    low, high = np.asarray(noise.normal_of(jnp.array([0, 2**32 - 1], jnp.uint32)))
    assert -5.5 < low < -5
    assert 5 < high < 5.5


def test_other_keys_other_numbers_and_a_key_only_once():
    one, two = (noise.normal(jax.random.key(seed), (1000,)) for seed in (0, 1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(1000)
    np.testing.assert_array_equal(one, noise.normal(jax.random.key(0), (1000,)))
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        noise.normal(key, (4,))
        with pytest.raises(jax.errors.KeyReuseError):
            noise.normal(key, (4,))


def test_other_dtypes_are_those_of_jax():
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        noise.normal(key, (5, 2), jnp.bfloat16), jax.random.normal(key, (5, 2), jnp.bfloat16)
    )


def test_devices_draw_their_own_share_without_a_word():
    """Along any axis but the first, as the batch is in local reparameterisation."""
    mesh = sharding.make_mesh(1, 8)
    split = NamedSharding(mesh, PartitionSpec(None, None, "data"))
    draw = lambda key: noise.normal(key, (6, 3, 16))
    program = jax.jit(draw, out_shardings=split).lower(jax.random.key(1)).compile()
    np.testing.assert_array_equal(program(jax.random.key(1)), draw(jax.random.key(1)))
    text = program.as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))
    assert "u32[3,3,2]" in text  # a half of an eighth, and nothing of the whole
    assert "[3,3,16]" not in text
