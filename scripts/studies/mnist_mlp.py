"""MNIST with a perceptron: how many posterior draws are enough.

784-256-256-10 with ReLU on MNIST, 55,000 training, 5,000 validation and 10,000 official test images. The
study that is redone averages ten posterior samples and says nothing about another number. Here the test
predictions of 100 draws are kept, and accuracy, NLL and ECE are those of random subsets of 1 to 100 of
them. The deterministic network (MAP) has one draw; an ensemble of five MAP networks has five. VI takes twice
the epochs at a learning rate three times as large, as its ELBO is far from its optimum after 30. All have
the prior N(0, 0.1^2).

What the posterior adds here, and what not: draws of mean-field VI differ so much that one alone misreads many
more digits than their average, which is underconfident. A few dozen draws are enough. VI stays behind MAP and
ensemble, although its ELBO no longer moves: for so many weights and so few images independent weights are a
poor family, and neither a wider prior nor a larger learning rate changed its validation NLL by much. (Bayes
by Backprop, arXiv:1505.05424, reports an error of 2.04 % for wider nets after 600 epochs.)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnn_jax import draw_counts, predict, style, trained
from bnn_jax.report import curves, study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run

COUNTS = (1, 2, 3, 5, 10, 20, 30, 50, 100)
SEEDS = range(3)
_COMMON = dict(
    dataset="idx",
    path=Path("mnist"),
    ratios=(11, 1, 0),
    net="mlp(hidden=(256, 256))",
    prior="isotropic(std=0.1)",
    epochs=30,
    learning_rate=1e-3,
)
_VI = dict(method="vi", estimator="local_reparam", beta_warmup=2000, epochs=60, learning_rate=3e-3)


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """Scores by number of draws of VI's runs, a picture of them."""
    by_run = []
    for folder in folders["VI"]:
        found = trained.load(folder)
        test = load(found.config)
        mixture = predict.build_mixture(found.model.apply, found.model.likelihood, found.draw)
        counts = COUNTS[:4] if quick else COUNTS
        probs, _ = mixture(found.source, test.x_test, counts[-1])
        by_run.append(draw_counts.by_draws(probs, test.y_test, counts, seed=found.config.seed))
    mean = lambda same: {name: float(np.mean([row[name] for row in same])) for name in same[0]}
    rows = [mean(same) for same in zip(*by_run, strict=True)]
    style.save(picture(rows), pictures / "draws.png")
    return {"by_draws": rows, "num_runs": len(by_run)}


def picture(rows):
    """Accuracy, NLL and ECE against the number of draws."""
    x = [row["num_draws"] for row in rows]
    panels = {}
    for name, title in (("accuracy", "accuracy"), ("nll", "NLL, nats"), ("ece", "ECE")):
        y, std = (np.array([row[key] for row in rows]) for key in (name, f"{name}_std"))
        panels[title] = {"VI": curves.Line(x, y, y - std, y + std)}
    return curves.curves(panels, "posterior draws", "on the test images", "How many draws?", log_x=True)


def sections(found: dict[str, Any]) -> list[str]:
    """The table and the picture."""
    show = lambda row, name: f"{row[name]:.4f} ± {row[f'{name}_std']:.4f}"
    names = ("accuracy", "nll", "ece")
    rows = [["draws", "accuracy ↑", "NLL, nats ↓", "ECE ↓"]]
    rows += [[str(int(row["num_draws"])), *(show(row, name) for name in names)] for row in found["by_draws"]]
    return [
        "## How many draws are enough",
        "",
        "![Accuracy, NLL and ECE against the number of draws](mnist_mlp/draws.png)",
        "",
        *study_page.table(rows),
        "",
        f"After ±: standard deviation over random subsets of the draws; means over {found['num_runs']} runs.",
        "",
    ]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs={
        "MAP": [Config(method="map", seed=seed, **_COMMON) for seed in SEEDS],
        "ensemble of 5": [Config(method="map", members=5, seed=seed, **_COMMON) for seed in SEEDS],
        "VI": [Config(seed=seed, **_COMMON | _VI) for seed in SEEDS],
    },
    columns=("accuracy", "nll", "ece", "brier", "seconds"),
    overview=Overview("MNIST", "nll", "MAP", "VI", ("ensemble", "ensemble of 5")),
    evaluate={"num_draws": 100},
    quick=dict(epochs=2, limit=5000),
    quick_evaluate={"num_draws": 5, "num_bootstrap": 50},
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
