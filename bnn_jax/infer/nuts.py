"""The No-U-Turn sampler by NumPyro: HMC that ends a trajectory when it turns back.

    leapfrogs as `hmc`'s, to both sides in time, twice as many each time, until (z_last - z_first) . r < 0
    at one of the two ends; the draw: one state of the path, each with a weight of exp(-H(z, r))

No trajectory length to choose (Hoffman & Gelman, arXiv:1111.4246). Chains under `vmap` wait for the
longest tree, so place one chain a device.
"""

from collections.abc import Callable

from bnn_jax import hamiltonian
from bnn_jax.types import Algorithm, UserError


def build(
    log_joint: Callable,
    scale: Callable,
    num_warmup: int,
    max_tree_depth: int = 10,
    step_size: float = 0.05,
    target_accept_prob: float = 0.8,
) -> Algorithm:
    """NUTS; at most 2^max_tree_depth leapfrog steps a draw.

    Args:
        log_joint: (params, batch) -> (), nats; the batch is the full data.
        scale: `Prior.scale`.
        num_warmup: steps during which the step size adapts; drop them.
        max_tree_depth: the limit on doublings.
        step_size: the first step size, in prior widths.
        target_accept_prob: the acceptance that adaptation aims at.

    Raises:
        UserError: a setting out of range.
    """
    if max_tree_depth < 1:
        raise UserError(f"max_tree_depth must be at least 1, not {max_tree_depth}")
    return hamiltonian.build(
        "NUTS",
        log_joint,
        scale,
        num_warmup,
        step_size,
        target_accept_prob,
        max_tree_depth=max_tree_depth,
    )
