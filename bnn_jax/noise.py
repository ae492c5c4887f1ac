r"""Normal noise and random signs, fast where much of it is drawn.

    z = sqrt(2) erfinv(u),  u uniform on (-1, 1) in steps of 2^-22, from the bits of Threefry-2x32

as in `jax.random.normal`, but for the bits: a block of the generator is two words (Salmon et al., Parallel
random numbers: as easy as 1, 2, 3, SC 2011), of which JAX makes one number. Here it makes two, and the rounds
are written out, where JAX's CPU backend loops over the whole array in each: the noise of a step takes about
0.6 of the time on CPU, and noise of several axes compiles in a third. A random sign is one of the 64 bits.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnn_jax.types import Key

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of Threefry-2x32, in turn for four rounds each


def normal(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Independent standard normal numbers; as an array that is computed once, see `held`.

    The two halves of the first axis come from the same blocks. Every other axis may be split over devices:
    each number is a function of key and place alone.

    Args:
        shape: of at least one axis, and less than 2^32 numbers.
        dtype: another than float32 takes `jax.random.normal`.
    """
    if dtype != jnp.float32:
        return held(jax.random.key_data(key).ravel()[0], jax.random.normal(key, shape, dtype))
    return normal_from(words(key), shape)


def words(key: Key, count: int | None = None) -> jax.Array:
    """The generator's key, (2,) uint32, of any kind of key, which JAX sees used up; or `count` of them,
    (count, 2), as a call of the generator for each takes longer to compile than its numbers."""
    return jax.random.bits(key, (2,) if count is None else (count, 2), jnp.uint32)


def normal_from(words: jax.Array, shape: Sequence[int]) -> jax.Array:
    """`normal` in float32, of `words` (2,)."""
    half = (-(-shape[0] // 2), *shape[1:])
    drawn = tuple(map(normal_of, threefry(words, half)))
    return jnp.concatenate(held(words[0], drawn))[: shape[0]]


def signs_from(words: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Independent random signs, -1 or 1, of `words` (2,); an array that is computed once.

    A block of the generator makes 64 neighbours of a row. Rows may be split over devices.
    """
    rows, columns = shape
    blocks = jnp.concatenate(threefry(words, (rows, -(-columns // 64))), 1)
    bits = (blocks[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return held(words[0], 1 - 2 * bits.reshape(rows, -1)[:, :columns].astype(dtype))


@partial(jax.jit, static_argnums=1)
def threefry(key: jax.Array, shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Two words of random bits for every place of `shape`.

    Args:
        key: (2,) uint32.
    """
    count = math.prod(shape)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    places = sum(jax.lax.broadcasted_iota(jnp.uint32, shape, a) * np.uint32(s) for a, s in enumerate(strides))
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = places + keys[0], places + np.uint32(count) + keys[1]
    for i in range(5):
        for bits in ROTATIONS[i % 2]:
            x = x + y
            y = ((y << np.uint32(bits)) | (y >> np.uint32(32 - bits))) ^ x
        x = x + keys[(i + 1) % 3]
        y = y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def normal_of(bits: jax.Array) -> jax.Array:
    """A normal number of every word."""
    # 23 bits as the mantissa of a number in [1, 2); then (-1, 1), without its ends, where erfinv is infinite.
    unit = jax.lax.bitcast_convert_type((bits >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32) - 1
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(low, unit * (1 - low) + low)
    return np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)


def held(word: jax.Array, noise: Any) -> Any:
    """`noise`, drawn with a key of which `word` is one, one array or several, computed once.

    XLA's CPU backend fuses the last operations of drawing into whatever reads the numbers: the noise of a
    bias is computed anew at every pixel of the batch, forwards and backwards. An optimisation barrier does
    not hold it back. A loop does whose length only the key knows: one turn, for one key in 2^32 a second that
    does the same.
    """
    if jax.default_backend() != "cpu":
        return noise
    turns = jnp.where(word == 0, 2, 1)
    return jax.lax.fori_loop(0, turns, lambda i, out: noise, jax.tree.map(jnp.zeros_like, noise))
