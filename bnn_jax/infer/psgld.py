"""Preconditioned SGLD (Li et al., arXiv:1512.07666): `langevin.preconditioned`.

    z <- z + eps^2/2 P grad log p(z, D) + eps sqrt(P) xi

P is smaller where gradients are larger; it is learned in the warm-up and kept.
"""

from collections.abc import Callable

from bnn_jax import langevin
from bnn_jax.types import Algorithm


def build(
    log_joint: Callable,
    scale: Callable,
    num_warmup: int,
    batch_size: int | None = None,
    step_size: float = 0.01,
    cycle: int | None = None,
    explore: float = 0.8,
    thin: int | None = None,
) -> Algorithm:
    """pSGLD; arguments and errors as of `langevin.build`.

    Args:
        step_size: eps, in prior widths.
        num_warmup: steps in which P is learned; drop them.
    """
    dynamics = langevin.preconditioned(num_warmup)
    return langevin.build(dynamics, log_joint, scale, step_size, batch_size, cycle, explore, num_warmup, thin)
