"""Regenerate every table and picture in README and docs from recorded results.

    python scripts/readme.py RUN      takes over a finished run of scripts/compare.py first
    python scripts/readme.py          only rewrites the tables from what is committed

Nothing is trained or timed.
"""

import dataclasses
import importlib.util
import inspect
import shutil
from pathlib import Path
from typing import Annotated, Any

import tyro

from bnn_jax import cli, parts, runs
from bnn_jax.report import study_page, tables
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "compare.json"
BENCHMARKS = {  # marker: (page of docs, file of results and so benchmark, its function that makes the table)
    "posteriors": ("methods.md", "posteriors", "floors"),
    "leapfrog": ("performance.md", "leapfrog", "table"),
    "chains": ("performance.md", "chains", "table"),
    "peers": ("performance.md", "peers", "table"),
    "speed": ("performance.md", "speed", "table"),
    "startup": ("performance.md", "startup", "table"),
    "scaling": ("scaling.md", "scaling", "table"),
    "scaling-cost": ("scaling.md", "scaling", "cost_table"),
    "gpu-speed": ("performance.md", "gpu/speed", "table"),
    "gpu-startup": ("performance.md", "gpu/startup", "table"),
    "gpu-peers": ("performance.md", "gpu/peers", "table"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    run: Annotated[Path | None, tyro.conf.Positional] = None  # run folder of scripts/compare.py


def main(config: Config) -> None:
    """Copy the run's results and picture, then fill the marked blocks."""
    if config.run is not None:
        runs.read_mark(config.run, "compare")
        if not (config.run / "results.json").exists():
            raise UserError(f"{config.run} is not finished")
        shutil.copy(config.run / "results.json", RESULTS)
        shutil.copy(config.run / "distances.png", ROOT / "docs" / "images" / "distances.png")
    results = runs.read_json(RESULTS)
    where = "{num_cores} CPU cores, Python {python}, jax {jax}, numpyro {numpyro}".format(
        **results["environment"]
    )
    fill(ROOT / "README.md", "compare", f"{tables.markdown(results)}- Seconds on {where}.\n")
    fill(ROOT / "README.md", "studies", "\n".join([*study_page.overview(studies()), ""]))
    fill(ROOT / "docs" / "methods.md", "equations", equations())
    for marker, (page, name, make) in BENCHMARKS.items():
        measured = runs.read_json(ROOT / "benchmarks" / "results" / f"{name}.json")
        if measured is not None:
            text = getattr(_script(ROOT / "benchmarks" / f"{Path(name).name}.py"), make)(measured)
            fill(ROOT / "docs" / page, marker, text + "\n")


def studies() -> list[tuple[Any, dict[str, Any]]]:
    """Every study that has results, and those."""
    others = [ROOT / "benchmarks" / f"{name}.py" for name in ("cold", "uci")]
    paths = sorted([*(ROOT / "scripts" / "studies").glob("*.py"), *others])
    found = ((_script(path).STUDY, path.stem) for path in paths)
    read = ((study, runs.read_json(RESULTS.with_name(f"{name}.json"))) for study, name in found)
    return [(study, record) for study, record in read if record is not None]


def equations() -> str:
    """Of every method the first line and the equation of its module's docstring."""
    found = []
    for name in parts.names("method"):
        text = inspect.getmodule(parts.find("method", name)).__doc__
        first, *lines = text.splitlines()
        formula = [line[4:] for line in lines if line.startswith("    ")]
        found += [f"`{name}`. {first}", "", "```text", *formula, "```", ""]
    return "\n".join(found)


def fill(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name:begin -->` and `<!-- name:end -->`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found, rest = path.read_text().partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise UserError(f"{path} has no block {begin} ... {end}")
    path.write_text(f"{head}{begin}\n{text}{end}{tail}")


def _script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
