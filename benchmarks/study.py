"""Redo a study: train and judge every run of it, keep the results, write its table.

    python benchmarks/study.py mnist_lenet          a study of benchmarks/studies, by name
    python benchmarks/study.py mnist_lenet --table  only write the table again from the recorded results

A study is a module with a docstring (what is compared, on which split), `RUNS` (label -> the
configurations of scripts/train.py, one a fold or seed), `EVALUATE` (settings of scripts/evaluate.py),
`COLUMNS` (scores), `PUBLISHED` (label -> scores that others report, with their source) and `REFERRAL`
(whether to show that table). The same command continues an interrupted study. Results go to
docs/results/NAME.json, the table to docs/studies/NAME.md.
"""

import dataclasses
import importlib.util
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from bnn_jax import cli, experiment, runs
from bnn_jax.settings import FREE
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
LOWER = ("nll", "ece", "ece_classwise", "brier", "aurc", "rmse", "mae", "interval_width_95")
BETTER = dict.fromkeys(LOWER, "↓") | dict.fromkeys(
    ("seconds", "temperature", "threshold", "coverage_50", "coverage_90", "coverage_95"), ""
)
TITLES = {"nll": "NLL, nats", "ece": "ECE", "rmse": "RMSE", "auroc": "AUROC", "aurc": "AURC"}


@dataclasses.dataclass(frozen=True)
class Config:
    study: tyro.conf.Positional[str]  # its name
    out: Path = Path("runs/studies")  # where the run folders go
    data_dir: Path | None = None  # folder with raw data; default: the environment variable BNN_JAX_DATA
    only: tuple[str, ...] = ()  # labels to run now; the table waits until all are there
    table: bool = False  # train and judge nothing


def main(config: Config) -> None:
    """Run what is missing, then write results and table."""
    console = Console()
    study = load(config.study)
    results = ROOT / "docs" / "results" / f"{config.study}.json"
    if not config.table:
        unknown = ", ".join(sorted(set(config.only) - set(study.RUNS)))
        if unknown:
            raise UserError(f"{config.study} has no run {unknown}: choose from {', '.join(study.RUNS)}")
        for label in config.only or study.RUNS:
            for fold, settings in enumerate(study.RUNS[label]):
                run = folder(config, label, fold)
                if not judged(run, settings, study.EVALUATE):
                    console.rule(f"{label}, run {fold + 1} of {len(study.RUNS[label])}")
                    settings = dataclasses.replace(settings, out=run, data_dir=config.data_dir)
                    script("train").main(settings)
                    evaluate = script("evaluate")
                    evaluate.main(evaluate.Config(run=run, data_dir=config.data_dir, **study.EVALUATE))
                    jax.clear_caches()  # of compiled programs that no later run can use
        missing = [
            label
            for label, all_ in study.RUNS.items()
            if not all(
                judged(folder(config, label, i), settings, study.EVALUATE) for i, settings in enumerate(all_)
            )
        ]
        if missing:
            console.print(f"still missing: {', '.join(missing)}; no table yet")
            return
        results.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(results, collect(config, study))
    record = runs.read_json(results)
    if record is None:
        raise UserError(f"no results of {config.study} yet: run it without --table")
    page = ROOT / "docs" / "studies" / f"{config.study}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(markdown(config.study, study, record))
    console.print(f"table: {page}", highlight=False, soft_wrap=True)


def load(name: str) -> ModuleType:
    """The module of a study."""
    names = sorted(path.stem for path in (ROOT / "benchmarks" / "studies").glob("*.py"))
    if name not in names:
        raise UserError(f"unknown study {name!r}: choose from {', '.join(names)}")
    return _module(name, ROOT / "benchmarks" / "studies" / f"{name}.py")


def script(name: str) -> ModuleType:
    """A script of this project as a module."""
    return _module(name, ROOT / "scripts" / f"{name}.py")


def folder(config: Config, label: str, fold: int) -> Path:
    """The run folder of one run of a study."""
    name = "".join(c if c.isalnum() else "-" for c in label.lower())
    return config.out / config.study / f"{name}-{fold}"


def judged(run: Path, settings: experiment.Config, evaluate: dict[str, Any]) -> bool:
    """Whether a run is evaluated, and as the study says now.

    Raises:
        UserError: it was trained with other settings: the study was changed since.
    """
    record = runs.read_json(run / "evaluation.json")
    if record is None:
        return False
    wanted = runs.as_config(settings, leave_out=("out", *FREE))
    changed = ", ".join(name for name in wanted if record["config"].get(name) != wanted[name])
    if changed:
        raise UserError(
            f"{run} was trained with other settings ({changed}): delete it, or choose another --out"
        )
    return record["evaluation"].items() >= evaluate.items()


