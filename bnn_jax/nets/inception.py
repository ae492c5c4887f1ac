"""Inception v3 (Szegedy et al., arXiv:1512.00567), with a norm of single examples for batch normalisation.

94 convolutions without bias, each followed by a norm and an activation: filter response normalisation with
its thresholded linear unit (`norms`), or group normalisation (Wu & He, arXiv:1803.08494; groups of eight
channels) with ReLU. Batch normalisation would make the likelihood of an example depend on its batch.

23,851,784 weights for three channels and 1000 outputs, 23,834,568 with group normalisation, at any image
size. What differs from the paper's network:

- no auxiliary head: the likelihood of an example is that of one output, and a second term, for another output
  of the same weights, would count its label twice;
- no dropout: a network here is deterministic;
- everything is padded (SAME). The paper's stem and reductions are not, and need 75x75 pixels. So the last
  feature map of 299x299 inputs is 10x10 instead of 8x8, and that of 64x64 inputs 2x2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnn_jax.norms import FilterResponseNorm
from bnn_jax.types import UserError, positive

NORMS = ("frn", "group")
LEAST = 33  # five halvings leave 2x2: the filter response norm of a single position would be its sign

# The network as steps: (channels, height and width of the window[, stride]) is a convolution, "max" halves,
# "average" smooths, and a list of branches, each a tuple of steps, runs side by side and is concatenated.
STEM = ((32, 3, 3, 2), (32, 3, 3), (64, 3, 3), "max", (80, 1, 1), (192, 3, 3), "max")


def _local(pooled):
    """Figure 5 of the paper."""
    double = ((64, 1, 1), (96, 3, 3), (96, 3, 3))
    return [((64, 1, 1),), ((48, 1, 1), (64, 5, 5)), double, ("average", (pooled, 1, 1))]


def _factorised(inner):
    """Figure 6, n = 7."""
    row, column = (inner, 1, 7), (inner, 7, 1)
    once = ((inner, 1, 1), row, (192, 7, 1))
    twice = ((inner, 1, 1), column, row, column, (192, 1, 7))
    return [((192, 1, 1),), once, twice, ("average", (192, 1, 1))]


def _expanded():
    """Figure 7."""
    fork = [((384, 1, 3),), ((384, 3, 1),)]
    return [((320, 1, 1),), ((384, 1, 1), fork), ((448, 1, 1), (384, 3, 3), fork), ("average", (192, 1, 1))]


# Figure 10, from 35x35 to 17x17; from there to 8x8 as in the published code, the paper does not say.
FIRST_REDUCTION = [((384, 3, 3, 2),), ((64, 1, 1), (96, 3, 3), (96, 3, 3, 2)), ("max",)]
SECOND_REDUCTION = [
    ((192, 1, 1), (320, 3, 3, 2)),
    ((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)),
    ("max",),
]
LAYERS = (
    *STEM,
    *map(_local, (32, 64, 64)),
    FIRST_REDUCTION,
    *map(_factorised, (128, 160, 160, 192)),
    SECOND_REDUCTION,
    *(_expanded() for _ in range(2)),
)


class Unit(nn.Module):
    """Convolution, norm and activation."""

    channels: int
    window: tuple[int, int]
    stride: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.channels, self.window, (self.stride, self.stride), use_bias=False)(x)
        if self.norm == "frn":
            return FilterResponseNorm()(x)
        return nn.relu(nn.GroupNorm(num_groups=None, group_size=8)(x))


class Inception(nn.Module):
    num_outputs: int
    norm: str
    width: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4 or min(x.shape[1:3]) < LEAST:
            side = f"{LEAST}x{LEAST} pixels"
            raise UserError(f"inception needs images (B, H, W, C) of at least {side}, not {x.shape}")
        return nn.Dense(self.num_outputs)(self._run(x, LAYERS).mean((1, 2)))

    def _run(self, x, steps):
        for step in steps:
            if step == "max":
                x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            elif step == "average":
                x = nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
            elif isinstance(step, list):
                x = jnp.concatenate([self._run(x, branch) for branch in step], -1)
            else:
                channels, height, width, *stride = step
                channels = max(8, 8 * int(self.width * channels / 8 + 0.5))
                x = Unit(channels, (height, width), *(stride or [1]), self.norm)(x)
        return x


def build(num_outputs: int, norm: str = "frn", width: float = 1.0) -> Inception:
    """Inception v3.

    Args:
        norm: "frn" or "group".
        width: factor on all numbers of channels, which are rounded to multiples of 8, at least 8.

    Raises:
        UserError: no such norm, or `width` is not positive; or, when it is applied, the images are smaller
            than 33x33.
    """
    if norm not in NORMS:
        raise UserError(f"inception has no norm {norm!r}: choose from {', '.join(NORMS)}")
    positive("inception's width", width)
    return Inception(num_outputs, norm, width)
