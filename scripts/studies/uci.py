"""UCI regression: Boston, concrete and yacht on their 20 standard splits.

One hidden layer of 50 ReLU units, one learned noise level, features and target standardised by the training
part of each split; 90 % training and 10 % test data, no validation part and nothing chosen on the test part.
RMSE, NLL and interval width in the original unit of the target. The published figures are those of
probabilistic backpropagation (arXiv:1502.05336), MC dropout (arXiv:1506.02142) and deep ensembles
(arXiv:1612.01474) on the same splits; theirs is the same net, MC dropout with settings found by grid search.
HMC starts two chains at MAP solutions. R-hat is that of what the chains predict for the test rows, the median
of a split: far from 1 they have not met, and their mixture is no posterior. On yacht, whose targets have
almost no noise, the posterior is so narrow that 600 iterations are far too few, even after a longer warm-up,
without which chains diverge: RMSE gains, NLL pays.
"""

from pathlib import Path

from bnn_jax.settings import Config
from bnn_jax.study import Overview, Study, run

_COMMON = dict(dataset="table", net="shallow", batch_size=64, learning_rate=1e-2, eval_every=1000)
_TABLES = {"Boston": "bostonHousing", "concrete": "concrete", "yacht": "yacht"}
_VI = dict(method="vi", steps=20000, beta_warmup=2000, estimator="local_reparam", num_samples=4)
_HMC = dict(method="hmc", steps=1000, num_warmup=100, num_draws=300, block_size=100, trajectory_length=0.1)
_YACHT = dict(steps=10000, num_warmup=300)  # its noise is small and found late: a stiff posterior
RUNS = {
    f"{name}, {label}": [
        Config(path=Path("uci") / f"{file}.npz", fold=i, **_COMMON, **how) for i in range(20)
    ]
    for name, file in _TABLES.items()
    for label, how in (("VI", _VI), ("HMC", _HMC | (_YACHT if name == "yacht" else {})))
}
_METHODS = ("PBP", "MC dropout", "deep ensemble")
_FIGURES = {
    "Boston": ((3.01, 2.97, 3.28), (2.57, 2.46, 2.41)),
    "concrete": ((5.67, 5.23, 6.03), (3.16, 3.04, 3.06)),
    "yacht": ((1.02, 1.11, 1.58), (1.63, 1.55, 1.18)),
}
PUBLISHED = {
    f"{table}, {method}": {"rmse": rmse, "nll": nll}
    for table, figures in _FIGURES.items()
    for method, rmse, nll in zip(_METHODS, *figures, strict=True)
}
STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs=RUNS,
    columns=("rmse", "nll", "coverage_95", "interval_width_95", "rhat_function_median", "seconds"),
    overview=Overview("Boston", "rmse", None, "Boston, VI", ("HMC", "Boston, HMC"), "Boston, MC dropout"),
    evaluate={"num_draws": 300, "num_bootstrap": 200},
    published=PUBLISHED,
    quick=dict(steps=500, num_warmup=40, num_draws=40, block_size=20, trajectory_length=0.03),
    quick_labels=["Boston, VI", "yacht, HMC"],
    quick_evaluate={"num_draws": 10, "num_bootstrap": 50},
)

if __name__ == "__main__":
    run(STUDY)