def collect(config: Config, study: ModuleType) -> dict[str, Any]:
    """Label -> command, scores of every run, seconds and what was trained; and where all that ran."""
    found: dict[str, Any] = {}
    for label, settings in study.RUNS.items():
        records = []
        for fold in range(len(settings)):
            run = folder(config, label, fold)
            scores = runs.read_json(run / "evaluation.json")
            environment = scores.pop("environment")
            kept = {k: v for k, v in scores.items() if k not in ("config", "evaluation", "corruptions")}
            # Of chains: sampling, and the optimisation that found their starts.
            spent = ("outcome.json", "progress.json", "map/outcome.json")
            seconds = sum((runs.read_json(run / file) or {"seconds": 0})["seconds"] for file in spent)
            records.append({**kept, "seconds": seconds, "environment": environment})
        found[label] = {"command": command(settings[0]), "runs": records}
    return {"study": config.study, "methods": found}


def command(settings: experiment.Config) -> str:
    """The command line of scripts/train.py that gives these settings."""
    words = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in ("out", "data_dir") or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag)
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return f"python scripts/train.py {shlex.join(words)}".strip()


def markdown(name: str, study: ModuleType, record: dict[str, Any]) -> str:
    """The page of a study: its docstring, the table, the commands."""
    title, _, text = study.__doc__.strip().partition("\n")
    header = [
        "",
        *(f"{TITLES.get(c, c.replace('_', ' '))} {BETTER.get(c, '↑')}".strip() for c in study.COLUMNS),
    ]
    rows = [header, ["---", *["---:"] * len(study.COLUMNS)]]
    for label, published in study.PUBLISHED.items():
        rows.append([label, *(str(published.get(c, "-")) for c in study.COLUMNS)])
    for label, entry in record["methods"].items():
        rows.append([f"**{label}**", *(cell(entry["runs"], c) for c in study.COLUMNS)])
    all_runs = [run for entry in record["methods"].values() for run in entry["runs"]]
    several = len(all_runs) > len(record["methods"])
    meaning = "mean ± standard error over the splits" if several else all_runs[0]["interval"]
    where = "{num_cores} cores ({platform}), Python {python}, jax {jax}, commit {git_commit}"
    places = dict.fromkeys(where.format(**run["environment"]) for run in all_runs)
    counts = "{num_train:,} training, {num_val:,} validation and {num_test:,} test examples"
    sizes = dict.fromkeys(counts.format(**run["data"]) for run in all_runs)
    num_draws = max(run["num_draws"] for run in all_runs)
    lines = [
        f"# {title.rstrip('.')}",
        "",
        text.strip(),
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Ours in bold; in brackets or after ±: {meaning}. {', or '.join(sizes)}; predictions average "
        f"{num_draws} posterior draws, or all that a method has. Seconds of training on {'; '.join(places)}.",
        "",
        *(referral(record) if study.REFERRAL else []),
        f"Everything on this page by `python benchmarks/study.py {name}`; single runs by",
        "",
        "```text",
        *(entry["command"] for entry in record["methods"].values()),
        "```",
        "",
    ]
    return "\n".join(lines)


def referral(record: dict[str, Any]) -> list[str]:
    """Lines with accuracy and recall of the rest when the most uncertain share goes to a doctor."""
    shares = [row["referred"] for row in next(iter(record["methods"].values()))["runs"][0]["referral"]]
    lines = [
        "## When the most uncertain images go to a doctor",
        "",
        "Accuracy and recall of the images that are still answered, by the share that is referred.",
        "",
        f"| | {' | '.join(f'{share:.0%}' for share in shares)} |",
        f"| --- | {' | '.join('---:' for _ in shares)} |",
    ]
    for label, entry in record["methods"].items():
        by_share = zip(*(run["referral"] for run in entry["runs"]), strict=True)
        cells = [", ".join(_mean(rows, name) for name in ("accuracy", "recall")) for rows in by_share]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def cell(records: list[dict[str, Any]], column: str) -> str:
    """A score: of one run with its interval, of several as mean ± standard error."""
    records = [record for record in records if column in record]
    if not records:
        return "-"
    values = [record[column] for record in records]
    digits = 0 if column == "seconds" else 3
    if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"
    interval = records[0].get(f"{column}_interval")
    ends = "" if interval is None else f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
    return f"{values[0]:.{digits}f}{ends}"


def _mean(records, name):
    """The mean of what may be undefined, as recall is without examples of class 1."""
    values = [record[name] for record in records if name in record]
    return f"{np.mean(values):.3f}" if values else "-"


def _module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    cli.run(main, Config, __doc__, cpu_devices=lambda config: 2)  # chains side by side
