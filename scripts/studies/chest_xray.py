"""A Bayesian network for chest X-rays: two forms of the KL term, and images that are no X-rays.

Folders of children's chest X-rays, pneumonia or not (Kermany et al., doi:10.1016/j.cell.2018.02.010), at
64x64, which two CPU cores train on in minutes (`--image-size 224` is the full size). The official 624 test
images; a tenth of all others is the validation part, all images of a patient on one side. Three blocks of
conv 3x3 (16, 32, 32) with 2x2 pooling and a dense layer of 64; prior N(0, 0.1^2). As in the study that is
redone: Adam at 1e-3, at most 64 epochs, the learning rate lowered tenfold when validation accuracy has not
risen for 3 epochs (down to 1e-9), training ended when it has not for 7, and the best weights restored. That
study estimates KL(q || p) by log q(w) - log p(w) at the weights of the step, divided by N; for Gaussians the
closed form has the same mean and no noise. Here are both, beside the network of maximum posterior density
(MAP) and MC dropout. The threshold is that of Youden's J on the validation part.

What the Bayesian treatment adds, and what not. The two forms of the KL cannot be told apart by any score.
Wrong X-rays are more uncertain than right ones under every method, the entropy of MAP included: it ranks
them as well as a posterior does. Images that are no X-rays are not recognised: brains, clothes and digits
are called pneumonia with less doubt than X-rays are, and little of it is epistemic. Validation accuracy is
high after one epoch and ends training some epochs later (`chest_xray_lenet`, which trains on with augmented
images, has a higher AUROC on the same test images). Whoever wants foreign images found must check inputs by
other means.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnn_jax import data, runs, scores, style, trained, training
from bnn_jax.report import curves, entropy, judgement, study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run
from bnn_jax.types import Dataset

SEEDS = range(3)
PASSES = 30
_COMMON = dict(
    dataset="folder",
    path=Path("chest_xray_224"),
    image_size=64,
    split="given_test",
    ratios=(9.0, 1.0, 0.0),
    group_by=r"(person\d+_[a-z]+|IM-\d+)",
    net="blocks(widths=(16, 32, 32), hidden=64)",
    prior="isotropic(std=0.1)",
    epochs=64,
    learning_rate=1e-3,
    schedule="constant",
    monitor="val_accuracy",
    patience=7,
    plateau_patience=3,
)
_VI = dict(method="vi", estimator="sampling")
_METHODS = {
    "MAP": dict(method="map"),
    "dropout": dict(method="dropout(rate=0.25)"),
    "VI, closed-form KL": dict(kl="closed_form", **_VI),
    "VI, Monte Carlo KL": dict(kl="monte_carlo", **_VI),
}
_STRANGE = {
    "skin": data.Options(dataset="folder", path=Path("isic_uda1")),
    "brain": data.Options(dataset="folder", path=Path("brain_mri_yesno")),
    "clothes": data.Options(dataset="idx", path=Path("fashion_mnist")),
    "digits": data.Options(dataset="idx", path=Path("mnist")),
}


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """Learning curves, examples, and the uncertainty of X-rays and of what is none; of the first seed."""
    panels: dict[str, dict[str, curves.Line]] = {"validation NLL, nats": {}, "validation accuracy": {}}
    for method, places in folders.items():
        histories = [runs.read_json(place / training.HISTORY) for place in places]
        for title, name in zip(panels, ("val_nll", "val_accuracy"), strict=True):
            panels[title][method] = curves.over_runs(histories, name)
    style.save(curves.curves(panels, "epoch", "", "Learning curves"), pictures / "curves.png")
    shutil.copyfile(next(iter(folders.values()))[0] / "data_examples.png", pictures / "examples.png")
    found: dict[str, Any] = {}
    strange: dict[str, Any] = {}
    passes, limit = (5, 50) if quick else (PASSES, 1000)
    for method, (place, *_) in folders.items():
        loaded = trained.load(place)
        parts = load(loaded.config)
        if not strange:  # the same for all methods
            for name, told in _STRANGE.items():
                strange[name] = everything(trained.foreign(loaded, dataclasses.replace(told, limit=limit)))
        inside = trained.classify(loaded, parts.x_test, passes)
        right = inside.mean.argmax(-1) == parts.y_test
        given = {name: trained.classify(loaded, x, passes) for name, x in strange.items()}
        groups = {"right": chosen(inside, right), "wrong": chosen(inside, ~right)} | given
        found[method] = {
            name: {
                "count": len(group.total),
                "total": float(group.total.mean()),
                "epistemic": float(group.epistemic.mean()),
                "auroc": scores.ood_auroc(
                    inside.total[right] if name == "wrong" else inside.total, group.total
                ),
            }
            for name, group in groups.items()
            if len(group.total)
        }
        if method == "VI, closed-form KL":
            tints = ["#0072B2", "#D55E00", *["#777777"] * len(strange)]
            rows = [
                entropy.Row(name, group.aleatoric, group.epistemic, tint, name == "wrong")
                for (name, group), tint in zip(groups.items(), tints, strict=True)
            ]
            headline = "X-rays of the test part, and images that are none, under VI"
            style.save(entropy.groups(rows, headline), pictures / "entropy.png")
            images = {"right": parts.x_test[right], "wrong": parts.x_test[~right]} | strange
            style.save(gallery(images, groups, parts), pictures / "images.png")
    counts = {part: np.bincount(getattr(parts, f"y_{part}")).tolist() for part in ("train", "val", "test")}
    return {"groups": found, "counts": counts, "classes": list(parts.class_names)}


def everything(other: Dataset) -> np.ndarray:
    """All images of a data set, as none was trained on; of one with very many, its test part."""
    parts = [x for x in (other.x_train, other.x_val, other.x_test) if x is not None]
    return np.concatenate(parts) if len(other.x_test) < 1000 else other.x_test


def chosen(given, rows):
    """Predictions of some of the images."""
    return type(given)(*(values[rows] for values in given))


def gallery(images, groups, parts):
    """Of every group the image of median entropy and the most uncertain one."""
    shown, titles = [], []
    for name, group in groups.items():
        order = np.argsort(group.total, kind="stable")
        for i in order[[len(order) // 2, -1]] if len(order) else ():
            k = group.mean[i].argmax()
            told = f"{parts.class_names[k].lower()} {group.mean[i, k]:.2f} ± {group.std[i, k]:.2f}"
            split = f"{group.aleatoric[i]:.2f} + {group.epistemic[i]:.2f} nats"
            titles.append(f"{name}: {told}\n{split}")
            shown.append(images[name][i])
    pixels = data.to_images(np.stack(shown), parts.scaling)
    headline = "Of each group the image of median entropy and the most uncertain one"
    return style.styled(judgement.gallery)(pixels, titles, headline)


def sections(found: dict[str, Any]) -> list[str]:
    """Tables and pictures."""
    classes = [["", *found["classes"]]]
    classes += [[part, *(f"{n:,}" for n in counts)] for part, counts in found["counts"].items()]
    methods = list(found["groups"])
    groups = list(dict.fromkeys(name for of_method in found["groups"].values() for name in of_method))
    rows = [["", *methods]]
    for name in groups:
        cells = []
        for method in methods:
            group = found["groups"][method].get(name)
            told = group and f"{group['total']:.3f}, {group['epistemic']:.3f}"
            cells.append(f"{told}, {group['auroc']:.2f}" if told and name != "right" else told or "-")
        rows.append([name, *cells])
    return [
        "## The data",
        "",
        *study_page.table(classes),
        "",
        "![Examples of both classes in all parts](chest_xray/examples.png)",
        "",
        "## Learning curves",
        "",
        "![Validation NLL and accuracy by epoch](chest_xray/curves.png)",
        "",
        "Means over the seeds that were still training; the bands span them.",
        "",
        "## Does it know what is no X-ray?",
        "",
        *study_page.table(rows),
        "",
        f"Mean predictive entropy and its epistemic part in nats under {PASSES} forward passes, first seed.",
        "Third, of wrong X-rays the AUROC of the entropy for telling them from right ones, of others for",
        "telling them from X-rays. All images in grey, at the size and in the scale of the X-rays.",
        "",
        "![Entropy of right and wrong X-rays and of other images](chest_xray/entropy.png)",
        "",
        "![Two images of each group with what the posterior says](chest_xray/images.png)",
        "",
        "Most probable class ± standard deviation over the passes; entropy as aleatoric + epistemic part.",
        "`python scripts/predict.py RUN IMAGE` draws all passes of one image.",
        "",
    ]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs={title: [Config(seed=seed, **_COMMON, **how) for seed in SEEDS] for title, how in _METHODS.items()},
    columns=("accuracy", "auroc", "recall", "specificity", "nll", "ece", "aurc", "seconds"),
    overview=Overview("official test part", "auroc", "MAP", "VI, closed-form KL", ("dropout", "dropout")),
    evaluate={"num_draws": 100},
    quick=dict(epochs=2, limit=300, image_size=32),
    quick_evaluate={"num_draws": 10, "num_bootstrap": 20},
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
