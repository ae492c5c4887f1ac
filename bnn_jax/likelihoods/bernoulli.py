"""Bernoulli: p(y = 1 | outputs) = sigmoid(outputs), for two classes with one output."""

import jax
import jax.numpy as jnp

from bnn_jax.likelihoods import entropy, squeeze
from bnn_jax.types import Likelihood


def build() -> Likelihood:
    """Outputs are logits (B,) or (B, 1), targets 0 or 1 (B,)."""

    def log_probs(outputs):
        logits = squeeze(outputs)
        return jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], -1)

    def fisher_root(outputs, y):
        p = jax.nn.sigmoid(outputs)
        return jnp.sqrt(p * (1 - p))[None]

    return Likelihood(
        log_prob=lambda outputs, y: jnp.where(y > 0, *jnp.moveaxis(log_probs(outputs), -1, 0)[::-1]),
        mean=lambda outputs: jnp.exp(log_probs(outputs)),
        noise=lambda outputs: entropy(log_probs(outputs)),
        task="classification",
        fisher_root=fisher_root,
    )
