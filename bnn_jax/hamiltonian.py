r"""NumPyro's HMC and NUTS as a pure trio, in units of the prior's width.

    H(z, r) = -log p(z * scale, D) + |r|^2 / 2,      w = z * scale

Leapfrog steps of size epsilon in z are steps of epsilon prior widths in every weight, which replaces
the adaptation of a mass matrix: short BNN runs estimate one badly (Izmailov et al., arXiv:2104.14421).
During the first `num_warmup` steps epsilon follows NumPyro's dual averaging towards the target
acceptance; afterwards it stays at the averaged value and the kernel leaves the posterior invariant.
A row of rejections early on takes epsilon down by orders of magnitude before it recovers, so a trajectory of
HMC ends after `MAX_LEAPFROGS` steps, however short it is then.

NumPyro's kernels keep settings in a closure and a key in their state. Here each step builds its kernel
from the state and its own key, so that state and key are all there is: a run resumed in another process
continues with the same draws. The price is one gradient a step beside those of the trajectory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.infer.hmc import hmc
from numpyro.infer.hmc_util import dual_averaging

from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError, positive

MAX_LEAPFROGS = 10_000  # of one trajectory of HMC; NUTS has its tree depth


class HamiltonianState(NamedTuple):
    z: Params  # the weights in prior widths; kept so that a rejected step leaves the draw bit-identical
    step_size: jax.Array  # (), in prior widths
    averaging: Any  # NumPyro's dual averaging
    t: jax.Array  # () int32, steps taken


def build(
    algo: str,
    log_joint: Callable,
    scale: Callable,
    num_warmup: int,
    step_size: float,
    target_accept_prob: float,
    **kernel: Any,
) -> Algorithm:
    """The trio around `numpyro.infer.hmc.hmc`.

    Args:
        algo: "HMC" or "NUTS".
        log_joint: (params, batch) -> (), nats; the batch is the full data.
        scale: (params) -> the width of each weight's prior, `Prior.scale`.
        num_warmup: steps during which the step size adapts.
        step_size: where it starts, in prior widths.
        target_accept_prob: what it aims at, between 0 and 1.
        kernel: further settings of NumPyro's `init_kernel`: `trajectory_length` or `max_tree_depth`.

    Raises:
        UserError: a setting out of range.
    """
    if num_warmup < 0:
        raise UserError(f"num_warmup must not be negative, not {num_warmup}")
    positive("step_size", step_size)
    if not 0 < target_accept_prob < 1:
        raise UserError(f"target_accept_prob must lie between 0 and 1, not {target_accept_prob}")
    averaging_init, averaging_update = dual_averaging()

    def to_params(z: Params) -> Params:
        return jax.tree.map(jnp.multiply, z, scale(z))

    def init(key: Key, params: Params) -> HamiltonianState:
        z = jax.tree.map(jnp.divide, params, scale(params))
        averaging = jax.tree.map(jnp.asarray, averaging_init(jnp.log(step_size) + jnp.log(10.0)))
        return HamiltonianState(z, jnp.asarray(step_size, jnp.float32), averaging, jnp.zeros((), jnp.int32))

    def step(key: Key, state: HamiltonianState, batch: Batch) -> tuple[HamiltonianState, Info]:
        z, unravel = ravel_pytree(state.z)
        potential = lambda z: -log_joint(to_params(unravel(z)), batch)
        init_kernel, sample_kernel = hmc(potential, algo=algo)
        bound = {}
        if algo == "HMC":
            longest = MAX_LEAPFROGS * state.step_size
            bound["trajectory_length"] = jnp.minimum(kernel["trajectory_length"], longest)
        start = init_kernel(
            z,
            num_warmup=0,
            step_size=state.step_size,
            adapt_step_size=False,
            adapt_mass_matrix=False,
            rng_key=key,
            **kernel | bound,
        )
        end = sample_kernel(start)

        adapted = averaging_update(target_accept_prob - end.accept_prob, state.averaging)
        last = state.t + 1 >= num_warmup
        adapted_size = jnp.exp(jnp.where(last, adapted[1], adapted[0]))
        warming_up = state.t < num_warmup
        averaging = jax.tree.map(lambda a, b: jnp.where(warming_up, a, b), adapted, state.averaging)
        new = HamiltonianState(
            unravel(end.z),
            jnp.where(warming_up, adapted_size, state.step_size),
            averaging,
            state.t + 1,
        )
        return new, {
            "accept_prob": end.accept_prob,
            "step_size": state.step_size,
            "num_steps": end.num_steps,
            "diverging": end.diverging,
            "log_joint": -end.potential_energy,
            "energy": end.energy,
        }

    return Algorithm(init, step, sample=lambda key, state: to_params(state.z), chain=True)
