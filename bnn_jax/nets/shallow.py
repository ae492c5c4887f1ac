"""One hidden layer of 50 ReLU units: the net of the UCI regression benchmark.

Hernandez-Lobato & Adams, arXiv:1502.05336, and nearly everybody who has reported on these tables since.
"""

import flax.linen as nn
import jax

HIDDEN = 50


class Shallow(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(HIDDEN)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_outputs)(x)


def build(num_outputs: int) -> Shallow:
    """The net."""
    return Shallow(num_outputs)
