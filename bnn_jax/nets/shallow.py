"""One hidden layer of 50 ReLU units: the net of the UCI regression benchmark, with 100 on its largest tables.

Hernandez-Lobato & Adams, arXiv:1502.05336, and nearly everybody who has reported on these tables since.
"""

import flax.linen as nn
import jax

from bnn_jax.types import UserError


class Shallow(nn.Module):
    num_outputs: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_outputs)(x)


def build(num_outputs: int, hidden: int = 50) -> Shallow:
    """The net.

    Raises:
        UserError: `hidden` is below 1.
    """
    if hidden < 1:
        raise UserError(f"shallow needs at least one hidden unit, not {hidden}")
    return Shallow(num_outputs, hidden)
