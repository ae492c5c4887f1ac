"""What training notes beside its scores: the standard deviation of the posterior, layer by layer.

A recorder is a function of a method's state whose numbers become columns of the history, one row an
evaluation (`training.optimise`), and so survive an interruption.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bnn_jax import parts
from bnn_jax.trees import leaf_names
from bnn_jax.types import Posterior, UserError


def layer_std(posterior: str) -> Callable[[Any], dict[str, float]]:
    """state -> `std_LAYER` of every leaf of the weights: the mean of its weights' standard deviations.

    Args:
        posterior: name of the variational family; the state's `phi` is one of it, an ensemble's too, over
            whose members the mean goes as well.

    Raises:
        UserError: the family has no standard deviation a weight.
    """
    moments = _moments(posterior)
    means = jax.jit(lambda phi: jax.tree.map(jnp.mean, moments(phi)[1]))

    def record(state: Any) -> dict[str, float]:
        found = means(state.phi)
        names = (name.replace("/", "_") for name in leaf_names(found))
        return {f"std_{n}": float(v) for n, v in zip(names, jax.tree.leaves(found), strict=True)}

    return record


def _moments(posterior):
    family: Posterior = parts.find("posterior", posterior)()
    if family.moments is None:
        raise UserError(f"the posterior {posterior} has no standard deviation a weight to record")
    return family.moments
