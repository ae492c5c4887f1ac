"""Predict images with a finished run: what the model says, how sure it is, and what it leaves to a doctor.

    python scripts/predict.py RUN IMAGE...
    python scripts/predict.py RUN xrays/NORMAL/*.jpeg --label-from-folder
    python scripts/predict.py RUN IMAGE... --refer-above 0.5 --out FOLDER

Images go through the steps of training: as many pixels and channels, standardised alike. The class is the
most probable one; of two classes, class 1 where its probability reaches the threshold that
scripts/evaluate.py chose. An image is referred if its predictive entropy is above the limit chosen there, or
above --refer-above. The folder, RUN/predictions by default, collects the predictions of one run: those of an
image that was predicted before are replaced, which is told, all others stay; a folder of anything else is
refused. It gets a picture an image, and predictions.json, a list with one flat record an image:

    image                    absolute path; what a record is known by
    figure                   file name of the picture in the folder
    predicted                number of the decided class; predicted_name: its name
    class_names              K names, in the order of probs
    probs, probs_std         K probabilities, their mean over draws of the weights, and standard deviation
    num_draws                number of draws; with 1, probs_std and epistemic are 0 because nothing is known
    total                    entropy of probs in nats = aleatoric + epistemic
    aleatoric                mean entropy of the draws: what remains if the weights are known
    epistemic                the doubt about the weights
    threshold                on the probability of class 1, or null: the most probable class
    referral_uncertainty     the limit on total, or null
    refer                    whether total is above the limit, or null without one
    label, label_name        true class, if told, or null; correct: whether it is the predicted one
"""

import dataclasses
import math
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from bnn_jax import cli, data, experiment, metrics, pixels, runs, settings, style, trained
from bnn_jax.report import prediction
from bnn_jax.types import UserError

SCRIPT, RESULT, EVALUATION = "predict", "predictions.json", "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Config:
    run: tyro.conf.Positional[Path]  # folder of scripts/train.py, trained on images
    images: tyro.conf.Positional[tuple[Path, ...]]  # image files
    out: Path | None = None  # folder of the predictions; default RUN/predictions
    num_draws: int = 100  # posterior draws, or all there are if that is fewer
    label: str | None = None  # true class of all images, by name or number
    label_from_folder: bool = False  # the true class of an image is the name of its folder
    refer_above: float | None = None  # nats of entropy; default: what scripts/evaluate.py chose
    skip_bad: bool = False  # leave out what cannot be read, and list it, instead of stopping


class Rule(NamedTuple):
    """How probabilities become decisions."""

    threshold: float | None  # on the probability of class 1; None: the most probable class
    uncertainty: float | None  # nats of entropy above which an image is referred; None: no image is
    note: str  # what a user should know about it


class Images(NamedTuple):
    """What was read. n images of the shape of training."""

    paths: list[Path]  # n
    x: np.ndarray  # (n, H, W, C) uint8
    resized: int  # how many were not of the size of training, though training resized nothing
    left_out: list[str]  # what could not be read, and why


def main(config: Config) -> None:
    """Read, predict, write, print."""
    console = Console()
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    if config.num_draws < 1:
        raise UserError(f"--num-draws must be at least 1, not {config.num_draws}")
    run = trained.load(config.run)
    check_images(config.run, run)
    rule = decision(config, run)
    images = read(config, run)
    labels = true_classes(config, run, images.paths)
    probs, records = ask(run, images, config.num_draws, rule, labels)
    out = config.out or config.run / "predictions"
    of_run = runs.read_mark(config.run, experiment.SCRIPT) | {"fingerprint": run.data["fingerprint"]}
    runs.claim(out, SCRIPT, of_run, settings.FREE)
    replaced, others = collect(out, records)
    seen = shown(run, images.x)
    for i in track(range(len(records)), "pictures", console=console, transient=True):
        picture = prediction.figure(seen[i], probs[:, i], records[i])
        style.save(picture, out / records[i]["figure"], dpi=150)
    console.print(prediction.console(records))
    say()
    for note in notes(run, records, rule, images, replaced, others):
        say(f"- {note}")
    say(f"pictures and {RESULT}: {out}")


