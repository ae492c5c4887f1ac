"""Pneumonia: a net of one block, a net of five, and two ways to split the same X-rays.

5,856 grey chest X-rays of children (Kermany et al., doi:10.1016/j.cell.2018.02.010), resized to 64x64 for two
CPU cores; the study that is redone has 5,639 of them at 256x256. Its baseline is one block of conv 3x3 (32)
and a dense layer of 128 under RMSprop (1e-4); its network five blocks (32 to 512) and a dense layer under
AMSGrad with rotation (15 degrees), brightness (0.9 to 1.1), shear (5 degrees) and zoom (0.8 to 1.2). Here the
blocks have half of their widths and the dense layer 256 units for 2,048. "random" is its split of
all images, 70 : 15 : 15; "official" tests on the 624 official test images and keeps the images of a patient
on one side of training and validation. The threshold on the probability of pneumonia is that of Youden's J
on the validation part.

What the posterior adds here, and what not: VI scores as MAP of the same network does, on both splits, and MC
dropout, which underfits a network this thin, worse. The share of images that a doctor must see is smallest
under VI, but within the errors of MAP. The splits matter more than the methods: on the random one the scores
are those of known patients, and one block is as good as five; on the official one that block is sure of
itself and wrong about healthy children, which five blocks with augmentation mend. The accuracy that was
published is not reached; what is missing is tried in [pneumonia_limits](pneumonia_limits.md): prior and steps
take a part of it, pixels and widths none that shows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnn_jax import predict, runs, scores, splits, style, trained, training
from bnn_jax.commands import evaluate
from bnn_jax.report import curves, judgement, study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run
from bnn_jax.types import Dataset

SEEDS = range(3)
WANTED = 0.995  # recall
PATIENT = r"(person\d+_[a-z]+|IM-\d+)"
_COMMON = dict(
    dataset="folder",
    path=Path("chest_xray_224"),
    image_size=64,
    prior="isotropic(std=0.1)",
    epochs=15,
)
_SPLITS = {
    "random": dict(split="random", ratios=(70.0, 15.0, 15.0)),
    "official": dict(split="given_test", ratios=(9.0, 1.0, 0.0), group_by=PATIENT),
}
_ONE = dict(net="blocks(widths=(32,), hidden=128)", method="map", optimizer="rmsprop", learning_rate=1e-4)
_FIVE = dict(
    net="blocks(widths=(16, 32, 64, 128, 256), hidden=256)",
    optimizer="amsgrad",
    learning_rate=1e-3,
    rotation=15.0,
    brightness=(0.9, 1.1),
    shear=5.0,
    zoom=(0.8, 1.2),
)
_METHODS = {
    "one block, MAP": _ONE,
    "five blocks, MAP": dict(method="map", **_FIVE),
    "five blocks, dropout": dict(method="dropout(rate=0.25)", **_FIVE),
    "five blocks, VI": dict(method="vi", estimator="sampling", beta_warmup=500, **_FIVE),
}


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """Learning curves, VI's confusion matrices, the leak between the splits, and what a doctor must see."""
    panels: dict[str, dict[str, curves.Line]] = {}
    for label, places in folders.items():
        split, method = label.split(", ", 1)
        histories = [runs.read_json(place / training.HISTORY) for place in places]
        panels.setdefault(f"{split} split", {})[method] = curves.over_runs(histories, "val_nll")
    figure = curves.curves(panels, "epoch", "validation NLL, nats", "Learning curves", share_y=True)
    style.save(figure, pictures / "curves.png")
    found: dict[str, Any] = {"leak": {}, "referral": {}}
    referred: dict[str, dict[str, curves.Line]] = {}
    grid = np.linspace(0, 0.5, 101)
    for split in _SPLITS:
        methods = [m for m in _METHODS if f"{split}, {m}" in folders and m != "one block, MAP"]
        recall: dict[str, list[np.ndarray]] = {}
        for seed in range(len(folders[f"{split}, {methods[0]}"])):
            for method in methods:
                place = folders[f"{split}, {method}"][seed]
                loaded = trained.load(place)
                parts = load(loaded.config)
                given = trained.classify(loaded, parts.x_test, 10 if quick else 100)
                threshold = runs.read_json(place / evaluate.RESULT)["threshold"]
                told = given.mean, parts.y_test, given.total, threshold
                share = scores.share_for_recall(*told, WANTED)
                found["referral"].setdefault(f"{split}, {method}", []).append(share)
                recall.setdefault(method, []).append(np.interp(grid, *scores.recall_by_share(*told)))
            found["leak"].setdefault(split, []).append(leak(parts, given))  # of the last method, VI
            if seed == 0:
                counts = scores.confusion(given.mean, parts.y_test, threshold)
                figure = style.styled(judgement.confusion)(counts, parts.class_names)
                style.save(figure, pictures / f"confusion_{split}.png")
        referred[f"{split} split"] = {
            method: curves.Line(grid, np.mean(all_, 0), np.min(all_, 0), np.max(all_, 0))
            for method, all_ in recall.items()
        }
    figure = curves.curves(referred, "share that a doctor sees", "recall of all cases", "Referral")
    style.save(figure, pictures / "referral.png")
    return found


