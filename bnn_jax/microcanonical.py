r"""BlackJAX's microcanonical Langevin dynamics as pure trios, in units of the prior's width.

    dz = u dt,   du = (1 - u u^T) grad_z log p(z * scale, D) dt / (P - 1) + noise,   |u| = 1,   w = z * scale

The velocity u keeps its norm whatever the energy; steps that kept the energy, too, would leave the posterior
invariant. Steps and lengths are told as root mean squares over the P weights, sqrt(P) times less than along
u: a step of epsilon moves the weights about as far as a leapfrog step of HMC with that epsilon. `unadjusted`
turns u by noise in every step and accepts all, with a bias of order epsilon^2; `adjusted` draws u anew for
each trajectory and accepts or rejects its end (Robnik et al., arXiv:2212.08549; Robnik & Seljak,
arXiv:2303.18221; Robnik et al., arXiv:2503.01707).

BlackJAX's kernels take the log density at the start from their state. Here each step computes it from the
weights and its batch, so that state and key are all there is, at the price of one gradient a step. BlackJAX's
tuners run loops of their own; the same rule for the step size is here a part of the step.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bnn_jax.trees import normal_like, size, tree_sum
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError, positive

MEMORY = 150  # steps that the rule for the step size of `unadjusted` looks back on
TRUST = 1.5  # width of its weights, in the logarithm of the step size
MAX_STEPS = 5_000  # of an adjusted trajectory, on average: rejections early on take the step size far down


class Averaging(NamedTuple):
    weight: jax.Array  # ()
    error: jax.Array  # () weighted sum of the energy error, over its target and the step size's sixth power
    largest: jax.Array  # () no step may be longer, as one of 1.25 times it was not finite


class UnadjustedState(NamedTuple):
    z: Params  # the weights in prior widths
    velocity: Params  # u
    step_size: jax.Array  # (), in prior widths
    averaging: Averaging
    t: jax.Array  # () int32, steps taken


class AdjustedState(NamedTuple):
    z: Params  # the weights in prior widths
    step_size: jax.Array  # (), in prior widths
    averaging: Any  # BlackJAX's dual averaging
    t: jax.Array  # () int32, steps taken


def unadjusted(
    log_joint: Callable,
    scale: Callable,
    num_warmup: int,
    length: float,
    step_size: float,
    energy_variance: float,
) -> Algorithm:
    """Chains of Langevin steps that nobody rejects; a step that is not finite is not taken.

    Args:
        log_joint: (params, batch) -> (), nats; the batch is the full data.
        scale: (params) -> the width of each weight's prior, `Prior.scale`.
        num_warmup: steps during which the step size adapts.
        length: after which u has forgotten its direction, in prior widths.
        step_size: where it starts, in prior widths.
        energy_variance: mean squared change of the energy in a step, over P, that adaptation aims at.

    Raises:
        UserError: BlackJAX is not installed, or a setting out of range; from `init`: fewer than 2 weights.
    """
    blackjax = _library()
    _check(num_warmup, length, step_size)
    positive("energy_variance", energy_variance)
    kernel = blackjax.mclmc.build_kernel()

    def init(key: Key, params: Params) -> UnadjustedState:
        z = _widths(params, scale)
        noise = normal_like(key, z)
        norm = jnp.sqrt(tree_sum(jax.tree.map(jnp.square, noise)))
        velocity = jax.tree.map(lambda e: (e / norm).astype(e.dtype), noise)
        averaging = Averaging(jnp.zeros(()), jnp.zeros(()), jnp.full((), jnp.inf, jnp.float32))
        return UnadjustedState(z, velocity, *_started(step_size, averaging))

    def step(key: Key, state: UnadjustedState, batch: Batch) -> tuple[UnadjustedState, Info]:
        z, unravel, density, value, grads = _at(state.z, log_joint, scale, batch)
        unit = math.sqrt(z.size)
        start = blackjax.mcmc.integrators.IntegratorState(z, ravel_pytree(state.velocity)[0], value, grads)
        end, info = kernel(
            key, start, density, inverse_mass_matrix=1.0, L=unit * length, step_size=unit * state.step_size
        )
        error = jnp.square(info.energy_change) / (z.size * energy_variance)
        adapted = adapt(state.averaging, state.step_size, error, info.nonans)
        warming_up = state.t < num_warmup
        new_size, averaging = jax.tree.map(
            lambda a, b: jnp.where(warming_up, a, b), adapted, (state.step_size, state.averaging)
        )
        new = UnadjustedState(unravel(end.position), unravel(end.momentum), new_size, averaging, state.t + 1)
        return new, {
            "log_joint": end.logdensity,
            "step_size": state.step_size,
            "energy_change": info.energy_change,
        }

    return Algorithm(init, step, sample=lambda key, state: _weights(state.z, scale), chain=True)


def adapt(
    averaging: Averaging, step_size: jax.Array, error: jax.Array, finite: jax.Array
) -> tuple[jax.Array, Averaging]:
    """The next step size, for a mean `error` of 1, and the averages behind it.

    The squared energy error goes as the sixth power of the step size. Errors far from 1 count less
    (BlackJAX's `mclmc_find_L_and_step_size`).

    Args:
        step_size: () of the step that was taken.
        error: () squared change of the energy in it, over what it should be.
        finite: () bool; after a step that was not, steps become shorter for good.
    """
    keep = (MEMORY - 1) / (MEMORY + 1)
    error = error + 1e-8
    weight = jnp.exp(-0.5 * jnp.square(jnp.log(error) / (6 * TRUST)))
    largest = jnp.where(finite, averaging.largest, 0.8 * step_size)
    new = Averaging(
        keep * averaging.weight + weight, keep * averaging.error + weight * error / step_size**6, largest
    )
    return jnp.minimum((new.weight / new.error) ** (1 / 6), largest), new


def adjusted(
    log_joint: Callable,
    scale: Callable,
    num_warmup: int,
    length: float,
    step_size: float,
    target_accept_prob: float,
) -> Algorithm:
    """Chains of trajectories that are accepted or rejected; their number of steps is random, with mean
    length / step_size.

    Args:
        log_joint: (params, batch) -> (), nats; the batch is the full data.
        scale: (params) -> the width of each weight's prior, `Prior.scale`.
        num_warmup: trajectories during which the step size adapts.
        length: of a trajectory on average, in prior widths; it has a step at least and ends after
            `MAX_STEPS` on average, however short it is then.
        step_size: where it starts, in prior widths.
        target_accept_prob: what it aims at, between 0 and 1.

    Raises:
        UserError: BlackJAX is not installed, or a setting out of range; from `init`: fewer than 2 weights.
    """
    blackjax = _library()
    _check(num_warmup, length, step_size)
    if not 0 < target_accept_prob < 1:
        raise UserError(f"target_accept_prob must lie between 0 and 1, not {target_accept_prob}")
    dynamic = blackjax.mcmc.adjusted_mclmc_dynamic
    kernel = dynamic.build_kernel(
        dynamic.make_random_trajectory_length_fn(True), next_random_arg_fn=lambda key: key
    )
    begin, update, final = blackjax.adaptation.step_size.dual_averaging_adaptation(target_accept_prob)

    def init(key: Key, params: Params) -> AdjustedState:
        averaging = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), begin(step_size))
        return AdjustedState(_widths(params, scale), *_started(step_size, averaging))

    def step(key: Key, state: AdjustedState, batch: Batch) -> tuple[AdjustedState, Info]:
        key_number, key_step = jax.random.split(key)
        z, unravel, density, value, grads = _at(state.z, log_joint, scale, batch)
        start = dynamic.DynamicHMCState(z, value, grads, key_number)
        steps = jnp.clip(length / state.step_size, 1.0, MAX_STEPS)
        end, info = kernel(
            key_step,
            start,
            density,
            step_size=math.sqrt(z.size) * state.step_size,
            integration_steps_params=(steps,),
        )
        averaging = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float32), update(state.averaging, info.acceptance_rate)
        )
        last = state.t + 1 >= num_warmup
        adapted = (jnp.where(last, final(averaging), jnp.exp(averaging.log_step_size)), averaging)
        warming_up = state.t < num_warmup
        new_size, averaging = jax.tree.map(
            lambda a, b: jnp.where(warming_up, a, b), adapted, (state.step_size, state.averaging)
        )
        return AdjustedState(unravel(end.position), new_size, averaging, state.t + 1), {
            "accept_prob": info.acceptance_rate,
            "step_size": state.step_size,
            "num_steps": info.num_integration_steps,
            "diverging": info.is_divergent,
            "log_joint": end.logdensity,
        }

    return Algorithm(init, step, sample=lambda key, state: _weights(state.z, scale), chain=True)


def _library() -> ModuleType:
    try:
        import blackjax
    except ImportError as error:
        raise UserError(
            "mclmc and mclmc_adjusted need BlackJAX, which is not installed: pip install 'bnn_jax[blackjax]'"
        ) from error
    return blackjax


def _check(num_warmup, length, step_size):
    if num_warmup < 0:
        raise UserError(f"num_warmup must not be negative, not {num_warmup}")
    positive("length", length)
    positive("step_size", step_size)


def _widths(params, scale):
    if size(params) < 2:
        raise UserError("microcanonical dynamics turn a velocity: they need at least 2 weights, not 1")
    return jax.tree.map(jnp.divide, params, scale(params))


def _weights(z, scale):
    return jax.tree.map(jnp.multiply, z, scale(z))


def _started(step_size, averaging):
    return jnp.asarray(step_size, jnp.float32), averaging, jnp.zeros((), jnp.int32)


def _at(tree, log_joint, scale, batch):
    """The weights as a vector, the way back, the log density of vectors, and it and its gradient here."""
    z, unravel = ravel_pytree(tree)
    density = lambda z: log_joint(_weights(unravel(z), scale), batch)
    return z, unravel, density, *jax.value_and_grad(density)(z)
