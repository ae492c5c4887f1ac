"""Brain MRI slices: a plain CNN against VGG16 with and without its dense head.

The study that is redone finds VGG16 better, without a figure. "Two classes": 253 slices with a tumour or
none. "Four classes": 2,000 slices with glioma, meningioma, pituitary tumour or none, drawn anew from both
given folders. Both are grey, resized to 64 x 64 and split 8 : 1 : 1. Every network is trained for maximum
posterior density (MAP), under VI (mean field) and with MC dropout (rate 0.25 on the inputs of all layers but
the first), VGG16 with its dense head as MAP and VI only; all see the same light rotation, shift, zoom, flip
and brightness.

VGG16 has a first width of 8 instead of 64, so that two CPU cores train it in minutes; the full size is
`--image-size 224` and `--net vgg`. The prior is N(0, 0.3^2): under N(0, 0.1^2) MAP of VGG16, which has no
normalisation, shrank all weights and gave every slice the same probabilities.

Read the scores with care. The test parts are tiny, about 25 and 200 images. Some labels of the two classes
are wrong, and their decision threshold (largest Youden's J) rests on the few validation images. In the four
classes similar slices of one patient may lie in several parts, as no patient is named, and slices without a
tumour come from other sources, which a network may tell by that alone.

What the posterior adds here, and what not: in the four classes VI is level with MAP, in scores and in how
well its entropy tells wrong answers from right ones; in the two classes the seeds differ by more than the
methods do. MC dropout is behind both, and in thirteen layers without normalisation it learns next to nothing
in these epochs. VGG16 is not ahead of the plain CNN at this width and image size, with or without its dense
head, so that what the other study finds could not be repeated in the small.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnn_jax import experiment, runs, scores, style, trained, training
from bnn_jax.report import curves, judgement, study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run

NUM_DRAWS = 30
BATCH_SIZE = 32
SEEDS = range(3)
_COMMON = dict(
    dataset="folder",
    split="random",
    ratios=(8.0, 1.0, 1.0),
    image_size=64,
    channels=1,
    rotation=10.0,
    shift=0.05,
    zoom=(0.9, 1.1),
    flip_horizontal=True,
    brightness=(0.9, 1.1),
    prior="isotropic(std=0.3)",
    batch_size=BATCH_SIZE,
    learning_rate=1e-3,
    eval_draws=5,
)
_DATA = {
    # An epoch has 6 steps, and every evaluation writes a checkpoint: one in 4 epochs is enough.
    "two classes": dict(path=Path("brain_mri_yesno"), epochs=40, eval_every=24),
    "four classes": dict(path=Path("brain_tumor_4class"), epochs=10),
}
_WARMUP = {"two classes": 120, "four classes": 250}  # of VI's KL, half of the steps
_NETS = {
    "CNN": "blocks(widths=(16, 32, 64), hidden=64)",
    "VGG16": "vgg(width=8, dense=False)",
    "VGG16 with dense head": "vgg(width=8, hidden=256)",
}
_METHODS = {
    "MAP": dict(method="map"),
    "dropout": dict(method="dropout(rate=0.25)"),
    "VI": dict(method="vi", estimator="sampling"),
}


def label(data: str, net: str, method: str) -> str:
    """Of a row of the table."""
    return f"{data}, {net}, {method}"


RUNS = {}
for data, where in _DATA.items():
    for net, built in _NETS.items():
        for method, how in _METHODS.items():
            if net == "VGG16 with dense head" and method == "dropout":
                continue
            warmup = dict(beta_warmup=_WARMUP[data]) if method == "VI" else {}
            RUNS[label(data, net, method)] = [
                Config(seed=seed, net=built, **_COMMON, **where, **how, **warmup) for seed in SEEDS
            ]


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """Learning curves; of four classes VI's confusion matrix and the entropy of mistakes."""
    for data in _DATA:
        style.save(learning(folders, data), pictures / f"curves_{data.split()[0]}.png")
    four = [
        (net, method) for net in _NETS for method in _METHODS if label("four classes", net, method) in folders
    ]
    entropy, predicted, reached = {}, {}, {}
    for net, method in four:
        there = folders[label("four classes", net, method)]
        loaded = trained.load(there[0])
        parts = load(loaded.config)  # the first seed's
        given = trained.classify(loaded, parts.x_test, 5 if quick else NUM_DRAWS)
        right = given.mean.argmax(-1) == parts.y_test
        told = scores.of_mistakes(right, given.total)
        entropy[f"{net}, {method}"] = {"num_wrong": int((~right).sum()), **told}
        if method == "VI":
            predicted[net] = given.mean
            reached[net] = np.mean([runs.read_json(f / training.HISTORY)[-1]["val_nll"] for f in there])
    best = min(reached, key=reached.get)
    counts = scores.confusion(predicted[best], parts.y_test)
    style.save(style.styled(judgement.confusion)(counts, parts.class_names), pictures / "confusion.png")
    return {"entropy": entropy, "best": best}