def check_images(folder: Path, run: trained.Trained) -> None:
    """Raises a `UserError` unless the run classifies images."""
    kind = "a table" if len(run.data["x_shape"]) != 3 else "a regression"
    if kind == "a table" or not run.data["num_classes"]:
        raise UserError(f"{folder} was trained on {run.data['name']}, {kind}; this needs classes of images")


def names(run: trained.Trained) -> list[str]:
    """A name for each class."""
    return run.data["class_names"] or [f"class {k}" for k in range(run.data["num_classes"])]


def decision(config: Config, run: trained.Trained) -> Rule:
    """The rule that `scripts/evaluate.py` left in the run folder, with `--refer-above` carried out."""
    path = config.run / EVALUATION
    found = runs.read_json(path)
    given = found if isinstance(found, dict) else {}
    threshold, limit = given.get("threshold"), given.get("referral_uncertainty")
    most = 1 if run.data["num_classes"] == 2 else -1  # no number: a threshold is for two classes
    for value, top in ((threshold, most), (limit, math.inf)):
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= top):
            raise UserError(f"{path} holds no usable threshold or limit; run scripts/evaluate.py again")
    decided = "the most probable class is predicted"
    if threshold is not None:
        decided = f"{names(run)[1]} is predicted from a probability of {threshold:.3f} on"
    if config.refer_above is not None:
        if not config.refer_above >= 0:
            raise UserError(f"--refer-above is an entropy in nats, 0 or more, not {config.refer_above}")
        limit, why = config.refer_above, "as --refer-above says"
    elif found is None:
        return Rule(None, None, f"{decided} and none is referred: run scripts/evaluate.py {config.run} first")
    elif limit is None:
        return Rule(threshold, None, f"{decided}; none is referred, as the run has no validation data")
    elif "referral_share" in given:
        why = f"as the most uncertain {100 * given['referral_share']:.3g} % of the validation data"
    else:
        why = "as scripts/evaluate.py chose"
    return Rule(threshold, limit, f"{decided}; referred is what has more than {limit:.3f} nats, {why}")


def read(config: Config, run: trained.Trained) -> Images:
    """The images as training saw such files, every file once.

    An image of another size is resized as training would have done with --image-size.

    Raises:
        UserError: no images; one or more that cannot be read, all named, unless `--skip-bad`.
    """
    height, width, channels = run.data["x_shape"]
    paths = list({os.path.abspath(path): path for path in config.images}.values())
    if not paths:
        raise UserError("no images: name at least one file")
    kept, found, bad, resized = [], [], [], 0
    for path in paths:
        try:
            image = pixels.read(path, run.config.image_size, channels)
            if image.shape[:2] != (height, width):
                if height != width:
                    size = f"{image.shape[1]} x {image.shape[0]}"
                    raise UserError(
                        f"{path} is {size} pixels, the run was trained on {width} x {height}: resize it"
                    )
                image = pixels.read(path, height, channels)
                resized += 1
        except UserError as error:
            bad.append(str(error))
            continue
        kept.append(path)
        found.append(image)
    if bad and not (config.skip_bad and kept):
        told = "\n  ".join(["", *bad]) if len(bad) > 1 else f" {bad[0]}"
        hint = "" if config.skip_bad else "; --skip-bad leaves them out"
        raise UserError(f"{len(bad)} of {len(paths)} images cannot be predicted{hint}:{told}")
    return Images(kept, np.stack(found), resized, bad)


def true_classes(config: Config, run: trained.Trained, paths: list[Path]) -> list[int | None]:
    """The true class of each image, or None where it is not known.

    Raises:
        UserError: a name that is no class, every such folder named; both options.
    """
    if config.label is not None and config.label_from_folder:
        raise UserError("--label and --label-from-folder exclude each other")
    if config.label is None and not config.label_from_folder:
        return [None] * len(paths)
    known = {str(k): k for k in range(run.data["num_classes"])}
    known |= {name: k for k, name in enumerate(names(run))}  # a name counts before a number
    given = [
        config.label if config.label is not None else Path(os.path.abspath(path)).parent.name
        for path in paths
    ]
    unknown = ", ".join(dict.fromkeys(repr(name) for name in given if name not in known))
    if unknown:
        option = "--label" if config.label is not None else "--label-from-folder"
        raise UserError(f"{option}: no class {unknown}; the run has {', '.join(map(repr, names(run)))}")
    return [known[name] for name in given]


