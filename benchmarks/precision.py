"""Mixed precision: what the forward pass in bfloat16 changes in the predictions.

LeNet-5 on 5,000 MNIST images under mean-field VI, five seeds of each. Weights, KL and optimiser stay float32;
the forward pass and its gradient are computed in float32 or in bfloat16. Both see the same start, batches and
random numbers of a seed, so that the difference within a seed tells the two apart. What a step costs is in
docs/performance.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bnn_jax import models, runs
from bnn_jax.commands import evaluate
from bnn_jax.report import study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run

SEEDS = range(5)
SCORES = ("accuracy", "nll")
_COMMON = dict(dataset="idx", path=Path("mnist"), limit=5000, net="lenet", epochs=20, eval_every=1000)


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """bfloat16 less float32 within a seed: mean and, of two seeds and more, its 95 % interval."""
    read = {
        label: [runs.read_json(folder / evaluate.RESULT) for folder in found]
        for label, found in folders.items()
    }
    return {
        score: difference(*([row[score] for row in read[label]] for label in ("bfloat16", "float32")))
        for score in SCORES
    }


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Mean of the paired differences and Student's 95 % interval, None for a single pair."""
    each = np.subtract(ours, theirs)
    found = {"mean": float(each.mean()), "interval": None}
    if len(each) > 1:
        half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5
        found["interval"] = [float(each.mean() - half), float(each.mean() + half)]
    return found


def sections(found: dict[str, Any]) -> list[str]:
    """The differences."""
    rows = [["bfloat16 less float32", "mean", "95 % interval"]]
    for score, row in found.items():
        interval = "-" if row["interval"] is None else "{:+.4f} to {:+.4f}".format(*row["interval"])
        rows.append([score, f"{row['mean']:+.4f}", interval])
    return ["## Difference within a seed", "", *study_page.table(rows), ""]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs={name: [Config(compute=name, seed=seed, **_COMMON) for seed in SEEDS] for name in models.DTYPES},
    columns=("accuracy", "nll", "ece", "seconds"),
    overview=Overview("MNIST, 5,000 images", "nll", None, "float32", ("bfloat16", "bfloat16")),
    evaluate={"num_draws": 50, "num_bootstrap": 200},
    quick=dict(epochs=1, limit=300),
    quick_evaluate={"num_draws": 5, "num_bootstrap": 20},
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
