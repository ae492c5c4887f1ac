"""Microcanonical Langevin Monte Carlo by BlackJAX: `microcanonical.unadjusted`.

    dz = u dt,   du = (1 - u u^T) grad log p(z, D) dt / (P - 1) + noise,   |u| = 1

Full gradients, no rejection: the step size sets a bias, which adaptation keeps small by the error that a step
makes in the energy (arXiv:2212.08549, arXiv:2303.18221). Three gradients a step.
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
    energy_variance: float = 5e-4,
) -> Algorithm:
    """MCLMC; a draw is one step, so thin by about length / step_size.

    Args:
        log_joint: (params, batch) -> (), nats; the batch is the full data.
        scale: `Prior.scale`.
        num_warmup: steps during which the step size adapts; drop them.
        length: after which the direction of the velocity is forgotten, in prior widths (root mean square over
            the weights); about the posterior's width.
        step_size: the first step size, in prior widths.
        energy_variance: mean squared energy error of a step, over P, that adaptation aims at; lower is less
            bias.

    Raises:
        UserError: BlackJAX is not installed, or a setting out of range; from `init`: fewer than 2 weights.
    """
    return microcanonical.unadjusted(log_joint, scale, num_warmup, length, step_size, energy_variance)
