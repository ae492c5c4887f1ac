"""Categorical: p(y = k | outputs) = softmax(outputs)_k.

The log likelihood is a product with the one-hot label: its gradient has no scatter, which is slow
inside loops on CPU, and XLA folds the product into the softmax elsewhere.
"""

import jax
import jax.numpy as jnp

from bnn_jax.likelihoods import entropy, require_outputs
from bnn_jax.types import Likelihood


def build() -> Likelihood:
    """Outputs are logits (B, K), targets integer labels (B,) in 0..K-1."""

    def log_softmax(outputs):
        require_outputs(outputs, "(B, K) with K > 1", outputs.ndim == 2 and outputs.shape[1] > 1)
        return jax.nn.log_softmax(outputs)

    def fisher_root(outputs, y):
        probs = jnp.exp(log_softmax(outputs))
        return jnp.sqrt(probs.T)[..., None] * (jnp.eye(outputs.shape[-1])[:, None] - probs)

    return Likelihood(
        log_prob=lambda outputs, y: jnp.sum(log_softmax(outputs) * jax.nn.one_hot(y, outputs.shape[-1]), -1),
        mean=lambda outputs: jnp.exp(log_softmax(outputs)),
        noise=lambda outputs: entropy(log_softmax(outputs)),
        task="classification",
        fisher_root=fisher_root,
    )