def learning(folders: Mapping[str, Sequence[Path]], data: str):
    """Validation NLL by epoch, a panel a network."""
    panels: dict[str, dict[str, curves.Line]] = {}
    for net in _NETS:
        for method in _METHODS:
            there = folders.get(label(data, net, method), ())
            if there:
                histories = [runs.read_json(folder / training.HISTORY) for folder in there]
                line = curves.over_runs(histories, "val_nll")
                per_epoch = runs.read_json(there[0] / experiment.DATA)["num_visited"] // BATCH_SIZE
                epochs = [row["step"] / per_epoch for row in histories[0]]
                panels.setdefault(net, {})[method] = line._replace(x=epochs)
    return curves.curves(panels, "epoch", "validation NLL, nats", data.capitalize(), share_y=True)


def sections(found: dict[str, Any]) -> list[str]:
    """Pictures and a table."""
    rows = [["", "wrong", "entropy, right", "entropy, wrong", "AUROC"]]
    for title, values in found["entropy"].items():
        count, *rest = values.values()
        rows.append([title, str(count), *("-" if value is None else f"{value:.3f}" for value in rest)])
    return [
        "## Learning curves",
        "",
        "![Validation NLL by epoch, two classes](brain_tumour/curves_two.png)",
        "",
        "![Validation NLL by epoch, four classes](brain_tumour/curves_four.png)",
        "",
        "Means over the seeds; the bands span them.",
        "",
        "## Does it know when it is wrong?",
        "",
        *study_page.table(rows),
        "",
        "Four classes, first seed: mean predictive entropy in nats of the test images answered right and",
        "wrong; AUROC of the entropy for telling the wrong ones.",
        "",
        f"![Confusion matrix of {found['best']} under VI](brain_tumour/confusion.png)",
        "",
        f"Confusion matrix of {found['best']} under VI, first seed: of the networks under VI the one with",
        "the lowest validation NLL, mean over the seeds.",
        "",
    ]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs=RUNS,
    columns=("accuracy", "balanced_accuracy", "nll", "ece", "auroc", "aurc", "seconds"),
    overview=Overview(
        "four classes, CNN",
        "accuracy",
        label("four classes", "CNN", "MAP"),
        label("four classes", "CNN", "VI"),
        ("dropout", label("four classes", "CNN", "dropout")),
    ),
    evaluate={"num_draws": NUM_DRAWS},
    quick=dict(epochs=1, limit=64, image_size=32, eval_every=1),
    quick_evaluate={"num_draws": 5, "num_bootstrap": 20},
    quick_labels=[  # each network, each method and both data sets once
        label("two classes", "VGG16", "dropout"),
        label("two classes", "VGG16 with dense head", "MAP"),
        label("four classes", "CNN", "VI"),
    ],
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
