"""Did the chains mix, and did they move at all: R-hat, effective sample size and the status of every chain.

    z = Phi^-1((rank(x) - 3/8) / (N + 1/4)),   R-hat = sqrt(var_total(z) / var_within(z)),   ESS = N / tau(z)

Rank-normalised, on split chains (arXiv:1903.08008), of weights and of function values; the latter decide,
since the weights of a network may permute while its function stays. The autocorrelation sum tau is
truncated by Geyer's initial monotone sequence (NumPyro's; ArviZ adds half a pair at the cut, which differs
by a few percent). As in Stan, tau >= 1 / log10 N: the ESS of antithetic chains stays finite and positive.

Acceptance and divergences do not see a sampler that has stopped: a frozen chain may report acceptance 1.
Hence `chain_status`, and `summary` computes its numbers from the sound chains.

Everything runs on NumPy arrays, after sampling. C chains, D draws, P weights, T test points, K classes.
"""

import numpy as np
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from scipy.special import ndtri
from scipy.stats import rankdata

from bnn_jax.metrics import TINY, check_probs
from bnn_jax.types import UserError

MIN_DRAWS = 4  # two halves of two
TRAJECTORY = ("accept_prob", "num_steps", "diverging")  # traces of samplers that reject
MAX_DIVERGING = 0.1  # share of diverging transitions above which a chain is named
BLOCK_VALUES = 2**21  # values held in float64 at a time


