"""Judge a trained run on its test data: scores with intervals, threshold, calibration, referral, shifts.

    python scripts/evaluate.py RUN
    python scripts/evaluate.py RUN --recall 0.97 --corruptions
    python scripts/evaluate.py RUN --ood-dataset medmnist --ood-path other.npz

The threshold of two classes, the temperature and the uncertainty from which an image is referred are
chosen on validation data and applied to the test data. The run folder gets `evaluation.json` (flat names,
each score with its `<name>_interval`), `evaluation.html` and the pictures in `evaluation/`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from bnn_jax import (
    corruptions,
    data,
    diagnostics,
    experiment,
    predict,
    regression_scores,
    runs,
    scores,
    splits,
    trained,
)
from bnn_jax.report import evaluation
from bnn_jax.types import Dataset, UserError

RESULT = "evaluation.json"
SEVERITIES = range(1, 6)
NUM_CHECKED = 500  # test examples whose function values are compared between chains


@dataclasses.dataclass(frozen=True)
class Config:
    run: tyro.conf.Positional[Path]  # folder of scripts/train.py
    num_draws: int = 100  # posterior draws, or all there are if that is fewer
    recall: float | None = None  # that the threshold of two classes must reach on class 1; default Youden's J
    refer: float = 0.1  # share of validation examples above the uncertainty of referral
    ood_dataset: str | None = None  # data set whose test part the model should find strange
    ood_path: Path | None = None  # its file or folder
    corruptions: bool = False  # also noise, blur, contrast, brightness, JPEG at five levels each
    num_bootstrap: int = 1000  # replicates behind every interval
    data_dir: Path | None = None  # folder with raw data; default: the environment variable BNN_JAX_DATA


def main(config: Config, found: Dataset | None = None) -> None:
    """Predict, score, write, print.

    Args:
        found: the run's data, if they were loaded before.
    """
    console = Console()
    if not 0 < config.refer < 1:
        raise UserError(f"--refer must lie between 0 and 1, not {config.refer}")
    if config.num_draws < 1 or config.num_bootstrap < 2:
        raise UserError("--num-draws must be at least 1, and --num-bootstrap at least 2")
    run = trained.load(config.run)
    options = run.config
    if config.data_dir is not None:
        options = dataclasses.replace(options, data_dir=config.data_dir)
    found = found or experiment.load_data(options)
    if data.fingerprint(found) != run.data["fingerprint"]:
        raise UserError(f"the data are not those that {config.run} was trained on; bring them back")
    check(config, run, found)
    num_draws = trained.count(run, config.num_draws)
    judge = classification if found.num_classes else regression
    results, evidence = judge(config, run, found, num_draws, console)
    if run.chains is not None:
        results |= convergence(run, found.x_test)
    results |= {
        "num_draws": num_draws,
        "data": {
            name: run.data[name] for name in ("name", "description", "num_train", "num_val", "num_test")
        },
        "config": runs.as_config(run.config),
        "evaluation": runs.as_config(config, leave_out=("run", "data_dir")),
        "environment": runs.environment(),
    }
    runs.write_json(config.run / RESULT, results)
    evaluation.write(config.run, results, evidence)
    console.print(evaluation.console(results))
    console.print(f"report: {config.run / 'evaluation.html'}", highlight=False, soft_wrap=True)


def check(config: Config, run: trained.Trained, found: Dataset) -> None:
    """Refuse options that this run has no use for, before anything is predicted."""
    if config.ood_path is not None and config.ood_dataset is None:
        raise UserError("--ood-path needs --ood-dataset, the kind of its file or folder")
    if not found.num_classes:
        if config.recall is not None or config.ood_dataset is not None or config.corruptions:
            raise UserError("--recall, --ood-dataset and --corruptions are for images with classes")
        return
    if config.recall is not None:
        if not 0 < config.recall <= 1:
            raise UserError(f"--recall must lie in (0, 1], not {config.recall}")
        if found.num_classes != 2:
            raise UserError(f"--recall is for two classes; {found.name} has {found.num_classes}")
        if found.x_val is None:
            raise UserError(f"--recall needs validation data to choose the threshold; {found.name} has none")
        if len(np.unique(found.y_val)) < 2:
            raise UserError(f"--recall needs both classes in the validation data of {found.name}")
    shape = run.data["x_shape"]
    if config.corruptions and (len(shape) != 3 or shape[-1] not in (1, 3)):
        raise UserError(f"--corruptions is for images; {found.name} has examples of shape {tuple(shape)}")
    if config.corruptions and run.config.view != "rgb":
        raise UserError(f"--corruptions is for pixels as they are; the run sees the view {run.config.view}")


def classification(
    config: Config, run: trained.Trained, found: Dataset, num_draws: int, console: Console
) -> tuple[dict[str, Any], evaluation.Evidence]:
    """Everything about classes: results for the file, and what the pictures are drawn from."""
    other = None if config.ood_dataset is None else foreign(config, run)
    predictive = predict.build(run.model.apply, run.model.likelihood, run.draw, over=run.over)
    ask = lambda x: predictive(run.source, x, num_draws)
    test, labels = ask(found.x_test), np.asarray(found.y_test)
    results: dict[str, Any] = {}
    threshold = scaled = None
    if found.x_val is not None:
        val = ask(found.x_val)
        if found.num_classes == 2 and len(np.unique(found.y_val)) < 2:
            console.print("no threshold: the validation data hold one class only", highlight=False)
        elif found.num_classes == 2:
            rule = "youden" if config.recall is None else ("recall", config.recall)
            threshold = scores.choose_threshold(val.mean, found.y_val, rule)
            told = "Youden's J" if config.recall is None else f"recall of at least {config.recall}"
            results |= {"threshold": threshold, "threshold_rule": f"{told} on validation data"}
        results["temperature"] = scores.temperature(val.mean, found.y_val)
        scaled = scores.scale(test.mean, results["temperature"])
        after = scores.classification(scaled, labels)
        results |= {f"{name}_scaled": after[name] for name in ("nll", "brier", "ece", "ece_classwise")}
        results["referral_share"] = config.refer
        results["referral_uncertainty"] = float(np.quantile(val.total, 1 - config.refer))
    rates = scores.weighted_classification(test.mean, labels, threshold)

    def score(counts):
        rows = np.repeat(np.arange(len(labels)), counts.astype(int))
        drawn = test.mean[rows], labels[rows], test.total[rows]
        return rates(counts) | {"aurc": scores.risk_coverage(*drawn, threshold)[2]}

    results |= with_intervals(config, run, found, score)
    results["confusion"] = scores.confusion(test.mean, labels, threshold).tolist()
    results["referral"] = scores.referral(test.mean, labels, test.total, threshold=threshold)
    strange = {}
    if other is not None:
        name = config.ood_path.stem if config.ood_path else config.ood_dataset
        outside = ask(other)
        strange[name] = outside.epistemic
        results["ood"] = {
            name: {
                "auroc": scores.ood_auroc(test.epistemic, outside.epistemic),
                "auroc_total": scores.ood_auroc(test.total, outside.total),
                "num_examples": len(other),
            }
        }
    if config.corruptions:
        results["corruptions"] = shifted(config, run, found, ask, threshold, console)
    return results, evaluation.Evidence(
        "classification",
        labels=labels,
        probs=test.mean,
        aleatoric=test.aleatoric,
        epistemic=test.epistemic,
        images=data.to_images(found.x_test, found.scaling),
        ids=found.ids.get("test"),
        class_names=found.class_names or None,
        threshold=threshold,
        probs_scaled=scaled,
        ood=strange,
        corruptions=results.get("corruptions", {}),
    )


def regression(
    config: Config, run: trained.Trained, found: Dataset, num_draws: int, console: Console
) -> tuple[dict[str, Any], evaluation.Evidence]:
    """Everything about numbers, in the unit of the target."""
    means, variances = trained.regress(run, found.x_test, num_draws)
    y = trained.targets(run, found.y_test)
    score = regression_scores.weighted_regression(means, variances, y)
    results = with_intervals(config, run, found, score)
    return results, evaluation.Evidence("regression", means=means, variances=variances, y=y)


def convergence(run: trained.Trained, x: Any) -> dict[str, Any]:
    """Whether the chains agree about the test examples, and how many draws their number is worth."""
    num_chains, num_draws = run.chains.shape
    if num_draws < diagnostics.MIN_DRAWS:
        return {"num_chains": num_chains}
    values = trained.by_chain(run, x[: min(len(x), NUM_CHECKED)])
    return {"num_chains": num_chains, **diagnostics.function_summary(values)}


def with_intervals(
    config: Config, run: trained.Trained, found: Dataset, score: scores.Score
) -> dict[str, Any]:
    """Scores with intervals over test examples, or over the groups that the split kept together."""
    ids, groups, over = found.ids.get("test"), None, "test examples"
    if run.config.group_by is not None and ids:
        groups = splits.group_ids([Path(name).name for name in ids], run.config.group_by)  # as loaders do
        over = f"{len(np.unique(groups))} groups of test examples"
    count = len(found.y_test)
    intervals = scores.bootstrap(
        score, count, seed=run.config.seed, replicates=config.num_bootstrap, groups=groups
    )
    results = scores.with_intervals(score(np.ones(count)), intervals)
    return results | {"interval": f"95 % bootstrap interval over {over}"}


def foreign(config: Config, run: trained.Trained) -> np.ndarray:
    """The test part of the other data set as the network sees it."""
    data_dir = config.data_dir or run.config.data_dir
    options = data.Options(dataset=config.ood_dataset, path=config.ood_path, data_dir=data_dir)
    return trained.foreign(run, options).x_test


def shifted(config, run, found, ask, threshold, console) -> dict[str, list[dict[str, float]]]:
    """Scores on corrupted test images: name -> one dict a severity."""
    images = np.clip(np.asarray(found.x_test) * found.scaling.scale + found.scaling.shift, 0, 1)
    records: dict[str, list[dict[str, float]]] = {}
    plan = [(name, severity) for name in corruptions.CORRUPTIONS for severity in SEVERITIES]
    for name, severity in track(plan, "corruptions", console=console, transient=True):
        worse = corruptions.apply(name, images, severity, run.config.seed)
        given = ask((worse - found.scaling.shift) / found.scaling.scale)
        all_scores = scores.classification(given.mean, found.y_test, threshold)
        kept = {key: all_scores[key] for key in ("accuracy", "nll", "ece", "auroc") if key in all_scores}
        kept["epistemic"] = float(given.epistemic.mean())
        records.setdefault(name, []).append({"severity": severity, **kept})
    return records
