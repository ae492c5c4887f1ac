"""A study: the same data and question under several methods, from one command to its page.

A study is a list of configurations of `scripts/train.py`, each label once a fold or seed; every run is
trained and evaluated in a folder of its own, so that the same command continues what was interrupted. The
page under docs/studies is made of the recorded results alone, each beside a digest of its settings: what is
recorded with the settings of today is not run again, on another machine neither. Pictures of the scores are
the study's own `draw`; what needs the runs themselves is its `analyse`, whose JSON and PNGs are recorded like
the scores, and whose study is recorded as a whole.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from bnn_jax import cli, data, experiment, runs, training
from bnn_jax.commands import evaluate, train
from bnn_jax.report import study_page
from bnn_jax.settings import FREE, Config
from bnn_jax.types import Dataset, UserError

RESULTS = "results.json"
Load = Callable[[Config], Dataset]  # the data of a run; those of the one before are kept


class Overview(NamedTuple):
    """A row of the README's table."""

    data: str  # what the score is of
    score: str
    network: str | None  # label of the deterministic network
    vi: str
    other: tuple[str, str] | None = None  # another posterior: name, label
    published: str | None = None  # label of what others report


class Study(NamedTuple):
    """What is compared."""

    script: Path
    text: str  # the page's title, an empty line, the question and what differs from the original
    runs: Mapping[str, Sequence[Config]]  # label -> one a fold or seed
    columns: Sequence[str]  # scores of the table
    overview: Overview
    evaluate: Mapping[str, Any] = {}  # settings of scripts/evaluate.py
    published: Mapping[str, Mapping[str, float]] = {}  # label -> scores that others report
    referral: bool = False  # whether to show that table
    quick: Mapping[str, Any] = {}  # settings of every run of `--quick`, which takes the first of each label
    quick_evaluate: Mapping[str, Any] = {}
    quick_labels: Sequence[str] | None = None  # what `--quick` runs of a long list; None for everything
    # (label -> its run folders, folder for PNGs, quick, load) -> JSON, of which `sections` makes lines
    analyse: Callable[[Mapping[str, Sequence[Path]], Path, bool, Load], Any] | None = None
    sections: Callable[[Any], Sequence[str]] = lambda found: []
    # (recorded scores by label, folder for PNGs) -> lines of the page
    draw: Callable[[Mapping[str, Any], Path], Sequence[str]] | None = None

    @property
    def name(self) -> str:
        return self.script.stem

    @property
    def root(self) -> Path:
        """The folder that `scripts`, `benchmarks` and `docs` are in."""
        parents = self.script.resolve().parents
        return next(p.parent for p in parents if p.name in ("scripts", "benchmarks"))

    @property
    def command(self) -> str:
        return f"python {self.script.resolve().relative_to(self.root)}"


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line of every study."""

    quick: bool = False  # everything once and small, in two minutes; the committed page stays as it is
    out: Path | None = None  # where run folders go; default runs/studies, or runs/quick
    data_dir: Path | None = None  # folder with raw data; default: the environment variable BNN_JAX_DATA
    only: tuple[str, ...] = ()  # labels to run now
    again: bool = False  # run also what the recorded results hold already
    table: bool = False  # train and judge nothing, only write the page again from the recorded results


def run(study: Study) -> None:
    """The script of a study: parse the command line, do what is missing, exit."""
    usage = f"    {study.command} [--quick]"
    text = study.text.strip()
    chains = [config for configs in study.runs.values() for config in configs]
    cli.run(
        lambda options: main(study, options),
        Options,
        f"{text.partition(chr(10))[0]}\n\n{usage}\n\nThe same command continues an interrupted study.",
        cpu_devices=lambda options: max(map(train.cpu_devices, chains)),
    )


def main(study: Study, options: Options) -> None:
    """Run what is missing, then write results and page."""
    console = Console()
    where = folder(study, options)
    page, results = where / f"{study.name}.md", where / RESULTS
    if not options.quick:
        docs = study.root / "docs"
        page, results = docs / "studies" / f"{study.name}.md", docs / "results" / f"{study.name}.json"
    plan = planned(study, options.quick)
    if unknown := sorted(set(options.only) - set(plan)):
        raise UserError(f"{study.name} has no run {quoted(unknown)}: choose from {quoted(plan)}")
    if not options.table:
        results.parent.mkdir(parents=True, exist_ok=True)
        judgement = {**study.evaluate, **(study.quick_evaluate if options.quick else {})}
        digests = {label: digest(configs, judgement) for label, configs in plan.items()}
        labels = {label: plan[label] for label in options.only or plan}
        load = loader()
        make = partial(make_runs, where=where, judgement=judgement, options=options, load=load)
        if study.analyse is None:
            for label, configs in labels.items():
                found = recorded(results, digests)
                if label in found and not options.again:
                    console.print(f"{label}: recorded already", highlight=False)
                    continue
                make(label, configs)
                found |= collect({label: configs}, where, digests)
                methods = {label: found[label] for label in plan if label in found}
                runs.write_json(results, {"study": study.name, "methods": methods})
        else:
            for label, configs in labels.items():
                make(label, configs)
            folders = {label: run_folders(where, label, configs) for label, configs in plan.items()}
            if missing := [label for label in plan if not complete(folders[label], plan[label], judgement)]:
                console.print(f"still missing: {quoted(missing)}; no page yet")
                return
            analysis = study.analyse(folders, pictures(page), options.quick, load)
            methods = collect(plan, where, digests)
            runs.write_json(results, {"study": study.name, "methods": methods, "analysis": analysis})
    write(study, results, page, plan)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


def make_runs(
    label: str,
    configs: Sequence[Config],
    where: Path,
    judgement: Mapping[str, Any],
    options: Options,
    load: Load,
) -> None:
    """Train and judge what is missing of a label."""
    for fold, (place, config) in enumerate(zip(run_folders(where, label, configs), configs, strict=True)):
        if not judged(place, config, judgement):
            Console().rule(f"{label}, run {fold + 1} of {len(configs)}")
            config = dataclasses.replace(config, out=place, data_dir=options.data_dir)
            train_and_judge(config, None if config.stream else load(config), judgement)


def write(study: Study, results: Path, page: Path, labels: Iterable[str]) -> None:
    """The page and its pictures, of what is recorded."""
    record = runs.read_json(results)
    if record is None:
        raise UserError(f"no results of {study.name} yet: run it without --table")
    page.parent.mkdir(parents=True, exist_ok=True)
    sections = list(study.sections(record["analysis"])) if "analysis" in record else []
    if study.draw is not None:
        sections += study.draw(record["methods"], pictures(page))
    missing = [label for label in labels if label not in record["methods"]]
    page.write_text(study_page.markdown(study, record, sections, missing))


def quoted(labels: Iterable[str]) -> str:
    """Labels, which hold commas, in a sentence."""
    return ", ".join(f'"{label}"' for label in labels)


def pictures(page: Path) -> Path:
    """The folder of a page's PNGs."""
    place = page.with_suffix("")
    place.mkdir(parents=True, exist_ok=True)
    return place