def _columnwise(statistic, x) -> np.ndarray:
    """`statistic`: (2C, D // 2, n) -> (n,) on the split chains of x (C, D, ...), n columns at a time.

    Columns that are constant or hold a non-finite value get nan.
    """
    x = np.asarray(x)
    if x.ndim < 2 or x.shape[0] < 1 or x.shape[1] < MIN_DRAWS:
        raise UserError(f"diagnostics need shape (C, D, ...) with D >= {MIN_DRAWS} draws, got {x.shape}")
    half = x.shape[1] // 2
    columns = x.reshape(*x.shape[:2], -1)
    result = np.full(columns.shape[-1], np.nan)
    width = max(1, BLOCK_VALUES // (x.shape[0] * x.shape[1]))
    for start in range(0, len(result), width):
        block = columns[..., start : start + width].astype(np.float64)
        block = np.concatenate([block[:, :half], block[:, -half:]])
        finite = np.isfinite(block).all(axis=(0, 1))
        if finite.any():
            with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0: constants have normal scores 0
                result[start : start + width][finite] = statistic(block[..., finite])
    return result.reshape(x.shape[2:])


def _normal_scores(x: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks over chains and draws, x (C, D, n)."""
    rank = rankdata(x.reshape(-1, x.shape[-1]), axis=0)
    return ndtri((rank - 3 / 8) / (len(rank) + 1 / 4)).reshape(x.shape)


def _ess(x: np.ndarray) -> np.ndarray:
    """ESS (n,) of x (C, D, n), at most N log10 N."""
    count = x.shape[0] * x.shape[1]
    tau = count / effective_sample_size(x)
    return count / np.maximum(tau, 1 / np.log10(count))


def rhat(x) -> np.ndarray:
    """Rank-normalised split R-hat, the larger of the bulk's and the folded one (location and scale).

    x (C, D, ...) -> (...); one chain is allowed, its halves are compared. nan where x is constant or not
    finite, inf where every half chain stands still. Raises `UserError` for fewer than 4 draws.
    Source: arXiv:1903.08008.
    """

    def statistic(split):
        folded = np.abs(split - np.median(split, axis=(0, 1)))
        return np.fmax(gelman_rubin(_normal_scores(split)), gelman_rubin(_normal_scores(folded)))

    return _columnwise(statistic, x)


def ess_bulk(x) -> np.ndarray:
    """Effective sample size of the rank-normalised split chains, in draws over all chains.

    x (C, D, ...) -> (...); nan where x is constant or not finite. Raises `UserError` for fewer than 4 draws.
    Source: arXiv:1903.08008.
    """
    return _columnwise(lambda split: _ess(_normal_scores(split)), x)


def ess_mean(x) -> np.ndarray:
    """Effective sample size of the split chains for the mean of x itself, in draws over all chains.

    The squared standard error of that mean is var(x) / ESS. Ranks would hide what a heavy tail does to it.

    x (C, D, ...) -> (...); nan where x is constant or not finite. Raises `UserError` for fewer than 4 draws.
    Source: arXiv:1903.08008.
    """
    return _columnwise(lambda split: _ess(split - split[:1, :1]), x)  # constants are then 0, without rounding


def ess_tail(x) -> np.ndarray:
    """The smaller effective sample size of the 5 % and the 95 % quantile, in draws.

    x (C, D, ...) -> (...); nan where x is constant or not finite. Raises `UserError` for fewer than 4 draws.
    Source: arXiv:1903.08008.
    """

    def statistic(split):
        low, high = np.quantile(split, [0.05, 0.95], axis=(0, 1))
        return np.fmin(_ess((split <= low).astype(np.float64)), _ess((split <= high).astype(np.float64)))

    return _columnwise(statistic, x)


def function_values(probs) -> np.ndarray:
    """Centred log-probabilities log p_k - mean_k log p_k, the logits up to their free constant.

    probs (C, D, T, K) -> (C, D, T, K) in nats; values below `TINY` count as `TINY`. Raises `UserError`.
    """
    probs, _ = check_probs(probs, "CDTK")
    log_probs = np.log(np.maximum(probs, TINY))
    return log_probs - log_probs.mean(axis=-1, keepdims=True)


def moved(draws) -> np.ndarray:
    """Whether at least half of a chain's transitions reach a new, finite point. draws (C, D, P) -> (C,) bool.

    In other words: the median squared jump distance is not 0. A rejected proposal is no move, so a chain
    that accepts less than half of its proposals fails too; HMC aims at 0.65 and more. Raises `UserError`
    for fewer than 2 draws.
    """
    draws = np.asarray(draws)
    if draws.ndim != 3 or draws.shape[1] < 2:
        raise UserError(f"draws need shape (C, D, P) with D >= 2, got {draws.shape}")
    jumps = (draws[:, 1:] != draws[:, :-1]).any(axis=-1) & np.isfinite(draws[:, 1:]).all(axis=-1)
    return jumps.mean(axis=1) >= 0.5


def chain_status(draws, trace: dict) -> list[str]:
    """What became of every chain, the worst that applies: C strings.

    "nan"        a draw is not finite
    "frozen"     the chain has not `moved`, a step size is not finite, or a trajectory had no step.
                 The trap: mass adaptation can drive NumPyro's step size to 3e38 and its number of steps
                 to 0; every proposal is then the current point, and acceptance 1 looks perfect.
    "diverging"  more than 10 % of the transitions diverged
    "ok"         none of these

    Args:
        draws: (C, D, P) weights.
        trace: `step_size`, and of samplers with trajectories `accept_prob`, `num_steps` and `diverging`,
            each (C, D).

    Raises `UserError` if a shape does not fit or a key is missing.
    """
    draws = np.asarray(draws)
    chain_moved = moved(draws)
    rejects = any(name in trace for name in TRAJECTORY)
    for name in ("step_size", *(TRAJECTORY if rejects else ())):
        if np.shape(trace.get(name)) != draws.shape[:2]:
            raise UserError(f"trace['{name}'] needs the shape {draws.shape[:2]} of the draws")
    finite = np.isfinite(draws).all(axis=(1, 2))
    stepping, steady = np.isfinite(trace["step_size"]).all(axis=1), np.ones(len(draws), bool)
    if rejects:
        stepping &= (np.asarray(trace["num_steps"]) >= 1).all(axis=1)
        steady = np.mean(trace["diverging"], axis=1) <= MAX_DIVERGING
    status = np.select([~finite, ~(chain_moved & stepping), ~steady], ["nan", "frozen", "diverging"], "ok")
    return status.tolist()


def ebfmi(energy) -> np.ndarray:
    """The estimated Bayesian fraction of missing information of every chain of HMC or NUTS:

        sum_n (E_n - E_n-1)^2 / sum_n (E_n - mean E)^2

    how far a new momentum changes the energy, against how far the energy varies. Near 1 or above it each
    trajectory may reach any energy; below 0.3 the chain walks through them in small steps, and tails are
    explored slowly whatever the acceptance.

    energy (C, D), nats, of every step (means over several would not do) -> (C,); nan where the energy is
    constant or not finite. Raises `UserError` for fewer than 4 draws. Source: arXiv:1604.00695.
    """
    energy = np.asarray(energy, np.float64)
    if energy.ndim != 2 or energy.shape[1] < MIN_DRAWS:
        raise UserError(f"energies need shape (C, D) with D >= {MIN_DRAWS} draws, got {energy.shape}")
    changing = np.isfinite(energy).all(axis=1) & (energy != energy[:, :1]).any(axis=1)
    found = np.full(len(energy), np.nan)
    own = energy[changing]
    found[changing] = np.sum(np.diff(own, axis=1) ** 2, 1) / (own.var(axis=1) * own.shape[1])
    return found


def _number(value) -> float | None:
    """A Python float, or None if it is not finite: JSON has no nan."""
    return float(value) if np.isfinite(value) else None


def _quantile(values: np.ndarray, q: float) -> float | None:
    """Quantile over all defined values, or None if there is none."""
    values = values[~np.isnan(values)]
    with np.errstate(invalid="ignore"):  # between two infinite values
        return _number(np.quantile(values, q)) if values.size else None


def function_summary(values) -> dict[str, float | None]:
    """R-hat (median, and what 5 % exceed), bulk ESS (least, median) and tail ESS (least) of function values,
    ESS in draws.

    values (C, D, ...), D >= 4; None where nothing is defined. Raises `UserError` as `rhat`.
    """
    return _summarised(rhat(values), ess_bulk(values), ess_tail(values))


def _summarised(rhat_function, ess_function, ess_tail_function):
    return {
        "rhat_function_median": _quantile(rhat_function, 0.5),
        "rhat_function_q95": _quantile(rhat_function, 0.95),
        "ess_function_min": _quantile(ess_function, 0.0),
        "ess_function_median": _quantile(ess_function, 0.5),
        "ess_tail_function_min": _quantile(ess_tail_function, 0.0),
    }


def summary(draws, predicted, trace: dict, thin: int | None = None) -> dict:
    """The convergence report of a run of chains, ready for JSON.

    R-hat, ESS (bulk where nothing else is said, in draws over these chains) and acceptance are those of the
    chains whose status is "ok", None if there is no such chain; weights and function values that are constant
    (clipped at `TINY`) are left out of the quantiles. The lists have an entry for every chain.

    Args:
        draws: (C, D, P) weights, D >= 4.
        predicted: (C, D, T, K) predictive probabilities of these draws, or (C, D, T) means of a regression.
        trace: as in `chain_status`.
        thin: steps a draw, if known: the trace holds means over them, from which there is no E-BFMI, and does
            not say over how many.

    Returns:
        rhat_function_median, rhat_function_q95, rhat_weight_median, rhat_weight_q95, ess_function_min,
        ess_function_median, ess_tail_function_min, ess_weight_median, ess_tail_weight_median: float or None;
        step_size (last), moved, status: lists, one entry a chain; a chain whose predictions are not finite
        has the status "nan" too. Of samplers with trajectories also acceptance: float or None; divergences:
        int, of all chains; num_steps (mean): list. Where the trace has `energy` also ebfmi: list, with None
        where it is not defined; None unless `thin` is 1.

    Raises `UserError` as `rhat`, `function_values` and `chain_status` do.
    """
    draws, predicted = np.asarray(draws), np.asarray(predicted)
    if predicted.ndim not in (3, 4) or predicted.shape[:2] != draws.shape[:2]:
        raise UserError(
            f"predictions of shape {predicted.shape} need shape (C, D, T, K) or (C, D, T) with C, D = "
            f"{draws.shape[:2]}"
        )
    rest = tuple(range(1, predicted.ndim))
    finite = np.isfinite(predicted).all(axis=rest)  # finite weights may still overflow a network
    status = np.where(finite, chain_status(draws, trace), "nan").tolist()
    kept = np.equal(status, "ok")
    rhat_function = rhat_weight = np.array([])  # no chain left
    ess_function = ess_weight = tail_function = tail_weight = np.array([])
    if kept.any():
        values, weights = predicted[kept], draws[kept]
        values = function_values(values) if values.ndim == 4 else values
        rhat_function, rhat_weight = rhat(values), rhat(weights)
        ess_function, ess_weight = ess_bulk(values), ess_bulk(weights)
        tail_function, tail_weight = ess_tail(values), ess_tail(weights)
    found = {
        **_summarised(rhat_function, ess_function, tail_function),
        "rhat_weight_median": _quantile(rhat_weight, 0.5),
        "rhat_weight_q95": _quantile(rhat_weight, 0.95),
        "ess_weight_median": _quantile(ess_weight, 0.5),
        "ess_tail_weight_median": _quantile(tail_weight, 0.5),
        "step_size": [_number(size) for size in np.asarray(trace["step_size"])[:, -1]],
        "moved": moved(draws).tolist(),
        "status": status,
    }
    if "accept_prob" in trace:  # then all of `TRAJECTORY`, as `chain_status` has seen
        accepted = np.asarray(trace["accept_prob"])[kept]
        found["acceptance"] = _number(np.mean(accepted)) if kept.any() else None
        found["num_steps"] = [_number(steps) for steps in np.mean(trace["num_steps"], axis=1)]
        found["divergences"] = int(np.sum(trace["diverging"]))
    if "energy" in trace:
        found["ebfmi"] = [_number(value) for value in ebfmi(trace["energy"])] if thin == 1 else None
    return found
