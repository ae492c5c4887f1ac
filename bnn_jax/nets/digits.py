"""The small net of the main job: conv 8 and 16 (3x3), swish, max pooling, one dense layer.

1,898 weights for 8x8x1 inputs and ten outputs: small enough for HMC on a laptop, convolutional enough
to say something about larger nets. Swish is smooth, which HMC's leapfrog needs for large steps.
"""

import flax.linen as nn
import jax

from bnn_jax import ops
from bnn_jax.types import UserError


class Digits(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4 or min(x.shape[1:3]) < 4:
            raise UserError(f"digits needs images (B, H, W, C) of at least 4x4 pixels, not {x.shape}")
        for width in (8, 16):
            x = ops.max_pool(nn.swish(nn.Conv(width, (3, 3))(x)))
        return nn.Dense(self.num_outputs)(x.reshape(x.shape[0], -1))


def build(num_outputs: int) -> Digits:
    """The digits net."""
    return Digits(num_outputs)
