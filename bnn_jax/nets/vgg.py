"""VGG16 (Simonyan & Zisserman, arXiv:1409.1556): 13 convolutions 3x3 in five blocks, then three dense layers.

Blocks of 2, 2, 3, 3 and 3 layers of width 64, 128, 256, 512 and 512, each followed by 2x2 max pooling; ReLU.
138,357,544 weights for 224x224x3 inputs and 1000 outputs, as published; 103 million of them are the first
dense layer's. With `dense=False` a global average and one dense layer take the head's place: 14,714,688
weights of convolutions and 513 an output, at any image size. The head's dropout is left out: a network here
is deterministic, and the uncertainty of its weights is the posterior's business.

Weights start as He et al. propose for ReLU (arXiv:1502.01852). Flax's default halves the variance of the
activations in every layer; after thirteen without a norm little is left to learn from.
"""

import flax.linen as nn
import jax

from bnn_jax import ops
from bnn_jax.types import UserError

BLOCKS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # (convolutions, their width in units of the first's)
LEAST = 2 ** len(BLOCKS)
HE = nn.initializers.he_normal()


class VGG(nn.Module):
    num_outputs: int
    dense: bool
    hidden: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4 or min(x.shape[1:3]) < LEAST:
            side = f"{LEAST}x{LEAST} pixels"
            raise UserError(f"vgg needs images (B, H, W, C) of at least {side}, not {x.shape}")
        for depth, factor in BLOCKS:
            for _ in range(depth):
                x = nn.relu(nn.Conv(self.width * factor, (3, 3), kernel_init=HE)(x))
            x = ops.max_pool(x)
        if not self.dense:
            return nn.Dense(self.num_outputs)(x.mean((1, 2)))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden, kernel_init=HE)(x))
        return nn.Dense(self.num_outputs)(x)


def build(num_outputs: int, dense: bool = True, hidden: int = 4096, width: int = 64) -> VGG:
    """VGG16.

    Args:
        dense: the published head, two dense layers of `hidden` units; else a global average.
        hidden: their width.
        width: of the first block.

    Raises:
        UserError: a width is below 1; or, when it is applied, the images are smaller than 32x32.
    """
    if min(hidden, width) < 1:
        raise UserError(f"vgg needs widths of at least 1, not hidden={hidden}, width={width}")
    return VGG(num_outputs, dense, hidden, width)
