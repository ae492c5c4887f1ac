r"""Stein variational gradient descent: particles that climb the posterior and push each other apart.

    w_i <- w_i + alpha / N phi_i
    phi_i = 1/M sum_j [k_ij grad log p(w_j, D) + grad_{w_j} k_ij]
    k_ij = exp(-|z_i - z_j|^2 / h),   h = (median_ij |z_i - z_j|)^2 / log M,   w = z * scale

Distances are in prior widths; the first term pulls each particle uphill, the second away from the others. One
particle is MAP. Approximated is the posterior by M points: they are exact only as M grows, and in spaces of
many dimensions they lie closer together than the posterior is wide (Liu & Wang, arXiv:1608.04471).

NumPyro's `SVGD` wants a NumPyro model, keeps a key in its state and what `init` finds in itself; so the rule
is written out here, and the tests hold it against NumPyro's.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from bnn_jax import estimators
from bnn_jax.trees import normal_like
from bnn_jax.types import Algorithm, Batch, Info, Key, Params, UserError, positive


class SvgdState(NamedTuple):
    particles: Params  # leaves (M, ...)
    optimizer: Any  # one a particle


def build(
    log_joint: Callable,
    scale: Callable,
    num_data: int,
    optimizer: optax.GradientTransformation,
    num_particles: int = 10,
    jitter: float = 0.1,
) -> Algorithm:
    """SVGD; a draw is one of the particles, at random.

    Args:
        log_joint: (params, batch) -> (), nats on the full-data scale.
        scale: (params) -> the width of each weight's prior, `Prior.scale`.
        num_data: N; what the optimiser is given is divided by it, as the loss of other methods.
        optimizer: any optax transformation; each particle has its own state of it.
        num_particles: M.
        jitter: standard deviation of the particles around the start, in prior widths.

    Raises:
        UserError: a setting out of range.
    """
    if num_particles < 1:
        raise UserError(f"SVGD needs at least one particle, not {num_particles}")
    positive("SVGD's jitter", jitter)  # particles must differ

    def init(key: Key, params: Params) -> SvgdState:
        noise = jax.vmap(normal_like, (0, None))(jax.random.split(key, num_particles), params)
        particles = jax.tree.map(lambda w, s, e: w + jitter * s * e, params, scale(params), noise)
        return SvgdState(particles, jax.vmap(optimizer.init)(particles))

    def step(key: Key, state: SvgdState, batch: Batch) -> tuple[SvgdState, Info]:
        climb = jax.value_and_grad(lambda params: log_joint(params, batch))
        values, grads = estimators.over_samples(climb, state.particles, "vmap")
        widths = scale(jax.tree.map(lambda a: a[0], state.particles))
        down = jax.tree.map(lambda a: -a / num_data, direction(state.particles, grads, widths))
        updates, new = jax.vmap(optimizer.update)(down, state.optimizer, state.particles)
        return SvgdState(optax.apply_updates(state.particles, updates), new), {"log_joint": values.mean()}

    def sample(key: Key, state: SvgdState) -> Params:
        which = jax.random.randint(key, (), 0, num_particles)
        return jax.tree.map(lambda a: a[which], state.particles)

    return Algorithm(init, step, sample)


def direction(particles: Params, grads: Params, widths: Params) -> Params:
    """phi, where the particles go: leaves (M, ...), as `particles` and the gradients of the log joint there.

    Args:
        widths: the unit of distances, leaves (...).
    """
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])
    unravel = ravel_pytree(jax.tree.map(lambda a: a[0], particles))[1]
    w, width = flat(particles), ravel_pytree(widths)[0]
    z = (w - w.mean(0)) / width  # around their middle, so that differences of squares lose no digits
    times = lambda a, b: jnp.matmul(a, b, precision="highest")
    square = jnp.sum(z * z, 1)
    squares = jnp.maximum(square[:, None] + square - 2 * times(z, z.T), 0)
    squares = squares * (1 - jnp.eye(len(w), dtype=w.dtype))
    bandwidth = jnp.ones((), w.dtype)
    if len(w) > 1:
        bandwidth = jnp.square(jnp.median(jnp.sqrt(squares))) / math.log(len(w)) + jnp.finfo(w.dtype).eps
    kernel = jnp.exp(-squares / bandwidth)
    apart = 2 / bandwidth * (z * kernel.sum(1, keepdims=True) - times(kernel, z)) / width
    return jax.vmap(unravel)((times(kernel, flat(grads)) + apart) / len(w))
