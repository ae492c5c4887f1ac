"""PneumoniaMNIST: one network, deterministic and Bayesian, and an ensemble of Bayesian ones.

28 x 28 grey chest X-rays of children, pneumonia (class 1) against normal; the official 4,708 training, 524
validation and 624 test images (Yang et al., doi:10.1038/s41597-022-01721-8). LeNet-5 with the prior N(0, 1)
under random rotation, shift, zoom, brightness and contrast: of eight settings of VI and MAP those with the
highest validation AUROC. The threshold on the probability of pneumonia is the largest one whose recall on
the validation images is at least 97 %; accuracy, recall, specificity and precision are those of that
threshold on the test images, whose class balance and exposure differ from those of the other parts. Of the
published rows the decision is that of the most probable class.
"""

from pathlib import Path

from bnn_jax.settings import Config
from bnn_jax.study import Overview, Study, run

_COMMON = dict(
    dataset="medmnist",
    path=Path("pneumoniamnist.npz"),
    net="lenet",
    prior="isotropic",
    epochs=60,
    learning_rate=3e-3,
    rotation=10.0,
    shift=0.1,
    zoom=(0.8, 1.2),
    brightness=(0.6, 1.4),
    contrast=(0.5, 1.5),
)
_VI = dict(method="vi", beta_warmup=500)
RUNS = {
    "MAP": [Config(method="map", **_COMMON)],
    "VI": [Config(**_VI, **_COMMON)],
    "VI, 5 members": [Config(**_VI, members=5, **_COMMON)],
}
_SOURCE = "[MedMNIST v2](https://doi.org/10.1038/s41597-022-01721-8)"
PUBLISHED = {
    f"ResNet-18 (28), {_SOURCE}": {"auroc": 0.944, "accuracy": 0.854},
    f"AutoML Vision, {_SOURCE}": {"auroc": 0.991, "accuracy": 0.946},
}
STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs=RUNS,
    columns=("auroc", "accuracy", "recall", "specificity", "precision", "nll", "ece", "aurc", "seconds"),
    overview=Overview(
        "PneumoniaMNIST", "auroc", "MAP", "VI", ("5 of VI", "VI, 5 members"), f"ResNet-18 (28), {_SOURCE}"
    ),
    evaluate={"num_draws": 100, "recall": 0.97},
    published=PUBLISHED,
    referral=True,
    quick=dict(epochs=1, limit=500),
    quick_evaluate={"num_draws": 10, "num_bootstrap": 50},
)

if __name__ == "__main__":
    run(STUDY)
