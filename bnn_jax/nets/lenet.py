"""LeNet-5 with ReLU and max pooling: conv 6 and 16 (5x5), dense 120 and 84 (LeCun et al. 1998).

61,706 weights for 28x28x1 inputs and ten outputs. The first convolution pads, the second does not, so
inputs must be at least 12x12.
"""

import flax.linen as nn
import jax

from bnn_jax import ops
from bnn_jax.types import UserError


class LeNet(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4 or min(x.shape[1:3]) < 12:
            raise UserError(f"lenet needs images (B, H, W, C) of at least 12x12 pixels, not {x.shape}")
        x = ops.max_pool(nn.relu(nn.Conv(6, (5, 5))(x)))
        x = ops.max_pool(nn.relu(nn.Conv(16, (5, 5), padding="VALID")(x)))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(120)(x))
        x = nn.relu(nn.Dense(84)(x))
        return nn.Dense(self.num_outputs)(x)


def build(num_outputs: int) -> LeNet:
    """LeNet-5."""
    return LeNet(num_outputs)
