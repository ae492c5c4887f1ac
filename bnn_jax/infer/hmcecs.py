r"""HMC with energy-conserving subsampling: a trajectory sees B of the N examples, the same all along.

    l^_u(w) = sum_i q_i(w) + N mean_{i in u} d_i(w),    d_i = log p(y_i | x_i, w) - q_i(w)
    sigma^_u(w)^2 = N^2 / B var_{i in u} d_i(w)
    (w, u) ~ p(w) exp(l^_u(w) - sigma^_u(w)^2 / 2)

q_i is the second-order Taylor expansion of example i's log likelihood at the start, which should be a mode. A
step proposes other rows for one block of u, accepts or rejects them, and runs one trajectory of HMC given u.
Approximated is the posterior: it is exact where the expansion is (a linear model with Gaussian noise), else
off by terms that vanish with sigma^2, told as `variance`. Where that is far above 1, far from the start, the
expansion says nothing and the draws are of no use: take a larger B (Dang et al., arXiv:1708.02955).

NumPyro's `HMCECS` keeps the sums over all data, which its `init` computes, in closures, where they would leak
out of a compiled `init`; here they are in the state. The estimate is NumPyro's, and the tests hold it against
it; the trajectory is `hamiltonian`'s. No matrix of an example is formed: q_i along one direction takes two
forward derivatives. The sums need the P x P Hessian of all data, computed once, in the first step.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bnn_jax import hamiltonian
from bnn_jax.trees import size
from bnn_jax.types import Algorithm, Batch, Info, Key, Likelihood, Params, Prior, UserError, positive

MAX_WEIGHTS = 2000  # whose Hessian takes 16 MB a chain, and as many gradients of all data


class Expansion(NamedTuple):
    """The mean log likelihood of an example, to second order."""

    reference: jax.Array  # (P,) where
    value: jax.Array  # () nats
    grad: jax.Array  # (P,)
    hess: jax.Array  # (P, P)


class EcsState(NamedTuple):
    inner: hamiltonian.HamiltonianState
    expansion: Expansion  # zeros before the first step
    rows: jax.Array  # (B,) int32, u


def build(
    apply: Callable,
    likelihood: Likelihood,
    prior: Prior,
    scale: Callable,
    num_data: int,
    num_warmup: int,
    batch_size: int = 128,
    num_blocks: int = 10,
    trajectory_length: float = math.pi / 2,
    step_size: float = 0.05,
    target_accept_prob: float = 0.8,
) -> Algorithm:
    """HMC-ECS; the number of leapfrog steps is trajectory_length / step_size.

    Args:
        apply: (params, x) -> outputs, twice differentiable.
        scale: `Prior.scale`.
        num_data: N; a step's batch is all of them.
        num_warmup: steps during which the step size adapts; drop them.
        batch_size: B, rows of a subsample, drawn with replacement.
        num_blocks: of a subsample, of which one is drawn anew in a step; at most B.
        trajectory_length: in prior widths.
        step_size: the first step size, in prior widths.
        target_accept_prob: the acceptance that adaptation aims at.

    Raises:
        UserError: a setting out of range; from `init`: more weights than `MAX_WEIGHTS`.
    """
    if batch_size < 2:
        raise UserError(f"HMC-ECS needs a batch_size of at least 2 to tell a variance, not {batch_size}")
    if num_blocks < 1:
        raise UserError(f"num_blocks must be at least 1, not {num_blocks}")
    positive("trajectory_length", trajectory_length)
    blocks = min(num_blocks, batch_size)

    def log_lik(params: Params, batch: Batch) -> jax.Array:
        return likelihood.log_prob(apply(params, batch.x), batch.y)

    def target(params: Params, given: tuple[Expansion, Batch]) -> jax.Array:
        value, variance = estimate(log_lik, params, *given, num_data)
        return prior.log_prob(params) + value - 0.5 * variance

    inner = hamiltonian.build(
        "HMC", target, scale, num_warmup, step_size, target_accept_prob, trajectory_length=trajectory_length
    )

    # One chain at a time: under vmap a conditional computes both branches. A loop of one pass or none would
    # not do, as XLA computes what does not change within a loop before it, whether it has a pass or not.
    @jax.custom_batching.sequential_vmap
    def expanded(first: jax.Array, old: Expansion, params: Params, batch: Batch) -> Expansion:
        unravel = ravel_pytree(params)[1]
        mean = lambda w: log_lik(unravel(w), batch).mean()
        return jax.lax.cond(first, lambda: expand(mean, old.reference), lambda: old)

    def init(key: Key, params: Params) -> EcsState:
        number = size(params)
        if number > MAX_WEIGHTS:
            raise UserError(
                f"HMC-ECS keeps a matrix over all pairs of weights: {number} weights are more than the "
                f"{MAX_WEIGHTS} it takes; use hmc or a smaller network"
            )
        reference = ravel_pytree(params)[0]
        zeros = jnp.zeros_like(reference)
        expansion = Expansion(reference, zeros.sum(), zeros, jnp.outer(zeros, zeros))
        return EcsState(inner.init(key, params), expansion, jnp.zeros((batch_size,), jnp.int32))

    def step(key: Key, state: EcsState, batch: Batch) -> tuple[EcsState, Info]:
        key_first, key_block, key_rows, key_accept, key_inner = jax.random.split(key, 5)
        batch = jax.tree.map(jnp.asarray, batch)
        drawn = lambda key: jax.random.randint(key, (batch_size,), 0, len(batch.x))
        params = inner.sample(key_inner, state.inner)
        first = state.inner.t == 0
        expansion = expanded(first, state.expansion, params, batch)
        rows = jnp.where(first, drawn(key_first), state.rows)
        block = jax.random.randint(key_block, (), 0, blocks)
        proposed = jnp.where(jnp.arange(batch_size) % blocks == block, drawn(key_rows), rows)
        both = jnp.stack([rows, proposed])
        given = lambda rows: (expansion, jax.tree.map(lambda a: a[rows], batch))
        value, variance = jax.vmap(lambda rows: estimate(log_lik, params, *given(rows), num_data))(both)
        accept = jnp.exp(jnp.minimum(jnp.diff(value - 0.5 * variance)[0], 0.0))
        taken = (jax.random.uniform(key_accept) < accept).astype(jnp.int32)
        new, info = inner.step(key_inner, state.inner, given(both[taken]))
        info |= {"accept_rows": accept, "variance": variance[taken]}
        return EcsState(new, expansion, both[taken]), info

    return Algorithm(init, step, lambda key, state: inner.sample(key, state.inner), chain=True)


def expand(mean_log_lik: Callable, reference: jax.Array) -> Expansion:
    """`mean_log_lik`, (P,) -> (), to second order at `reference`, the Hessian row by row."""
    value, grad = jax.value_and_grad(mean_log_lik)(reference)
    row = lambda e: jax.jvp(jax.grad(mean_log_lik), (reference,), (e,))[1]
    return Expansion(reference, value, grad, jax.lax.map(row, jnp.eye(len(grad), dtype=grad.dtype)))


def estimate(
    log_lik: Callable, params: Params, expansion: Expansion, batch: Batch, num_data: int
) -> tuple[jax.Array, jax.Array]:
    """The log likelihood of all N examples, estimated from those in `batch`, and the variance of that.

    Args:
        log_lik: (params, batch) -> (B,) nats.
        expansion: of its mean over all data.

    Returns:
        (l^, sigma^2), () each, nats and nats^2.
    """
    w, unravel = ravel_pytree(params)
    away = w - expansion.reference
    bent = jnp.matmul(expansion.hess, away, precision="highest")
    whole = expansion.value + jnp.sum(away * (expansion.grad + 0.5 * bent))
    along = lambda t: log_lik(unravel(expansion.reference + t * away), batch)
    one = jnp.ones((), w.dtype)
    slope = lambda t: jax.jvp(along, (t,), (one,))
    (value, rise), (_, bend) = jax.jvp(slope, (0 * one,), (one,))
    difference = log_lik(params, batch) - (value + rise + 0.5 * bend)
    variance = num_data**2 / len(difference) * jnp.var(difference)
    return num_data * (whole + jnp.mean(difference)), variance
