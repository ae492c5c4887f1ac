"""A plain network for images and signals of any size: blocks of conv 3x3, swish and 2x2 max pooling, then a
global average.

Widths 32, 64, 128 by default. The average makes the number of weights (93,000 for two classes) independent of
the image size, which mean-field VI with few thousand images needs: a dense layer on a feature map of
224x224 inputs would have more weights than the data can determine. Signals (B, L, C) take windows of 3.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from bnn_jax import ops
from bnn_jax.types import UserError


class ConvNet(nn.Module):
    num_outputs: int
    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        least = 2 ** len(self.widths)
        if x.ndim not in (3, 4) or min(x.shape[1:-1]) < least:
            side = f"{least}x{least} pixels"
            raise UserError(
                f"convnet needs images (B, H, W, C) of at least {side}, or signals (B, L, C), not {x.shape}"
            )
        spatial = x.ndim - 2
        for width in self.widths:
            x = ops.max_pool(nn.swish(nn.Conv(width, (3,) * spatial)(x)), (2,) * spatial)
        return nn.Dense(self.num_outputs)(x.mean(tuple(range(1, 1 + spatial))))


def build(num_outputs: int, widths: Sequence[int] = (32, 64, 128)) -> ConvNet:
    """A network with one block a width."""
    return ConvNet(num_outputs, tuple(widths))
