r"""Stochastic gradient MCMC as a trio: Langevin dynamics on minibatches, without a Metropolis test.

In units of the prior's width, w = z * scale, with g the gradient in z of log p(w, D), estimated from B random
examples of the data, and xi standard normal:

    overdamped       z <- z + eps^2/2 P g + eps sqrt(T P) xi
    underdamped      m <- (1 - alpha) (m + eps/2 g) + eps/2 g + sqrt(T (1 - (1 - alpha)^2)) xi
                     z <- z + eps m

eps is what it is in a leapfrog step: underdamped steps are leapfrogs between which a share alpha of the
momentum is renewed, overdamped ones those with alpha = 1. Approximated are the steps, whose bias is of order
eps^2 as nobody rejects them, and the noise of the minibatches, which adds eps^2/4 (overdamped) or
eps^2 (2 - alpha) / (4 alpha) (underdamped) times the gradient's variance to that of xi. (The update usually
given kicks by a whole eps g, which leaves 1 - alpha/2 times the posterior's variance however small eps is.)
A cycle of L steps lowers eps^2, to which the usual learning rate is proportional, along a cosine from its
largest value to 0 and begins again; its first part runs without noise (T = 0), to find another mode. The
rest must be long enough to fill the posterior again, else a draw is little more than a mode.

Each dynamics is an optax transformation of the gradient of the log joint whose `update` also takes `key`,
`step_size` and `temperature`. (Welling & Teh, ICML 2011; Li et al., arXiv:1512.07666; Chen et al.,
arXiv:1402.4102; Zhang et al., arXiv:1902.03932)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bnn_jax.trees import normal_like, size, tree_sum
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError, positive


class LangevinState(NamedTuple):
    z: Params  # the weights in prior widths
    dynamics: Any
    t: jax.Array  # () int32, steps taken


class Preconditioner(NamedTuple):
    square: Params  # running mean of squared gradients
    t: jax.Array  # () int32, steps taken


def overdamped() -> optax.GradientTransformationExtraArgs:
    """Langevin dynamics, P = 1."""

    def update(grads, state, params=None, *, key, step_size, temperature):
        flat = jax.tree.map(jnp.ones_like, grads)
        return _overdamped(grads, flat, key, step_size, temperature), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def preconditioned(num_warmup: int, decay: float = 0.99, damping: float = 1e-3):
    """Langevin dynamics with P = c / (sqrt(V) + damping), V a running mean of squared gradients, c such that
    P is 1 on average.

    V is learned in the first `num_warmup` steps and kept then: a P that goes on changing with z would need
    its derivative in the drift, which pSGLD leaves out.

    Args:
        num_warmup: steps in which V is learned; drop them.
        decay: of the running mean.
        damping: relative to the root mean square of all gradients.

    Raises:
        UserError: `decay` is not in (0, 1), or `damping` not positive.
    """
    if not 0 < decay < 1:
        raise UserError(f"the preconditioner's decay must lie between 0 and 1, not {decay}")
    positive("the preconditioner's damping", damping)

    def init(params):
        return Preconditioner(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))

    def update(grads, state, params=None, *, key, step_size, temperature):
        weight = jnp.where(state.t < num_warmup, jnp.maximum(1 - decay, 1 / (state.t + 1)), 0.0)
        square = jax.tree.map(lambda v, g: v + weight * (g * g - v), state.square, grads)
        new = Preconditioner(square, state.t + 1)
        return _overdamped(grads, _inverse_root(square, damping), key, step_size, temperature), new

    return optax.GradientTransformationExtraArgs(init, update)


def underdamped(friction: float = 0.1) -> optax.GradientTransformationExtraArgs:
    """Langevin dynamics with momentum.

    Args:
        friction: alpha, the share of the momentum that is renewed in a step.

    Raises:
        UserError: `friction` is not in (0, 1].
    """
    if not 0 < friction <= 1:
        raise UserError(f"friction must lie in (0, 1], not {friction}")

    def update(grads, momentum, params=None, *, key, step_size, temperature):
        width = jnp.sqrt(temperature * (1 - (1 - friction) ** 2))
        kick = (1 - friction / 2) * step_size
        momentum = jax.tree.map(
            lambda m, g, e: (1 - friction) * m + kick * g + width * e,
            momentum,
            grads,
            normal_like(key, grads),
        )
        return jax.tree.map(lambda m: step_size * m, momentum), momentum

    zeros = lambda params: jax.tree.map(jnp.zeros_like, params)
    return optax.GradientTransformationExtraArgs(zeros, update)


def build(
    dynamics: optax.GradientTransformationExtraArgs,
    log_joint: Callable,
    scale: Callable,
    step_size: float,
    batch_size: int | None = None,
    cycle: int | None = None,
    explore: float = 0.8,
    num_warmup: int = 0,
    thin: int | None = None,
) -> Algorithm:
    """Chains of `dynamics`.

    Args:
        log_joint: (params, batch) -> (), nats on the full-data scale, whatever the batch.
        scale: (params) -> the width of each weight's prior, `Prior.scale`.
        step_size: eps, in prior widths; with cycles its largest value.
        batch_size: examples of a step, drawn with replacement from the batch that a step is given; None takes
            that whole.
        cycle: steps of a cycle; None keeps eps.
        explore: share of a cycle without noise.
        num_warmup: steps before the first draw, after which a cycle begins.
        thin: steps a draw; of cycles a whole number, so that a draw is the end of one.

    Raises:
        UserError: a setting out of range.
    """
    positive("step_size", step_size)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    if cycle is not None and cycle < 2:
        raise UserError(f"a cycle has at least 2 steps, not {cycle}")
    if not 0 <= explore < 1:
        raise UserError(f"explore must lie in [0, 1), not {explore}")
    if cycle is not None and thin is not None and thin % cycle:
        raise UserError(
            f"a draw is the end of a cycle of {cycle} steps: thin by a multiple of it, not by {thin}"
        )

    def to_params(z: Params) -> Params:
        return jax.tree.map(jnp.multiply, z, scale(z))

    def schedule(t):
        if cycle is None:
            return jnp.asarray(step_size, jnp.float32), jnp.ones((), jnp.float32)
        place = (t - num_warmup) % cycle / cycle
        return step_size * jnp.cos(jnp.pi / 2 * place), jnp.where(place < explore, 0.0, 1.0)

    def init(key: Key, params: Params) -> LangevinState:
        z = jax.tree.map(jnp.divide, params, scale(params))
        return LangevinState(z, dynamics.init(z), jnp.zeros((), jnp.int32))

    def step(key: Key, state: LangevinState, batch: Batch) -> tuple[LangevinState, Info]:
        key_rows, key_noise = jax.random.split(key)
        if batch_size is not None:
            rows = jax.random.randint(key_rows, (batch_size,), 0, len(batch.x))
            batch = jax.tree.map(lambda a: jnp.asarray(a)[rows], batch)
        value, grads = jax.value_and_grad(lambda z: log_joint(to_params(z), batch))(state.z)
        eps, temperature = schedule(state.t)
        updates, new = dynamics.update(
            grads, state.dynamics, state.z, key=key_noise, step_size=eps, temperature=temperature
        )
        z = optax.apply_updates(state.z, updates)
        return LangevinState(z, new, state.t + 1), {"log_joint": value, "step_size": eps}

    return Algorithm(init, step, sample=lambda key, state: to_params(state.z), chain=True)


def _overdamped(grads, precondition, key, step_size, temperature):
    width = step_size * jnp.sqrt(temperature)
    move = lambda p, g, e: 0.5 * step_size**2 * p * g + width * jnp.sqrt(p) * e
    return jax.tree.map(move, precondition, grads, normal_like(key, grads))


def _inverse_root(square, damping):
    """1 / (sqrt(square) + damping * rms), divided by its mean over all weights."""
    rms = jnp.sqrt(tree_sum(square) / size(square))
    inverse = jax.tree.map(lambda v: 1 / (jnp.sqrt(v) + damping * rms + 1e-30), square)
    mean = tree_sum(inverse) / size(square)
    return jax.tree.map(lambda a: a / mean, inverse)
