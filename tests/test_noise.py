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


def test_signs_are_bits_of_threefry():
    """Blocks lie row by row, the first words of a row before the second ones, low bits first."""
    key = jax.random.key(3)
    bits = threefry_2x32(jax.random.bits(key, (2,)), jnp.arange(2 * 3 * 2, dtype=jnp.uint32))
    words = np.asarray(bits).reshape(2, 3, 2).transpose(1, 0, 2).reshape(3, 4, 1)
    expected = 1 - 2.0 * (words >> np.arange(32, dtype=np.uint32) & 1).reshape(3, 128)
    np.testing.assert_array_equal(noise.signs_from(noise.words(key), (3, 70)), expected[:, :70])


@pytest.mark.parametrize("shape", [(128, 7), (4096, 64), (512, 150)], ids=str)
def test_signs_are_fair_and_independent(shape):
    """Their mean, products of neighbours along both axes and of places 32 apart, at five standard errors."""
    drawn = np.asarray(
        noise.signs_from(noise.words(jax.random.key(1)), shape, jnp.bfloat16).astype(jnp.float32)
    )
    assert drawn.shape == shape
    assert set(np.unique(drawn)) == {-1, 1}
    products = [drawn, drawn[1:] * drawn[:-1], drawn[:, 1:] * drawn[:, :-1], drawn[:, 32:] * drawn[:, :-32]]
    for found in products:
        assert abs(found.sum()) <= 5 * np.sqrt(found.size)
    assert len(np.unique(drawn, axis=0)) > 0.5 * min(shape[0], 2 ** shape[1])


def test_the_ends_are_finite():
    """Bits of zeros and of ones only: erfinv is infinite at -1 and 1, which are left out."""
    low, high = np.asarray(noise.normal_of(jnp.array([0, 2**32 - 1], jnp.uint32)))
    assert -5.5 < low < -5
    assert 5 < high < 5.5


def test_other_keys_other_numbers_and_a_key_only_once():
    one, two = (noise.normal(jax.random.key(seed), (1000,)) for seed in (0, 1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(1000)
    np.testing.assert_array_equal(one, noise.normal(jax.random.key(0), (1000,)))
    for draw in (lambda key: noise.normal(key, (4,)), lambda key: noise.words(key, 4)):
        with jax.debug_key_reuse(True):
            key = jax.random.key(0)
            draw(key)
            with pytest.raises(jax.errors.KeyReuseError):
                draw(key)


def test_other_dtypes_are_those_of_jax():
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        noise.normal(key, (5, 2), jnp.bfloat16), jax.random.normal(key, (5, 2), jnp.bfloat16)
    )


@pytest.mark.parametrize(
    ("draw", "axes", "share", "whole"),
    [
        (lambda key: noise.normal(key, (6, 3, 16)), (None, None, "data"), "u32[3,3,2]", "[3,3,16]"),
        (lambda key: noise.signs_from(noise.words(key), (16, 100)), ("data",), "u32[2,2]", "[16,2"),
    ],
    ids=["normal", "signs"],
)
def test_devices_draw_their_own_share_without_a_word(draw, axes, share, whole):
    """Of normal numbers along any axis but the first, as the batch is in local reparameterisation."""
    mesh = sharding.make_mesh(1, 8)
    split = NamedSharding(mesh, PartitionSpec(*axes))
    program = jax.jit(draw, out_shardings=split).lower(jax.random.key(1)).compile()
    np.testing.assert_array_equal(program(jax.random.key(1)), draw(jax.random.key(1)))
    text = program.as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))
    assert share in text  # of normal numbers a half of an eighth, and nothing of the whole
    assert whole not in text
