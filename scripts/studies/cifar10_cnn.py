"""CIFAR-10 with a small convolutional network: where the overfitting goes.

Blocks of conv 3x3 (32 and 64) with ReLU and 2x2 pooling and a dense layer of 128, a constant learning rate:
the study that is redone overfits after three epochs of ten, dropout or not. Here the same network as that of
maximum likelihood (a prior so wide that it says nothing, N(0, 10^2)), and under the prior N(0, 0.1^2) as that
of maximum posterior density (MAP), with MC dropout (rate 0.25 on the inputs of all layers but the first) and
under VI, with validation scores after every epoch, the confusion matrix and the entropy of each class. 45,000
training, 5,000 validation and the 10,000 official test images, no augmentation.

What the posterior adds here, and what not: maximum likelihood overfits, some epochs later than in the other
study; under the prior nothing does, and MAP is as good as VI and the better calibrated of the two. So it is
the prior that takes the overfitting away, not the width of the posterior. MC dropout under the same prior
learns slowly and underrates itself. Birds, cats and dogs are hard for all four, and all say so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnn_jax import runs, scores, style, trained, training
from bnn_jax.report import curves, judgement, study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run

SEEDS = range(3)
_COMMON = dict(
    dataset="cifar10_tiles",
    path=Path("cifar10"),
    ratios=(9, 1, 0),
    net="blocks(widths=(32, 64), hidden=128)",
    epochs=10,
    eval_draws=5,
    learning_rate=1e-3,
    schedule="constant",
)
_PRIOR = dict(prior="isotropic(std=0.1)")
_METHODS = {
    "maximum likelihood": dict(method="map", prior="isotropic(std=10)"),
    "MAP": dict(method="map", **_PRIOR),
    "dropout": dict(method="dropout(rate=0.25)", **_PRIOR),
    "VI": dict(method="vi", estimator="sampling", beta_warmup=1000, **_PRIOR),
}


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """Learning curves of all methods, VI's confusion matrix, entropy by class."""
    panels: dict[str, dict[str, curves.Line]] = {"validation NLL, nats": {}, "validation accuracy": {}}
    entropy, best = {}, {}
    for method in folders:
        histories = [runs.read_json(folder / training.HISTORY) for folder in folders[method]]
        for title, name in zip(panels, ("val_nll", "val_accuracy"), strict=True):
            panels[title][method] = curves.over_runs(histories, name)
        nll = np.asarray(panels["validation NLL, nats"][method].y)
        best[method] = {"epoch": int(nll.argmin()) + 1, "nll": float(nll.min()), "last": float(nll[-1])}
        loaded = trained.load(folders[method][0])
        parts = load(loaded.config)
        given = trained.classify(loaded, parts.x_test, 10 if quick else 50)
        classes = range(given.mean.shape[1])
        entropy[method] = [float(given.total[parts.y_test == k].mean()) for k in classes]
    style.save(curves.curves(panels, "epoch", "", "Where the overfitting goes"), pictures / "curves.png")
    names = parts.class_names or tuple(map(str, classes))
    matrix = style.styled(judgement.confusion)(scores.confusion(given.mean, parts.y_test), names)
    style.save(matrix, pictures / "confusion.png")
    return {"best": best, "entropy": entropy, "classes": list(names)}


def sections(found: dict[str, Any]) -> list[str]:
    """Pictures and tables."""
    rows = [["", "best epoch", "validation NLL there", "after the last"]]
    for method, best in found["best"].items():
        rows.append([method, str(best["epoch"]), f"{best['nll']:.3f}", f"{best['last']:.3f}"])
    classes = [["", *found["classes"]]]
    for method, values in found["entropy"].items():
        classes.append([method, *(f"{value:.2f}" for value in values)])
    return [
        "## Learning curves",
        "",
        "![Validation NLL and accuracy by epoch](cifar10_cnn/curves.png)",
        "",
        *study_page.table(rows),
        "",
        "Means over the seeds; the bands of the picture span them.",
        "",
        "## By class",
        "",
        *study_page.table(classes),
        "",
        "Mean predictive entropy in nats of the test images of a class, first seed.",
        "",
        "![Confusion matrix of VI](cifar10_cnn/confusion.png)",
        "",
        "The confusion matrix of VI, first seed.",
        "",
    ]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs={title: [Config(seed=seed, **_COMMON, **how) for seed in SEEDS] for title, how in _METHODS.items()},
    columns=("accuracy", "nll", "ece", "brier", "seconds"),
    overview=Overview("CIFAR-10", "nll", "MAP", "VI", ("dropout", "dropout")),
    evaluate={"num_draws": 50},
    quick=dict(epochs=2, limit=500),
    quick_labels=["MAP", "dropout", "VI"],
    quick_evaluate={"num_draws": 10, "num_bootstrap": 20},
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
