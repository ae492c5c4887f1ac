"""A plain network for radiographs: blocks of conv 3x3 with ReLU and 2x2 max pooling, then dense layers.

Widths 32, 64, 128, 256 and 512, one convolution a block, and a dense layer of 2048 by default. It sees the
flattened feature map, so the number of weights grows with the image: 52,954,370 for 224x224x1 inputs and
two outputs, of which 51,382,272 are that layer's. `convnet` ends in a global average instead.

The baseline of one block: `blocks(widths=(32,), hidden=128)`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from bnn_jax import ops
from bnn_jax.types import UserError


class Blocks(nn.Module):
    num_outputs: int
    widths: Sequence[int]
    hidden: Sequence[int]
    convs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        least = 2 ** len(self.widths)
        if x.ndim != 4 or min(x.shape[1:3]) < least:
            side = f"{least}x{least} pixels"
            raise UserError(f"blocks needs images (B, H, W, C) of at least {side}, not {x.shape}")
        for width in self.widths:
            for _ in range(self.convs):
                x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = ops.max_pool(x)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_outputs)(x)


def build(
    num_outputs: int,
    widths: int | Sequence[int] = (32, 64, 128, 256, 512),
    hidden: int | Sequence[int] = 2048,
    convs: int = 1,
) -> Blocks:
    """A network with one block a width and one dense layer a hidden width; a number stands for one.

    Args:
        convs: convolutions a block.

    Raises:
        UserError: a width or `convs` is below 1; or, when it is applied, the images are too small.
    """
    widths, hidden = ((a,) if isinstance(a, int) else tuple(a) for a in (widths, hidden))
    if min(*widths, *hidden, convs, 1) < 1:
        raise UserError(
            f"blocks needs numbers of at least 1, not widths={widths}, hidden={hidden}, convs={convs}"
        )
    return Blocks(num_outputs, widths, hidden, convs)
