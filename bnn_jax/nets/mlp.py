"""Multilayer perceptron, 256-256 by default (the MNIST net of Blundell et al., arXiv:1505.05424, has 400)."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
    """Flattens its input; ReLU between the layers."""

    num_outputs: int
    hidden: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_outputs)(x)


def build(num_outputs: int, hidden: Sequence[int] = (256, 256)) -> MLP:
    """A perceptron with the given hidden widths."""
    return MLP(num_outputs, tuple(hidden))
