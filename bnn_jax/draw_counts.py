r"""How many posterior draws are enough: scores of the predictive against the number of draws in it.

    p_c(y | x) = 1/c sum_{d in A} p(y | x, w_d),  A a random subset of c of the D draws

Each count is scored on several subsets; their standard deviation is what one user's draws differ from
another's. Subsets of nearly all draws overlap, so the spread near c = D is too small.
"""

from collections.abc import Sequence

import numpy as np

from bnn_jax import metrics
from bnn_jax.types import UserError

SCORES = {"accuracy": metrics.accuracy, "nll": metrics.nll, "ece": metrics.ece}


def by_draws(
    probs: np.ndarray, labels: np.ndarray, counts: Sequence[int], *, repeats: int = 20, seed: int = 0
) -> list[dict[str, float]]:
    """`num_draws`, and each of `SCORES` with its `<name>_std` over `repeats` subsets, for every count.

    Args:
        probs: (D, T, K) what each draw predicts. labels: (T,).
        counts: numbers of draws, 1..D.

    Raises:
        UserError: a count outside 1..D, or no repeats.
    """
    if repeats < 1:
        raise UserError(f"repeats must be at least 1, not {repeats}")
    rng, found = np.random.default_rng(seed), []
    for count in counts:
        if not 1 <= count <= len(probs):
            raise UserError(f"counts must lie in 1..{len(probs)}, the number of draws, not {count}")
        subsets = [rng.permutation(len(probs))[:count] for _ in range(repeats if count < len(probs) else 1)]
        means = [probs[np.sort(subset)].mean(0) for subset in subsets]
        row: dict[str, float] = {"num_draws": int(count)}
        for name, score in SCORES.items():
            values = [float(score(mean, labels)) for mean in means]
            row |= {name: float(np.mean(values)), f"{name}_std": float(np.std(values))}
        found.append(row)
    return found
