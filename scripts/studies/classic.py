"""What came before: linear and Gaussian classifiers beside a Bayesian network.

Least squares on targets of +-1, the perceptron, the linear support vector machine, Gaussian class-conditional
models by maximum likelihood with covariances of their own and with a shared one, and logistic regression: on
the pixels of the digits (8x8) and of PneumoniaMNIST (28x28), standardised, with the parts that the networks
train and test on. The first three have no probabilities, so no NLL and no ECE. The network is a small
convolutional one: MAP, VI and, where its posterior can be sampled, HMC; an ensemble of MAP where not.

What the network and its posterior add: decisions, above all. On the digits HMC makes the fewest mistakes,
and logistic regression has an NLL like that of the network at its mode; Gaussians with covariances of their
own, whose number of parameters the images do not support, are sure of their mistakes. On PneumoniaMNIST,
without augmentation, every method that gives probabilities is too sure on the test part, whose share of
healthy children is larger, the posteriors less so than the mode.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import make_moons

from bnn_jax import classic, experiment, metrics, runs, style
from bnn_jax.report import boundaries, study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run

SEEDS = range(3)
TITLES = {
    "least_squares": "least squares",
    "perceptron": "perceptron",
    "svm": "linear SVM",
    "gaussian": "Gaussians, own covariances",
    "gaussian_shared": "Gaussians, shared covariance",
    "logistic": "logistic regression",
}
_DIGITS = dict(dataset="digits", net="digits", epochs=60, batch_size=64, learning_rate=3e-3)
_PNEUMONIA = dict(
    dataset="medmnist", path=Path("pneumoniamnist.npz"), net="lenet", prior="isotropic", learning_rate=2e-3
)
_VI = dict(method="vi", beta_warmup=200)
RUNS = {
    title: [Config(seed=seed, **data, **how) for seed in SEEDS]
    for title, data, how in (
        ("digits, MAP", _DIGITS, dict(method="map")),
        ("digits, VI", _DIGITS, _VI),
        ("digits, HMC", _DIGITS, dict(method="hmc")),
        ("PneumoniaMNIST, MAP", _PNEUMONIA, dict(method="map")),
        ("PneumoniaMNIST, ensemble of 5", _PNEUMONIA, dict(method="map", members=5)),
        ("PneumoniaMNIST, VI", _PNEUMONIA, _VI),
    )
}


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """Scores of the classic classifiers on the networks' own parts, and the picture of two features."""
    found: dict[str, Any] = {}
    for data in ("digits", "PneumoniaMNIST"):
        scored: dict[str, list] = {}
        for folder in folders[f"{data}, MAP"]:
            config = runs.from_config(Config, runs.read_mark(folder, experiment.SCRIPT), folder)
            parts = load(config)
            flat = lambda x: x.reshape(len(x), -1)
            for name in classic.NAMES:
                fitted = classic.fit(name, flat(parts.x_train), parts.y_train, config.seed)
                scored.setdefault(name, []).append(scores(fitted, flat(parts.x_test), parts.y_test))
        found[data] = scored
    x, y = make_moons(400, noise=0.25, random_state=0)
    panels = {}
    for name, title in TITLES.items():
        fitted = classic.fit(name, x, y)
        share = fitted.probs and (lambda p, probs=fitted.probs: probs(p)[:, 1])
        panels[title] = share or (lambda p, decide=fitted.decide: decide(p).astype(float))
    figure = boundaries.boundaries(panels, x, y, ("class 0", "class 1"))
    style.save(figure, pictures / "boundaries.png")
    return found


def scores(fitted: classic.Fitted, x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and of a classifier with probabilities NLL and ECE."""
    found = {"accuracy": float(np.mean(fitted.decide(x) == labels))}
    if fitted.probs is not None:
        probs = fitted.probs(x)
        found |= {"nll": metrics.nll(probs, labels), "ece": metrics.ece(probs, labels)}
    return found


def sections(found: dict[str, Any]) -> list[str]:
    """A table and the picture."""
    rows = [["", "accuracy ↑", "NLL, nats ↓", "ECE ↓"]]
    for data, scored in found.items():
        for name, records in scored.items():
            cells = (study_page.cell(records, column) for column in ("accuracy", "nll", "ece"))
            rows.append([f"{data}, {TITLES[name]}", *cells])
    return [
        "## The classic ones",
        "",
        *study_page.table(rows),
        "",
        "On the same parts as above. The perceptron keeps the weights after its last mistake.",
        "",
        "![Boundaries of six classifiers over two features](classic/boundaries.png)",
        "",
        "Two features, two interleaved half circles. Shaded: P(class 1 | x), where a classifier has one.",
        "",
    ]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs=RUNS,
    columns=("accuracy", "nll", "ece", "auroc", "seconds"),
    overview=Overview("digits", "nll", "digits, MAP", "digits, VI", ("HMC", "digits, HMC")),
    evaluate={"num_draws": 100},
    quick=dict(epochs=2, limit=500, num_warmup=20, num_draws=20, block_size=20, trajectory_length=0.05),
    quick_evaluate={"num_draws": 10, "num_bootstrap": 20},
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
