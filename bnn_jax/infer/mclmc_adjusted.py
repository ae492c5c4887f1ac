"""Microcanonical Hamiltonian Monte Carlo by BlackJAX, Metropolis corrected: `microcanonical.adjusted`.

    dz = u dt,   du = (1 - u u^T) grad log p(z, D) dt / (P - 1),   |u| = 1

A trajectory begins with a random direction u and has a random number of steps; its end is accepted with
probability min(1, exp(-change of the energy)). Exact in the limit, as HMC (arXiv:2503.01707). Two gradients a
step, and one a trajectory.
"""

from collections.abc import Callable

from bnn_jax import microcanonical
from bnn_jax.types import Algorithm


def build(
    log_joint: Callable,
    scale: Callable,
    num_warmup: int,
    length: float = 1.0,
    step_size: float = 0.05,
    target_accept_prob: float = 0.9,
) -> Algorithm:
    """Adjusted MCLMC; the mean number of steps of a trajectory is length / step_size.

    Args:
        log_joint: (params, batch) -> (), nats; the batch is the full data.
        scale: `Prior.scale`.
        num_warmup: trajectories during which the step size adapts; drop them.
        length: of a trajectory on average, in prior widths (root mean square over the weights).
        step_size: the first step size, in prior widths; dual averaging soon tries ten times that.
        target_accept_prob: the acceptance that adaptation aims at.

    Raises:
        UserError: BlackJAX is not installed, or a setting out of range; from `init`: fewer than 2 weights.
    """
    return microcanonical.adjusted(log_joint, scale, num_warmup, length, step_size, target_accept_prob)
