r"""Laplace: a Gaussian at the mode, as wide as the curvature there says.

    q(w) = N(w*, (N C + diag(1/s^2))^-1),      C: the Gauss-Newton matrix at w*, an example (`curvature`)
    log p(D) ~= log p(D, w*) + P/2 log 2 pi - 1/2 log |N C + diag(1/s^2)|

The first steps are MAP; those of the last epoch stand still and average C over their minibatches.
Approximated are the posterior's shape, the second derivative of the network, and C itself in all forms but
"full". Draws predict by the network's tangent at w*, f(x; w*) + J(x) (w - w*), which is the model that C
belongs to; the network itself at these draws often underfits (Immer et al., arXiv:2008.08400; Daxberger et
al., arXiv:2106.14806).

With `prior_precision="marginal_likelihood"` the prior's precisions are multiplied by the tau at which the
evidence is largest given w* and C: tau = gamma / |z*|^2, where gamma = sum lambda / (lambda + tau) counts
the weights that the data determine (MacKay 1992); z are weights in prior widths, lambda the eigenvalues of
N S C S.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnn_jax import curvature, ops, optimizers
from bnn_jax.trees import normal_like, size, tree_sum
from bnn_jax.types import Algorithm, Batch, Info, Key, Likelihood, Params, Prior, UserError

PREDICTIVES = ("linearised", "sampled")
PRECISIONS = ("model", "marginal_likelihood")
TAU_STEPS = 50  # MacKay's iteration halves its error several times over in each


class LaplaceState(NamedTuple):
    params: Params
    optimizer: Any
    curvature: Any  # mean over the minibatches so far
    log_joint: jax.Array  # () nats, the mean over the same
    spectrum: curvature.Spectrum  # of the curvature in prior widths, once measured
    tau: jax.Array  # () what the prior's precisions are multiplied by
    log_evidence: jax.Array  # () nats, -inf until measured
    t: jax.Array  # () int32, steps taken


def build(
    log_joint: Callable,
    apply: Callable,
    module: nn.Module,
    layers: Sequence[tuple[str, ...]],
    likelihood: Likelihood,
    prior: Prior,
    num_data: int,
    num_steps: int,
    batch_size: int,
    optimizer: optax.GradientTransformation,
    form: str = "kronecker",
    predictive: str = "linearised",
    prior_precision: str = "model",
) -> Algorithm:
    """Laplace; before the curvature is measured, draws are the current weights.

    Args:
        log_joint: (params, batch) -> (), nats on the full-data scale.
        apply, module: the network.
        layers: paths of its dense and convolutional layers in the order of their calls; see `ops.layers`.
        prior: a Gaussian one, of one width a leaf.
        num_data: N.
        num_steps: of the whole run; the last N // `batch_size` measure the curvature.
        batch_size: examples of a step.
        optimizer: any optax transformation.
        form: one of `curvature.FORMS`; of "last_layer" the other weights stay at w*.
        predictive: "linearised", or "sampled": the network itself at the draws.
        prior_precision: "model", or "marginal_likelihood".

    Raises:
        UserError: a prior that is not Gaussian, a name that is none, too few steps; as `curvature.build`.
    """
    for value, known, what in (
        (predictive, PREDICTIVES, "predictive"),
        (prior_precision, PRECISIONS, "prior_precision"),
    ):
        if value not in known:
            raise UserError(f"unknown {what} {value!r} of laplace: choose from {', '.join(known)}")
    if prior.moments is None:
        raise UserError("laplace needs a Gaussian prior")
    measuring = max(num_data // batch_size, 1)
    first = num_steps - measuring
    if first < 1:
        raise UserError(
            f"laplace measures the curvature in {measuring} steps, an epoch: {num_steps} are too few in all"
        )
    form_ = curvature.build(form, apply, module, likelihood, layers)

    def init(key: Key, params: Params) -> LaplaceState:
        zeros = form_.zeros(params)
        scalar = lambda value: jnp.asarray(value, jnp.float32)
        return LaplaceState(
            params,
            optimizer.init(params),
            zeros,
            scalar(0),
            form_.spectrum(zeros, prior.scale(params)),
            scalar(1),
            scalar(-jnp.inf),
            jnp.zeros((), jnp.int32),
        )

    def climb(state: LaplaceState, batch: Batch) -> tuple[LaplaceState, jax.Array]:
        objective = lambda params: log_joint(params, batch)
        params, opt_state, info = optimizers.ascend(
            objective, num_data, optimizer, state.params, state.optimizer
        )
        return state._replace(params=params, optimizer=opt_state), info["log_joint"]

    def measure(state: LaplaceState, batch: Batch) -> tuple[LaplaceState, jax.Array]:
        value = log_joint(state.params, batch)
        seen = (form_.measure(state.params, batch), value)
        share = 1 / (state.t - first + 1)
        mean = jax.tree.map(lambda m, s: m + share * (s - m), (state.curvature, state.log_joint), seen)
        return state._replace(curvature=mean[0], log_joint=mean[1]), value

    def finish(state: LaplaceState) -> LaplaceState:
        found = form_.spectrum(state.curvature, prior.scale(state.params))
        values = jax.tree.map(lambda a: num_data * a, found.values)
        mean, scale = prior.moments(state.params)
        z = jax.tree.map(lambda w, m, s: (w - m) / s, state.params, mean, scale)
        own = form_.covered(z)
        squares, count = tree_sum(jax.tree.map(jnp.square, own)), size(own)

        def newer(_, tau):
            return tree_sum(jax.tree.map(lambda a: a / (a + tau), values)) / squares

        tau = jnp.ones(())
        if prior_precision == "marginal_likelihood":
            tau = jax.lax.fori_loop(0, TAU_STEPS, newer, tau)
        # In prior widths the prior of the covered weights is N(0, 1/tau); 2 pi cancels.
        log_joint_tau = state.log_joint - 0.5 * (tau - 1) * squares + 0.5 * count * jnp.log(tau)
        log_det = tree_sum(jax.tree.map(lambda a: jnp.log(a + tau), values))
        widths = sum(jnp.sum(jnp.log(leaf)) for leaf in form_.covered(scale))
        evidence = log_joint_tau + 0.5 * count * jnp.log(2 * jnp.pi) - 0.5 * log_det + widths
        return state._replace(spectrum=found, tau=tau, log_evidence=evidence)

    def step(key: Key, state: LaplaceState, batch: Batch) -> tuple[LaplaceState, Info]:
        batch = jax.tree.map(jnp.asarray, batch)
        # Convolutions in a branch are as slow as in a loop.
        branches = ops.in_loop(measure), ops.in_loop(climb)
        new, value = jax.lax.cond(state.t < first, *branches[::-1], state, batch)
        new = new._replace(t=state.t + 1)
        new = jax.lax.cond(new.t == num_steps, finish, lambda state: state, new)
        return new, {"log_joint": value}

    def sample(key: Key, state: LaplaceState) -> Params:
        noise = normal_like(key, state.spectrum.values)
        width = lambda e, a: e / jnp.sqrt(num_data * a + state.tau)
        away = form_.turn(
            state.spectrum.basis, jax.tree.map(width, noise, state.spectrum.values), state.params
        )
        measured = jnp.isfinite(state.log_evidence)
        move = lambda w, a, s: w + jnp.where(measured, a * s, 0)
        return jax.tree.map(move, state.params, away, prior.scale(state.params))

    def log_prob(state: LaplaceState, params: Params) -> jax.Array:
        """Of what `sample` draws; nan before the curvature is measured."""
        away = jax.tree.map(lambda w, w0, s: (w - w0) / s, params, state.params, prior.scale(params))
        turn = lambda v: form_.turn(state.spectrum.basis, v, params)
        # The basis is orthogonal: its transpose turns back.
        (turned,) = jax.linear_transpose(turn, state.spectrum.values)(away)
        precision = jax.tree.map(lambda a: num_data * a + state.tau, state.spectrum.values)
        logs = lambda v, p: 0.5 * jnp.log(p) - 0.5 * p * v**2 - 0.5 * jnp.log(2 * jnp.pi)
        inside = tree_sum(jax.tree.map(logs, turned, precision))
        value = inside - tree_sum(jax.tree.map(jnp.log, prior.scale(params)))
        return jnp.where(jnp.isfinite(state.log_evidence), value, jnp.nan)

    centre = (lambda state: state.params) if predictive == "linearised" else None
    # Of "last_layer" the other weights do not vary: there is no density over all.
    density = None if form == "last_layer" else log_prob
    return Algorithm(init, step, sample, linearise_at=centre, log_prob=density, whole=True)
