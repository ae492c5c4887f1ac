"""Priors over weights, one a file, each `build(...) -> Prior`; the weights are independent.

A prior knows nothing of the network: `like` is any parameter pytree, whose shapes (and, for the
fan-in scaled prior, ranks) say how many weights there are. Log densities are normalised, in nats.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bnn_jax.trees import split_like, tree_sum
from bnn_jax.types import Key, Params, Prior


def independent(sample: Callable, log_prob: Callable, scale: Callable, gaussian: bool = False) -> Prior:
    """A prior from one leaf's functions.

    Args:
        sample: (key, leaf) -> array like leaf.
        log_prob: (leaf) -> elementwise log density, nats.
        scale: (leaf) -> scalar width.
        gaussian: the prior is N(0, scale^2), so KL terms have a closed form.
    """

    def sample_all(key: Key, like: Params) -> Params:
        return jax.tree.map(sample, split_like(key, like), like)

    def log_prob_all(params: Params) -> jax.Array:
        return tree_sum(jax.tree.map(log_prob, params))

    def scale_all(like: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, scale(leaf), leaf.dtype), like)

    def moments(like: Params) -> tuple[Params, Params]:
        return jax.tree.map(jnp.zeros_like, like), scale_all(like)

    return Prior(sample_all, log_prob_all, scale_all, moments if gaussian else None)
