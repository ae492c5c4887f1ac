r"""The log evidence of small networks: thermodynamic integration along power posteriors.

    log p(D) = int_0^1 E_t dt,   E_t = E_p_t l,   p_t(w) ~ p(w) p(D | w)^t,   l(w) = log p(D | w)
             ~= sum_i h_i (E_i + E_i+1) / 2 - h_i^2 (V_i+1 - V_i) / 12,       h_i = t_i+1 - t_i

at the temperatures t_i = (i / n)^5, crowded where E_t is steep. V_t = Var_p_t l is the slope of E_t, and so
the second term takes the leading error off the trapezoid rule (Friel & Pettitt 2008; Lartillot & Philippe
2006; Friel, Hurn & Wyse, arXiv:1209.3198).

Draws at t = 0 are exact, from the prior. Those above come from HMC, whose chains climb: each begins at a
temperature where it ended at the one below. Coming from the prior they may settle in any mode, which chains
that start at one solution do not; chains too short to follow lag behind, and give too low an evidence.

Approximated are the mixing of the chains and the integral between the temperatures. The evidence of the
Laplace approximation is `infer.laplace.LaplaceState.log_evidence`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnn_jax import diagnostics, hamiltonian
from bnn_jax.types import Batch, Key, Params, Prior, UserError, positive

POWER = 5  # of the ladder; Friel & Pettitt's
TARGET_ACCEPT_PROB = 0.8
JITTER = 0.5  # trajectories are drawn from 1 - JITTER to 1 + JITTER times their length


class Rungs(NamedTuple):
    """What was found at each of R temperatures."""

    t: np.ndarray  # (R,) from 0 to 1
    mean: np.ndarray  # (R,) nats, of the log likelihood
    variance: np.ndarray  # (R,) nats^2
    ess: np.ndarray  # (R,) draws, at most those there are, for the mean
    status: list[list[str]]  # R times C, see `diagnostics.chain_status`


class Evidence(NamedTuple):
    """An estimate of log p(D)."""

    log_evidence: float  # nats
    standard_error: float  # nats, of the Monte Carlo part alone
    correction: float  # nats, what the variances added to the trapezoid rule
    rungs: Rungs


def thermodynamic(
    key: Key,
    log_likelihood: Callable,
    prior: Prior,
    like: Params,
    *,
    num_rungs: int = 30,
    num_chains: int = 4,
    num_warmup: int = 200,
    num_draws: int = 500,
    trajectory_length: float = math.pi / 2,
    step_size: float = 0.05,
) -> Evidence:
    """log p(D) by HMC at `num_rungs` + 1 temperatures, in one compiled program.

    The length of a trajectory is drawn for each, evenly within a half of `trajectory_length`: of one fixed
    length, the ladder would pass temperatures at which a weight swings by half periods and keeps its energy.

    Args:
        log_likelihood: (params) -> (), nats, log p(D | w) of all the data. Its mean under the prior must be
            finite, which a tail as heavy as Cauchy's does not grant.
        like: parameters in whose shapes to draw, arrays or `jax.ShapeDtypeStruct`.
        num_rungs: n, temperatures above 0.
        num_chains: C, chains at each.
        num_warmup: steps of a chain at each temperature, in which its step size adapts; they are dropped.
        num_draws: D, steps that are kept.
        trajectory_length: in prior widths.
        step_size: where each adaptation begins, in prior widths.

    Returns:
        As `integrate`. Chains that are not "ok" are left out; nan if there is no other at a temperature.

    Raises:
        UserError: a setting out of range, or a log likelihood that is not finite at a draw of the prior.
    """
    if min(num_rungs, num_chains) < 1 or num_draws < diagnostics.MIN_DRAWS:
        raise UserError(
            f"the evidence needs at least 1 rung, 1 chain and {diagnostics.MIN_DRAWS} draws, not "
            f"{num_rungs}, {num_chains} and {num_draws}"
        )
    positive("trajectory_length", trajectory_length)

    def target(params: Params, t: Batch) -> jax.Array:
        return prior.log_prob(params) + t.x * log_likelihood(params)

    def algorithm(length):  # `infer.hmc` but for the length, which is traced; t travels as the batch
        settings = (num_warmup, step_size, TARGET_ACCEPT_PROB)
        return hamiltonian.build("HMC", target, prior.scale, *settings, trajectory_length=length)

    whole = algorithm(trajectory_length)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    def seen(params):
        return {"log_likelihood": log_likelihood(params), "log_prior": prior.log_prob(params)}

    def from_prior(key):
        """The last draw of a chain, and its trace (D,)."""
        keys = jax.random.split(key, num_draws)
        trace = jax.lax.map(lambda key: seen(prior.sample(key, zeros)), keys)
        return prior.sample(keys[-1], zeros), trace

    def climb(key, t, start):
        """The same at temperature t, with the warm-up."""

        def step(state, number):
            key_length, key_step = jax.random.split(jax.random.fold_in(key, number))
            factor = jax.random.uniform(key_length, (), minval=1 - JITTER, maxval=1 + JITTER)
            own = algorithm(factor * trajectory_length)
            state, info = own.step(key_step, state, Batch(t, None))
            kept = {name: info[name] for name in ("step_size", *diagnostics.TRAJECTORY)}
            return state, seen(own.sample(key_step, state)) | kept

        state, trace = jax.lax.scan(step, whole.init(key, start), jnp.arange(num_warmup + num_draws))
        return whole.sample(key, state), trace

    @jax.jit
    def run(key, ladder):
        keys = lambda rung: jax.random.split(jax.random.fold_in(key, rung), num_chains)

        def rung(starts, given):
            number, t = given
            return jax.vmap(climb, (0, None, 0))(keys(number), t, starts)

        starts, first = jax.vmap(from_prior)(keys(0))
        return first, jax.lax.scan(rung, starts, (jnp.arange(1, len(ladder) + 1), ladder))[1]

    ladder = (np.arange(num_rungs + 1) / num_rungs) ** POWER
    first, climbed = jax.tree.map(np.asarray, run(key, jnp.asarray(ladder[1:], jnp.float32)))
    if not np.isfinite(first["log_likelihood"]).all():
        raise UserError(
            "the log likelihood is not finite at a draw of the prior: the evidence needs its mean there; "
            "a narrower prior or fewer layers may help"
        )
    climbed = {name: values[:, :, num_warmup:] for name, values in climbed.items()}
    status = [["ok"] * num_chains]
    for number in range(num_rungs):
        own = {name: values[number] for name, values in climbed.items()}
        # A chain moves where these two do: the weights themselves are not kept.
        status.append(diagnostics.chain_status(np.stack([own["log_likelihood"], own["log_prior"]], -1), own))
    traces = np.concatenate([first["log_likelihood"][None], climbed["log_likelihood"]])
    return integrate(ladder, traces, status)


def integrate(t, log_likelihood, status) -> Evidence:
    """log p(D) from traces of the log likelihood along a ladder, whoever drew them.

    The standard error is that of the whole sum, means and variances, from the effective sample size of each
    temperature's share in it; temperatures count as independent, although chains begin where others ended.
    The error of the corrected trapezoid rule is not in it. It falls with the fourth power of the number of
    temperatures, `correction` with the second; where `correction` is below half a nat, a small part of it is
    left (a twentieth on a linear model with 20 temperatures, a fiftieth with 30).

    Args:
        t: (R,) temperatures that rise from 0 to 1.
        log_likelihood: (R, C, D) nats, D >= 4.
        status: R times C strings; only chains that are "ok" count.

    Returns:
        nan where a temperature has no chain that is "ok".

    Raises:
        UserError: temperatures or shapes that do not fit.
    """
    t, traces = np.asarray(t, np.float64), np.asarray(log_likelihood, np.float64)
    if t.ndim != 1 or len(t) < 2 or t[0] != 0 or t[-1] != 1 or (np.diff(t) <= 0).any():
        raise UserError("the temperatures of an evidence must rise from 0 to 1")
    if traces.ndim != 3 or traces.shape[:2] != np.shape(status) or len(traces) != len(t):
        raise UserError(
            f"traces of shape {traces.shape} need shape (R, C, D) with R = {len(t)} and a status each"
        )
    below, above = np.diff(t, prepend=0), np.diff(t, append=1)
    of_mean, of_variance = (below + above) / 2, (above**2 - below**2) / 12
    found = [_rung(*each) for each in zip(traces, status, of_mean, of_variance, strict=True)]
    mean, variance, ess, error = np.array(found).T
    return Evidence(
        float(of_mean @ mean + of_variance @ variance),
        float(np.sqrt(error.sum())),
        float(of_variance @ variance),
        Rungs(t, mean, variance, ess, [list(own) for own in status]),
    )


def _rung(trace, status, of_mean, of_variance):
    """Mean, variance and ESS of one temperature, and the squared error of its share of the sum."""
    own = trace[np.equal(status, "ok")]
    if not own.size:
        return (np.nan,) * 4
    centred = own - own.mean()
    share = of_mean * centred + of_variance * centred**2
    ess, ess_share = (np.minimum(diagnostics.ess_mean(a), a.size) for a in (own, share))
    # A log likelihood that is constant has no ESS, and no error.
    error = 0.0 if np.isnan(ess_share) else share.var(ddof=1) / ess_share
    return own.mean(), own.var(ddof=1), ess, error


def elbo_gap(evidence: Evidence, elbos) -> tuple[float, float]:
    """What an ELBO lacks to the evidence, which is KL(q || p(w | D)), in nats, with its standard error.

    Args:
        elbos: (S,), S >= 2, independent estimates of one ELBO (`objectives.elbo`, beta = 1, the full data).

    Raises:
        UserError: fewer than two values, or another shape.
    """
    elbos = np.asarray(elbos, np.float64)
    if elbos.ndim != 1 or len(elbos) < 2:
        raise UserError(f"the gap needs shape (S,) with S >= 2 values of the ELBO, got {elbos.shape}")
    error = math.hypot(evidence.standard_error, elbos.std(ddof=1) / math.sqrt(len(elbos)))
    return float(evidence.log_evidence - elbos.mean()), error
