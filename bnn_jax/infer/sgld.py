"""Stochastic gradient Langevin dynamics (Welling & Teh, ICML 2011): `langevin.overdamped`.

    z <- z + eps^2/2 grad log p(z, D) + eps xi

One gradient of a minibatch a step, no rejection; cyclical with `cycle` (arXiv:1902.03932).
"""

from collections.abc import Callable

from bnn_jax import langevin
from bnn_jax.types import Algorithm


def build(
    log_joint: Callable,
    scale: Callable,
    batch_size: int | None = None,
    step_size: float = 0.01,
    cycle: int | None = None,
    explore: float = 0.8,
    num_warmup: int = 0,
    thin: int | None = None,
) -> Algorithm:
    """SGLD; arguments and errors as of `langevin.build`.

    Args:
        step_size: eps, in prior widths.
    """
    dynamics = langevin.overdamped()
    return langevin.build(dynamics, log_joint, scale, step_size, batch_size, cycle, explore, num_warmup, thin)
