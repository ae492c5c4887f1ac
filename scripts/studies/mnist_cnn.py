"""MNIST with convolutions and dropout: what the posterior says about the images that are misread.

Two blocks of conv 3x3 (32 and 64) with ReLU and 2x2 pooling, a dense layer of 128, ten epochs of Adadelta.
The study that is redone trains this with dropout, which it switches off for prediction, and shows a gallery
of errors. (There both convolutions precede one pooling; here each has its own, a quarter of the work.) Here
dropout is taken for what it is, a posterior (MC dropout, rate 0.25 on the inputs of all layers but the
first), beside the network without it (MAP) and VI, which trains with Adam. 54,000 training, 6,000 validation
and 10,000 test images; the prior is N(0, 0.1^2).

What the posterior adds here, and what not: accuracy and NLL are best without it, as VI and dropout are
underconfident on digits this easy. Any of the three tells its mistakes by their entropy alone, equally well.
What VI and dropout add is the reason: a misread image is one on which the draws disagree, so that more data
of its kind would help; and beside each probability stands how far it can be trusted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnn_jax import data, metrics, scores, style, trained
from bnn_jax.report import judgement, study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run

SHOWN = 12
SEEDS = range(3)
_COMMON = dict(
    dataset="idx",
    path=Path("mnist"),
    ratios=(9, 1, 0),
    net="blocks(widths=(32, 64), hidden=128)",
    prior="isotropic(std=0.1)",
    epochs=10,
    eval_draws=5,
)
_ADADELTA = dict(optimizer="adadelta", learning_rate=1.0)
_METHODS = {
    "MAP": dict(method="map", **_ADADELTA),
    "dropout": dict(method="dropout(rate=0.25)", **_ADADELTA),
    "VI": dict(method="vi", estimator="sampling", learning_rate=1e-3, beta_warmup=1000),
}


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """Uncertainty of right and of wrong predictions by method, and the gallery of VI's mistakes."""
    found = {}
    for method in _METHODS:
        loaded = trained.load(folders[method][0])
        parts = load(loaded.config)
        given = trained.classify(loaded, parts.x_test, 10 if quick else 50)
        right = given.mean.argmax(-1) == parts.y_test
        total, epistemic = (scores.of_mistakes(right, u) for u in (given.total, given.epistemic))
        found[method] = {
            "num_wrong": int((~right).sum()),
            "entropy_right": total["right"],
            "entropy_wrong": total["wrong"],
            "epistemic_right": epistemic["right"],
            "epistemic_wrong": epistemic["wrong"],
            "auroc_wrong": total["auroc"],
        }
    figure = gallery(parts, given)  # of the last, VI
    style.save(figure, pictures / "mistakes.png")
    return found


def gallery(parts, given):
    """The wrong predictions, the surest first."""
    wrong = np.flatnonzero(given.mean.argmax(-1) != parts.y_test)
    chosen = wrong[np.argsort(metrics.entropy(given.mean[wrong]), kind="stable")][:SHOWN]
    titles = []
    for i in chosen:
        first, second = np.argsort(-given.mean[i])[:2]
        told = (f"{k}: {given.mean[i, k]:.2f} ± {given.std[i, k]:.2f}" for k in (first, second))
        titles.append(f"a {parts.y_test[i]}, read as {first}\n{', '.join(told)}")
    images = data.to_images(parts.x_test[chosen], parts.scaling)
    return style.styled(judgement.gallery)(
        images, titles, f"{len(chosen)} of {len(wrong)} misread images, the surest first"
    )


def sections(found: dict[str, Any]) -> list[str]:
    """The table and the gallery."""
    rows = [
        [
            "",
            "misread",
            "entropy, right",
            "entropy, misread",
            "epistemic, right",
            "epistemic, misread",
            "AUROC",
        ]
    ]
    for method, values in found.items():
        count, *rest = values.values()
        rows.append([method, str(count), *(f"{value:.3f}" for value in rest)])
    return [
        "## Does it know when it is wrong?",
        "",
        *study_page.table(rows),
        "",
        "Mean predictive entropy and its epistemic part in nats, of the test images read right and misread,",
        "first seed; AUROC of the entropy for telling the misread ones.",
        "",
        "![Misread images with what the posterior says](mnist_cnn/mistakes.png)",
        "",
        "VI's mistakes, the surest first: probability ± its standard deviation over draws, of the two",
        "classes that it thinks most probable.",
        "",
    ]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs={title: [Config(seed=seed, **_COMMON, **how) for seed in SEEDS] for title, how in _METHODS.items()},
    columns=("accuracy", "nll", "ece", "brier", "seconds"),
    overview=Overview("MNIST", "nll", "MAP", "VI", ("dropout", "dropout")),
    evaluate={"num_draws": 50},
    quick=dict(epochs=1, limit=500),
    quick_evaluate={"num_draws": 10, "num_bootstrap": 20},
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
