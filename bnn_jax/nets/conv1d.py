"""A small network for tables and signals: one convolution along the features, ReLU, a dense layer.

A row of F features is a sequence of length F with one channel; by default 64 windows of two neighbours,
without padding. So the order of the columns matters: a window sees features that stand side by side. Most of
the weights, 64 (F - 1) 32, are the dense layer's.
"""

import flax.linen as nn
import jax

from bnn_jax.types import UserError


class Conv1D(nn.Module):
    num_outputs: int
    filters: int
    window: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim not in (2, 3) or x.shape[1] < self.window:
            length = f"length {self.window} or more"
            raise UserError(f"conv1d needs features (B, F) or signals (B, L, C) of {length}, not {x.shape}")
        x = x[..., None] if x.ndim == 2 else x
        x = nn.relu(nn.Conv(self.filters, (self.window,), padding="VALID")(x))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_outputs)(x)


def build(num_outputs: int, filters: int = 64, window: int = 2, hidden: int = 32) -> Conv1D:
    """A network of `filters` windows of length `window`, and `hidden` dense units.

    Raises:
        UserError: an argument is below 1; or, when it is applied, the inputs are shorter than the window.
    """
    if min(filters, window, hidden) < 1:
        raise UserError(
            f"conv1d needs numbers of at least 1, not filters={filters}, window={window}, hidden={hidden}"
        )
    return Conv1D(num_outputs, filters, window, hidden)
