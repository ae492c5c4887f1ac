"""ResNet-20 with filter response normalisation and swish, for 32x32 (Izmailov et al., arXiv:2104.14421).

    block(x) = swish(x + norm(conv(swish(norm(conv(x))))))

One convolution; three stages of (depth - 2) / 6 blocks of width 16, 32 and 64, all 3x3, the second and
third stage beginning with stride 2 and a normalised 1x1 projection on the shortcut; a global average; a dense
layer. The nets of He et al., arXiv:1512.03385, for CIFAR-10 have batch normalisation, ReLU and no projection.

274,042 weights for 32x32x3 inputs and ten outputs, as in the code of Izmailov et al.: as there, convolutions
have a bias, and norms their threshold tau (784 in all) before the swish. So the outputs are smooth in the
weights but for the kinks at tau.
"""

import flax.linen as nn
import jax

from bnn_jax.norms import FilterResponseNorm
from bnn_jax.types import UserError

LEAST = 5  # two halvings leave 2x2: the norm of a single position would be its sign


class ResNet(nn.Module):
    num_outputs: int
    depth: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4 or min(x.shape[1:3]) < LEAST:
            side = f"{LEAST}x{LEAST} pixels"
            raise UserError(f"resnet needs images (B, H, W, C) of at least {side}, not {x.shape}")

        def conv(x, width, window=3, stride=1):
            return FilterResponseNorm()(nn.Conv(width, (window, window), (stride, stride))(x))

        x = nn.swish(conv(x, self.width))
        for stage in range(3):
            width = self.width * 2**stage
            for block in range((self.depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                y = conv(nn.swish(conv(x, width, stride=stride)), width)
                x = nn.swish(y + (x if stride == 1 else conv(x, width, 1, stride)))
        return nn.Dense(self.num_outputs)(x.mean((1, 2)))


def build(num_outputs: int, depth: int = 20, width: int = 16) -> ResNet:
    """A residual network of `depth` layers, 8, 14, 20 and so on, `width` channels wide in its first stage.

    Raises:
        UserError: no such depth or width; or, when it is applied, the images are smaller than 5x5.
    """
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"resnet needs a depth of 6 n + 2 (8, 14, 20, ...), not {depth}")
    if width < 1:
        raise UserError(f"resnet needs a width of at least 1, not {width}")
    return ResNet(num_outputs, depth, width)
