"""MNIST: LeNet-5, deterministic and Bayesian.

The official 60,000 training and 10,000 test images, 6,000 of the training images held out as validation part
(stratified, seed 0). The uncertainty-baselines train on 50,000 with the same net, so both see nearly the same
data; nothing is chosen on the test part. Prior N(0, 1), which gave VI the lower validation NLL of this one
and N(0, 1 / fan-in). No augmentation. ECE in 15 equal-width bins.
"""

from pathlib import Path

from bnn_jax.settings import Config
from bnn_jax.study import Overview, Study, run

_COMMON = dict(
    dataset="idx",
    path=Path("mnist"),
    ratios=(9, 1, 0),
    net="lenet",
    prior="isotropic",
    epochs=30,
    learning_rate=2e-3,
)
RUNS = {
    "MAP": [Config(method="map", **_COMMON)],
    "VI": [Config(method="vi", estimator="sampling", beta_warmup=1000, **_COMMON)],
}
_SOURCE = "[uncertainty-baselines](https://github.com/google/uncertainty-baselines)"
PUBLISHED = {
    f"deterministic, {_SOURCE}": {"nll": 0.037, "accuracy": 0.991},
    f"VI, {_SOURCE}": {"nll": 0.048, "accuracy": 0.985, "ece": 0.010},
    f"ensemble of 10, {_SOURCE}": {"nll": 0.016, "accuracy": 0.994, "ece": 0.005},
}
STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs=RUNS,
    columns=("nll", "accuracy", "ece", "brier", "seconds"),
    overview=Overview("MNIST", "nll", "MAP", "VI", published=f"VI, {_SOURCE}"),
    evaluate={"num_draws": 100},
    published=PUBLISHED,
    quick=dict(epochs=1, limit=500),
    quick_evaluate={"num_draws": 10, "num_bootstrap": 50},
)

if __name__ == "__main__":
    run(STUDY)