def ask(
    run: trained.Trained, images: Images, num_draws: int, rule: Rule, labels: Iterable[int | None]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(D, n, K) probabilities of every draw, and the records without their figures."""
    probs, noise = trained.each(run, trained.inputs(run, data.to_float(images.x)), num_draws)
    mean, std = probs.mean(0, dtype=np.float64), probs.std(0, dtype=np.float64)
    # As `predict.build`, which a mean over crops makes more than `metrics.uncertainty`.
    aleatoric = noise.mean(0, dtype=np.float64)
    total = np.maximum(metrics.entropy(mean), aleatoric)  # Jensen: less by rounding only
    known = names(run)
    decided = mean.argmax(1) if rule.threshold is None else (mean[:, 1] >= rule.threshold).astype(int)
    records = []
    for i, (path, label) in enumerate(zip(images.paths, labels, strict=True)):
        k = int(decided[i])
        records.append(
            {
                "image": os.path.abspath(path),
                "predicted": k,
                "predicted_name": known[k],
                "class_names": known,
                "probs": mean[i].tolist(),
                "probs_std": std[i].tolist(),
                "num_draws": len(probs),
                "total": float(total[i]),
                "aleatoric": float(aleatoric[i]),
                "epistemic": float(total[i] - aleatoric[i]),
                "threshold": rule.threshold,
                "referral_uncertainty": rule.uncertainty,
                "refer": None if rule.uncertainty is None else bool(total[i] > rule.uncertainty),
                "label": label,
                "label_name": None if label is None else known[label],
                "correct": None if label is None else k == label,
            }
        )
    return probs, records


def collect(out: Path, records: list[dict[str, Any]]) -> tuple[int, int]:
    """Give every record its figure's name and write them beside the earlier ones of other images.

    Returns:
        how many earlier records were replaced, and how many others there are.
    """
    earlier = {record["image"]: record for record in runs.read_json(out / RESULT) or []}
    taken = {record["figure"].lower() for record in earlier.values()}
    taken |= {path.name.lower() for path in out.iterdir()}  # lower: some file systems tell no case
    for record in records:
        before = earlier.get(record["image"])
        record["figure"] = before["figure"] if before else free(Path(record["image"]).stem, taken)
        taken.add(record["figure"].lower())
    now = {record["image"]: record for record in records}
    runs.write_json(out / RESULT, list((earlier | now).values()))
    return len(earlier.keys() & now.keys()), len(earlier.keys() - now.keys())


def free(stem: str, taken: set[str]) -> str:
    """A name for a figure that is not taken: x.png, or x-2.png, x-3.png, ..."""
    name, number = f"{stem}.png", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}.png"
    return name


def shown(run: trained.Trained, images: np.ndarray) -> np.ndarray:
    """(n, H, W) or (n, H, W, 3) in [0, 1]: what the network sees; the whole image if it sees many crops."""
    seen = images if run.config.crop_stride is not None else run.over(lambda x: x)(images)
    seen = data.to_float(np.asarray(seen))
    return seen[..., 0] if seen.shape[-1] == 1 else seen


def notes(run, records, rule, images, replaced, others) -> list[str]:
    """What stands below the table."""
    number = records[0]["num_draws"]
    told = [f"{number} draws of the weights: mean ± standard deviation of the probability; entropies in nats"]
    if number == 1:
        told = ["a single set of weights: how sure the model is of them (epistemic, ±) is not known; nats"]
    told.append(rule.note)
    if images.resized:
        height, width, _ = run.data["x_shape"]
        what = (
            f"{images.resized} of {len(records)} images resized to the {width} x {height} pixels of training"
        )
        told.append(f"{what}, whose images came in that size: made in another way, they may differ")
    told += [f"left out: {line}" for line in images.left_out]
    if replaced:
        told.append(f"earlier predictions of {replaced} of these images are replaced")
    if others:
        told.append(f"{others} earlier predictions of other images are kept")
    return told


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