def leak(parts: Dataset, given: predict.Predictive) -> dict[str, Any]:
    """Accuracy on test images of patients that were trained on, and of others; and how many are which."""
    patient = lambda names: splits.group_ids([Path(name).name for name in names], PATIENT)
    known = np.isin(patient(parts.ids["test"]), patient(parts.ids["train"]))
    right = given.mean.argmax(-1) == parts.y_test
    found: dict[str, Any] = {}
    for name, chosen in (("known", known), ("new", ~known)):
        found[f"{name}_count"] = int(chosen.sum())
        if chosen.any():
            found[f"{name}_accuracy"] = float(right[chosen].mean())
    return found


def sections(found: dict[str, Any]) -> list[str]:
    """Pictures and tables."""
    leaks = [["split", "test images of known patients", "accuracy", "of new patients", "accuracy"]]
    for split, records in found["leak"].items():
        counts = [f"{np.mean([r[f'{name}_count'] for r in records]):.0f}" for name in ("known", "new")]
        rates = [study_page.cell(records, f"{name}_accuracy") for name in ("known", "new")]
        leaks.append([split, counts[0], rates[0], counts[1], rates[1]])
    seen = [["", f"share for {WANTED:.1%} recall"]]
    for label, shares in found["referral"].items():
        seen.append([label, study_page.cell([{"share": share} for share in shares], "share")])
    return [
        "## Learning curves",
        "",
        "![Validation NLL by epoch](pneumonia_cnn/curves.png)",
        "",
        "## Right and wrong",
        "",
        "![Confusion matrix, random split](pneumonia_cnn/confusion_random.png)",
        "![Confusion matrix, official split](pneumonia_cnn/confusion_official.png)",
        "",
        "Five blocks under VI, first seed, random split and official split.",
        "",
        "## The leak between the splits",
        "",
        *study_page.table(leaks),
        "",
        "A patient has several images. The random split puts them on both sides of training and test, so its",
        "score is that of known patients. Patients are told apart by file names, and the official test part",
        "may number its own anew. Five blocks under VI.",
        "",
        "## What share must a doctor see?",
        "",
        "![Recall by share](pneumonia_cnn/referral.png)",
        "",
        *study_page.table(seen),
        "",
        f"The share of test images, the most uncertain first, that must go to a doctor for {WANTED:.1%}",
        "of all cases to be found, if the doctor misses none. Means over the seeds; the bands span them.",
        "",
    ]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs={
        f"{split}, {method}": [Config(seed=seed, **_COMMON, **part, **how) for seed in SEEDS]
        for split, part in _SPLITS.items()
        for method, how in _METHODS.items()
    },
    columns=("accuracy", "recall", "specificity", "auroc", "nll", "ece", "aurc", "seconds"),
    overview=Overview(
        "random split",
        "accuracy",
        "random, five blocks, MAP",
        "random, five blocks, VI",
        ("dropout", "random, five blocks, dropout"),
        "random, five blocks, 256x256, maximum likelihood",
    ),
    evaluate={"num_draws": 100},
    published={
        "random, five blocks, 256x256, maximum likelihood": {"accuracy": 0.978, "recall": 0.979},
    },
    referral=True,
    quick=dict(epochs=1, limit=300, image_size=32),
    quick_labels=["random, one block, MAP", "random, five blocks, VI", "official, five blocks, dropout"],
    quick_evaluate={"num_draws": 10, "num_bootstrap": 20},
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
