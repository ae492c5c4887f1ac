"""Melanoma or naevus, what is missing: pixels, images, another prior, or the split.

The study of skin lesions ([isic](isic.md)) stays far below the recall of 0.85 to 0.88 and the precision of
0.89 to 0.945 that were published for crops of images of 299x299 pixels. Four things could account for that,
and each is varied here alone, the rest as in that study: pixels (32, 64 and 128 a side; five layers, one
block more at 128, one less at 32), training images (137 of the 329), the prior (maximum likelihood, a prior
N(0, 10^2) that says nothing, with the best of all evaluations kept; MC dropout without a prior; VI with the
KL at a hundredth of its weight), and where the split is drawn. For the last, every image of 72 pixels becomes
nine crops of 64, 4 pixels apart, which are then divided 60 : 15 : 25 as if they were images, so that crops of
one lesion lie on both sides; or with all nine crops of a lesion on one side. Network (maximum likelihood), at
most 20 epochs and number of crops are equal; scores are of single crops.

What is missing: not pixels, as nothing changes beyond the errors from 32 to 128 a side. More images help all
of them. The prior takes a little: 329 images do not outweigh what N(0, 0.1^2) says of 286,000 weights, so
that MAP and VI find fewer melanomas than the same networks without a prior, or under a hundredth of the KL,
where the scores vary more from seed to seed; all of it is far from the published figures. Where the split is
drawn makes the whole difference. With crops of a lesion on both sides the network seems to find nine of ten
melanomas; with them on one side, one of two. It is the same network: it knows the lesions again. So recall
and precision of crops that were divided after cropping say nothing of new lesions; whether the published ones
are of that kind is not told. The report on the data of such a run warns of the copies.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnn_jax import augment, data, experiment, runs, splits, study
from bnn_jax.commands import evaluate
from bnn_jax.report import study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run
from bnn_jax.types import Dataset

SEEDS = range(3)
NUM_DRAWS = 50
CROP, STRIDE = 64, 4
JUDGEMENT = {"num_draws": 1}  # of the crops, by one network
COLUMNS = ("auroc", "accuracy", "recall", "precision", "nll", "ece")
SPLITS = {"crops of a lesion on one side": True, "crops of a lesion on both sides": False}
_COMMON = dict(
    dataset="folder",
    path=Path("isic_uda1"),
    split="random",
    ratios=(60.0, 15.0, 25.0),
    positive="melanoma",
    prior="isotropic(std=0.1)",
    batch_size=32,
    epochs=40,
    eval_every=50,
    flip_horizontal=True,
    flip_vertical=True,
)
_METHODS = {
    "maximum likelihood": dict(method="map", prior="isotropic(std=10)", patience=8),
    "MAP": dict(method="map"),
    "VI": dict(method="vi", estimator="sampling", beta_warmup=200),
}
_WEAKER = {  # a prior that says less
    "VI, KL weight 0.01": dict(_METHODS["VI"], beta=0.01),
    "dropout without a prior": dict(_METHODS["maximum likelihood"], method="dropout(rate=0.25)"),
}
_SIZES = {
    "32 pixels": dict(image_size=32, net="blocks(widths=(16, 32), hidden=64)"),
    "64 pixels": dict(image_size=64, net="blocks(widths=(16, 32, 64), hidden=64)"),
    "64 pixels, 137 images": dict(image_size=64, net="blocks(widths=(16, 32, 64), hidden=64)", limit=137),
    "128 pixels": dict(image_size=128, net="blocks(widths=(16, 32, 64, 64), hidden=64)"),
}
_ALL = {
    f"{size}, {name}": of_size | how for size, of_size in _SIZES.items() for name, how in _METHODS.items()
} | {f"64 pixels, {name}": _SIZES["64 pixels"] | how for name, how in _WEAKER.items()}


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """The same crops divided in two ways, a run each and seed."""
    found: dict[str, Any] = {name: [] for name in SPLITS}
    for place in folders["64 pixels, maximum likelihood"]:
        config = experiment.reopen(place).config
        config = dataclasses.replace(config, image_size=72, epochs=1 if quick else 20)
        images = load(config)
        for name, whole in SPLITS.items():
            own = place.with_name(f"{runs.slug(name)}-{config.seed}")
            if not study.judged(own, config, JUDGEMENT):
                divided = crops(images, config, whole)
                study.train_and_judge(dataclasses.replace(config, out=own), divided, JUDGEMENT)
            scores = runs.read_json(own / evaluate.RESULT)
            found[name].append({column: scores[column] for column in COLUMNS})
    return found


def crops(images: Dataset, config: Config, whole: bool) -> Dataset:
    """All crops of all images as a data set of its own, divided anew.

    Args:
        whole: whether the crops of one image stay on one side.
    """
    joined = lambda of: np.concatenate([getattr(images, f"{of}_{part}") for part in splits.PARTS])
    pixels, labels = data.to_images(joined("x"), images.scaling), joined("y")
    names = [name for part in splits.PARTS for name in images.ids[part]]
    cut = np.moveaxis(np.asarray(augment.sliding_crops(pixels, CROP, STRIDE)), 0, 1)
    number = cut.shape[1]
    numbered = [f"{name} {i}" for name in names for i in range(number)]
    divided, how = data.partition(
        cut.reshape(-1, *cut.shape[2:]),
        np.repeat(labels, number),
        numbered,
        split="random",
        ratios=config.ratios,
        groups=np.repeat(names, number) if whole else None,
        seed=config.seed,
    )
    return data.assemble(
        f"{images.name} crops",
        **divided,
        num_classes=images.num_classes,
        class_names=images.class_names,
        description=f"{number} crops of each of {len(names)} images: {how}",
    )


def sections(found: dict[str, Any]) -> list[str]:
    """The table of the two splits."""
    rows = [["", *map(study_page.heading, COLUMNS)]]
    rows += [[name, *(study_page.cell(own, column) for column in COLUMNS)] for name, own in found.items()]
    return ["## Where the split is drawn", "", *study_page.table(rows), ""]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs={title: [Config(seed=seed, **(_COMMON | how)) for seed in SEEDS] for title, how in _ALL.items()},
    columns=(*COLUMNS, "seconds"),
    overview=Overview("melanoma, 128 pixels", "auroc", "128 pixels, maximum likelihood", "128 pixels, VI"),
    evaluate={"num_draws": NUM_DRAWS},
    quick=dict(epochs=2, limit=40),
    quick_evaluate={"num_draws": 5, "num_bootstrap": 20},
    quick_labels=["64 pixels, maximum likelihood", "32 pixels, VI"],
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
