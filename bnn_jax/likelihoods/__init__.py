"""Likelihoods p(y | outputs of the network), one a file, each `build(...) -> Likelihood`.

All are per example, in nats, for the original (unscaled by N) data.
"""

import jax
import jax.numpy as jnp

from bnn_jax.types import UserError


def require_outputs(outputs: jax.Array, shape: str, ok: bool) -> None:
    """Raise a UserError in one line unless the network's outputs have the wanted shape."""
    if not ok:
        raise UserError(f"this likelihood needs network outputs of shape {shape}, not {outputs.shape}")


def squeeze(outputs: jax.Array) -> jax.Array:
    """(B,) from (B,) or (B, 1).

    Raises:
        UserError: another shape.
    """
    require_outputs(outputs, "(B,) or (B, 1)", outputs.ndim == 1 or outputs.shape[1:] == (1,))
    return outputs.reshape(-1)


def entropy(log_probs: jax.Array) -> jax.Array:
    """The entropy over the last axis, in nats; 0 log 0 = 0."""
    probs = jnp.exp(log_probs)
    return -jnp.sum(jnp.where(probs > 0, probs * log_probs, 0.0), -1)
