"""Redo a study: train and judge every run of it, keep the results, write its table.

    python benchmarks/study.py mnist                a study of benchmarks/studies, by name
    python benchmarks/study.py mnist --table        only write the table again from the recorded results

A study is a module with a docstring (what is compared, on which split), `RUNS` (label -> the configurations
of scripts/train.py, one a fold or seed), `EVALUATE` (settings of scripts/evaluate.py), `COLUMNS` (scores) and
`PUBLISHED` (label -> scores that others report, with their source). The same command continues an interrupted
study. Results go to docs/results/NAME.json, the table to docs/studies/NAME.md.
"""

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from bnn_jax import cli, experiment, runs
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
BETTER = {
    "nll": "↓",
    "ece": "↓",
    "brier": "↓",
    "rmse": "↓",
    "interval_width_95": "↓",
    "aurc": "↓",
    "seconds": "",
}
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
                if not (run / "evaluation.json").exists():
                    console.rule(f"{label}, run {fold + 1} of {len(study.RUNS[label])}")
                    settings = dataclasses.replace(settings, out=run, data_dir=config.data_dir)
                    script("train").main(settings)
                    evaluate = script("evaluate")
                    evaluate.main(evaluate.Config(run=run, data_dir=config.data_dir, **study.EVALUATE))
                    jax.clear_caches()  # of compiled programs that no later run can use
        missing = [
            label
            for label, all_ in study.RUNS.items()
            if not all((folder(config, label, i) / "evaluation.json").exists() for i in range(len(all_)))
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


def collect(config: Config, study: ModuleType) -> dict[str, Any]:
    """Label -> command, scores of every run, seconds and what was trained; and where all that ran."""
    found: dict[str, Any] = {}
    for label, settings in study.RUNS.items():
        records = []
        for fold in range(len(settings)):
            run = folder(config, label, fold)
            scores = runs.read_json(run / "evaluation.json")
            environment = scores.pop("environment")
            kept = {k: v for k, v in scores.items() if k not in ("config", "corruptions")}
            outcome = runs.read_json(run / "outcome.json") or runs.read_json(run / "progress.json")
            records.append({**kept, "seconds": outcome["seconds"], "environment": environment})
        found[label] = {"command": command(settings[0]), "runs": records}
    return {"study": config.study, "methods": found}


def command(settings: experiment.Config) -> str:
    """The command line of scripts/train.py that gives these settings."""
    words = ["python scripts/train.py"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in ("out", "data_dir") or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag)
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return " ".join(words)


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
    first = next(iter(record["methods"].values()))["runs"][0]
    several = max(len(entry["runs"]) for entry in record["methods"].values()) > 1
    meaning = "mean ± standard error over the splits" if several else first["interval"]
    environment = first["environment"]
    where = "{num_cores} cores ({platform}), Python {python}, jax {jax}, commit {git_commit}".format(
        **environment
    )
    lines = [
        f"# {title.rstrip('.')}",
        "",
        text.strip(),
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Ours in bold; in brackets or after ±: {meaning}. {first['data']['num_train']:,} training, "
        f"{first['data']['num_val']:,} validation and {first['data']['num_test']:,} test examples; "
        f"{first['num_draws']} posterior draws. Seconds of training on {where}.",
        "",
        f"Everything on this page by `python benchmarks/study.py {name}`; single runs by",
        "",
        "```text",
        *(entry["command"] for entry in record["methods"].values()),
        "```",
        "",
    ]
    return "\n".join(lines)


def cell(records: list[dict[str, Any]], column: str) -> str:
    """A score: of one run with its interval, of several as mean ± standard error."""
    values = [record[column] for record in records if column in record]
    if not values:
        return "-"
    digits = 0 if column == "seconds" else 3
    if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"
    interval = records[0].get(f"{column}_interval")
    ends = "" if interval is None else f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
    return f"{values[0]:.{digits}f}{ends}"


def _module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    cli.run(main, Config, __doc__, cpu_devices=lambda config: 2)  # chains side by side
