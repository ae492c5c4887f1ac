"""Stochastic gradient HMC (Chen et al., arXiv:1402.4102): `langevin.underdamped`.

    m <- (1 - alpha) (m + eps/2 g) + eps/2 g + sqrt(1 - (1 - alpha)^2) xi,    z <- z + eps m

One gradient g of a minibatch a step, no rejection; cyclical with `cycle` (arXiv:1902.03932).
"""

from collections.abc import Callable

from bnn_jax import langevin
from bnn_jax.types import Algorithm


def build(
    log_joint: Callable,
    scale: Callable,
    batch_size: int | None = None,
    step_size: float = 0.01,
    friction: float = 0.1,
    cycle: int | None = None,
    explore: float = 0.8,
    num_warmup: int = 0,
    thin: int | None = None,
) -> Algorithm:
    """SGHMC; arguments and errors as of `langevin.build`.

    Args:
        step_size: eps, in prior widths.
        friction: alpha, the share of the momentum that is renewed in a step.
    """
    dynamics = langevin.underdamped(friction)
    return langevin.build(dynamics, log_joint, scale, step_size, batch_size, cycle, explore, num_warmup, thin)