def digest(configs: Sequence[Config], judgement: Mapping[str, Any]) -> str:
    """Names what a label runs and how it is judged: any setting that is not its default changes it."""
    text = json.dumps([*map(command, configs), judgement], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def recorded(results: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    """What the results hold of labels with the settings of today."""
    found = (runs.read_json(results) or {}).get("methods", {})
    return {label: entry for label, entry in found.items() if entry.get("digest") == digests.get(label, "")}


def folder(study: Study, options: Options) -> Path:
    """Where the run folders of a study go."""
    return (options.out or Path("runs") / ("quick" if options.quick else "studies")) / study.name


def planned(study: Study, quick: bool) -> dict[str, list[Config]]:
    """label -> configurations, the first of each in its quick form."""
    if not quick:
        return {label: list(configs) for label, configs in study.runs.items()}
    labels = study.runs if study.quick_labels is None else study.quick_labels
    return {label: [dataclasses.replace(study.runs[label][0], **study.quick)] for label in labels}


def run_folders(where: Path, label: str, configs: Sequence[Config]) -> list[Path]:
    """The folders of a label's runs."""
    return [where / f"{runs.slug(label)}-{fold}" for fold in range(len(configs))]


def complete(places: Sequence[Path], configs: Sequence[Config], judgement: Mapping[str, Any]) -> bool:
    """Whether every run of a label is judged."""
    return all(map(partial(judged, judgement=judgement), places, configs))


def judged(run: Path, config: Config, judgement: Mapping[str, Any]) -> bool:
    """Whether a run is evaluated, and as the study says now.

    Raises:
        UserError: it was trained with other settings: the study was changed since.
    """
    record = runs.read_json(run / evaluate.RESULT)
    if record is None:
        return False
    given = runs.from_config(Config, record["config"], run)  # settings that are new since: their defaults
    wanted, found = (runs.as_config(c, leave_out=("out", *FREE)) for c in (config, given))
    changed = ", ".join(name for name in wanted if found[name] != wanted[name])
    if changed:
        raise UserError(
            f"{run} was trained with other settings ({changed}): delete it, or choose another --out"
        )
    return record["evaluation"].items() >= judgement.items()


def loader() -> Load:
    """`experiment.load_data`, but for the data of the run before, which methods and members share."""
    kept: dict[Any, Dataset] = {}
    names = [f.name for f in dataclasses.fields(data.Options)]

    def load(config: Config) -> Dataset:
        key = (config.seed, *(getattr(config, name) for name in names))
        if key not in kept:
            kept.clear()
            kept[key] = experiment.load_data(config)
        return kept[key]

    return load


def train_and_judge(config: Config, found: Dataset | None, judgement: Mapping[str, Any]) -> None:
    """One run in the folder `config.out`, from training to scores."""
    train.main(config, found)
    evaluate.main(evaluate.Config(run=config.out, data_dir=config.data_dir, **judgement), found)
    jax.clear_caches()  # of compiled programs that no later run can use


def collect(plan: Mapping[str, Sequence[Config]], where: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    """Label -> digest, command, scores of every run, seconds and what was trained; and where all that ran."""
    found: dict[str, Any] = {}
    for label, configs in plan.items():
        records = []
        for run in run_folders(where, label, configs):
            scores = runs.read_json(run / evaluate.RESULT)
            environment = scores.pop("environment")
            kept = {k: v for k, v in scores.items() if k not in ("config", "evaluation", "corruptions")}
            records.append({**kept, "seconds": training.seconds(run), "environment": environment})
        found[label] = {"digest": digests[label], "command": command(configs[0]), "runs": records}
    return found


def command(config: Config) -> str:
    """The command line of scripts/train.py that gives these settings."""
    words = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("out", "data_dir") or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag)
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return f"python scripts/train.py {' '.join(map(_quoted, words))}".strip()


def _quoted(word):
    """`word` for a shell; double quotes around single ones are easier to read than what `shlex` does."""
    plain = "'" not in word or any(c in word for c in '"\\$`!')
    return shlex.quote(word) if plain else f'"{word}"'
