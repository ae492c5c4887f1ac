"""Hamiltonian Monte Carlo by NumPyro: trajectories of fixed length, Metropolis corrected.

    H(z, r) = -log p(w, D) + |r|^2 / 2,   w = z * scale,   r ~ N(0, I) at the start
    r <- r + eps/2 grad_z log p(w, D),   z <- z + eps r,   r <- r + eps/2 grad_z log p(w, D)    L times
    z accepted with probability min(1, exp(H_start - H_end))

The reference of this package: exact up to Monte Carlo error once its chains agree (Neal,
arXiv:1206.1901). A trajectory of pi/2 prior widths takes a weight that the data leave free to an
independent draw from its prior (Izmailov et al., arXiv:2104.14421).
"""

import math
from collections.abc import Callable

from bnn_jax import hamiltonian
from bnn_jax.types import Algorithm, positive


def build(
    log_joint: Callable,
    scale: Callable,
    num_warmup: int,
    trajectory_length: float = math.pi / 2,
    step_size: float = 0.05,
    target_accept_prob: float = 0.8,
) -> Algorithm:
    """HMC; the number of leapfrog steps is trajectory_length / step_size.

    Args:
        log_joint: (params, batch) -> (), nats; the batch is the full data.
        scale: `Prior.scale`.
        num_warmup: steps during which the step size adapts; drop them.
        trajectory_length: in prior widths.
        step_size: the first step size, in prior widths.
        target_accept_prob: the acceptance that adaptation aims at.

    Raises:
        UserError: a setting out of range.
    """
    positive("trajectory_length", trajectory_length)
    return hamiltonian.build(
        "HMC",
        log_joint,
        scale,
        num_warmup,
        step_size,
        target_accept_prob,
        trajectory_length=trajectory_length,
    )
