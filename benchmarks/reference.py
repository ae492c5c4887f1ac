"""How far a posterior of a ResNet-20 on CIFAR-10 is from the published HMC one.

    python benchmarks/reference.py --runs RUN...   score finished runs of scripts/train.py
    python benchmarks/reference.py                 train and score the recipe below: a GPU, hours
    python benchmarks/reference.py --quick         the same on few images and steps, to see that it works

The published file holds the predictive probabilities of HMC for the 10,000 test images: ResNet-20 with
filter response normalisation and swish, prior N(0, 1/5), 40,960 training images, no augmentation (Izmailov
et al., arXiv:2104.14421). It is one mean over all draws, so that neither a floor nor W2 can be told from
it; what its own chains differ by stands in that paper's table, which the page quotes. Means of mean-field VI
start at a MAP solution, as there (Adam 1e-4 with cosine decay, batches of 80, 300 epochs, 50 draws).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bnn_jax import cli, compare, data, distances, experiment, metrics, runs, trained, training
from bnn_jax.commands import train
from bnn_jax.report import study_page
from bnn_jax.settings import Config
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "reference.json"
PAGE = ROOT / "docs" / "reference_cifar10.md"
NUM_DRAWS = 50
COMMON = Config(
    dataset="cifar10_tiles",
    net="resnet",
    prior="isotropic(std=0.4472135955)",
    limit=40_960,
    batch_size=80,
    num_chains=1,
    eval_every=512,
)
METHODS: dict[str, dict[str, Any]] = {
    "MAP": dict(method="map", epochs=100, learning_rate=3e-3),
    "deep ensemble (5)": dict(method="map", members=5, epochs=100, learning_rate=3e-3),
    "mean-field VI": dict(method="vi", epochs=300, learning_rate=1e-4, estimator="sampling"),
    "cyclical SGHMC": dict(
        method="sghmc(step_size=0.003, cycle=25600)",
        epochs=100,
        learning_rate=3e-3,
        num_warmup=0,
        num_draws=20,
        thin=25_600,
        block_size=1,
    ),
}
FROM_MAP = ("mean-field VI",)  # start at the run of MAP
QUICK = dict(limit=200, epochs=None, steps=4, eval_every=4)
QUICK_CHAIN = dict(method="sghmc(step_size=0.003, cycle=2)", thin=2, num_draws=4)
QUICK_POINTS = 200  # test images that are predicted
_FIGURES = {  # of that paper, without seeds or intervals; HMC beside itself is one chain beside the others
    "SGD": (0.8344, 0.8548, 0.190),
    "mean-field VI": (0.8645, 0.8875, 0.136),
    "deep ensemble (50)": (0.8849, 0.9152, 0.115),
    "SGLD": (0.8932, 0.9154, 0.110),
    "SGHMC": (0.8938, 0.9198, 0.109),
    "cyclical SGHMC": (0.8963, 0.9267, 0.099),
    "HMC": (0.8964, 0.9401, 0.074),
}
PUBLISHED = {
    f"{label}, published": dict(zip(("accuracy", "agreement", "total_variation"), figures, strict=True))
    for label, figures in _FIGURES.items()
}
KEYS = ("accuracy", "nll", "ece", "agreement", "total_variation", "symmetric_kl", "entropy_gap")


@dataclasses.dataclass(frozen=True)
class Options:
    runs: tuple[Path, ...] = ()  # run folders to score instead of the recipe's
    file: Path = Path("hmc_reference") / "cifar10_hmc_probs.npz"  # the published probabilities
    quick: bool = False  # few images and steps, into runs/quick/reference; what is committed stays
    methods: tuple[str, ...] = ()  # of the recipe; default all
    out: Path | None = None  # where run folders go; default runs/reference, or runs/quick/reference
    data_dir: Path | None = None  # folder with raw data; default: the environment variable BNN_JAX_DATA


def main(options: Options) -> None:
    """Train what is missing, score, print and write the table."""
    console = Console()
    published = load(options.file, options.data_dir)
    if options.runs:
        rows = {str(run): score(run, published, options.data_dir) for run in options.runs}
        console.print("\n".join(table(rows)), highlight=False, soft_wrap=True)
        return
    if unknown := ", ".join(sorted(set(options.methods) - set(METHODS))):
        raise UserError(f"no method {unknown}: choose from {', '.join(METHODS)}")
    where = options.out or Path("runs") / ("quick/reference" if options.quick else "reference")
    results = where / "reference.json" if options.quick else RESULTS
    record = runs.read_json(results) or {}
    for label in options.methods or METHODS:
        place = where / runs.slug(label)
        config = configured(label, where, options)
        console.rule(label)
        train.main(dataclasses.replace(config, out=place))
        record[label] = score(place, published, options.data_dir, QUICK_POINTS if options.quick else None)
        results.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(results, record)
    page = results.with_suffix(".md") if options.quick else PAGE
    lines = ["# ResNet-20 on CIFAR-10 beside the published HMC predictions", "", *table(record), ""]
    places = study_page.places(row["environment"] for row in record.values())
    lines += [f"By `python benchmarks/reference.py`. Seconds: wall time of training on {places}.", ""]
    page.write_text("\n".join(lines))
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


def configured(label: str, where: Path, options: Options) -> Config:
    """The settings of a run of the recipe."""
    changes = METHODS[label] | dict(data_dir=options.data_dir)
    if label in FROM_MAP:
        changes["pretrained"] = where / "map"
        if not (where / "map" / "outcome.json").exists():
            raise UserError(f"{label} starts at the run of MAP: run that first")
    if options.quick:
        changes |= QUICK | (QUICK_CHAIN if "num_draws" in METHODS[label] else {})
    return dataclasses.replace(COMMON, **changes)


def load(file: Path, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Published probabilities (T, K) and labels (T,).

    Raises:
        UserError: no such file, or not one of these.
    """
    path = data.find_path(file, data.data_dir(data.Options(data_dir=data_dir)))
    arrays = data.read_npz(path, ("probs", "labels"), form="the published")
    probs, labels = arrays["probs"], arrays["labels"].astype(np.int32)
    return metrics.check_probs(probs, "TK", labels)


def score(
    run: Path,
    published: tuple[np.ndarray, np.ndarray],
    data_dir: Path | None,
    points: int | None = None,
) -> dict[str, Any]:
    """Scores of a run on the test images, the first `points` of them, and its distances to the published
    predictions.

    Raises:
        UserError: an unfinished run, or one whose test part is not the published one.
    """
    found = trained.load(run)
    config = dataclasses.replace(found.config, data_dir=data_dir or found.config.data_dir, limit=None)
    parts = experiment.load_data(config)
    probs, labels = published
    if not np.array_equal(parts.y_test, labels):
        raise UserError(f"{run}: its test part is not that of the published predictions, or in another order")
    probs, labels = probs[:points], labels[:points]
    # Scaled by the training part of the run, which may be a part of all images.
    x = trained.inputs(found, parts.x_test[:points] * parts.scaling.scale + parts.scaling.shift)
    mean, _ = trained.each(found, x, NUM_DRAWS)
    given = {"method": mean[None], "hmc": probs[None, None]}
    block = {"method": 1, "hmc": 1}
    rows = compare.summarise(given, labels, "hmc", rng=np.random.default_rng(0), replicates=100, block=block)[
        "method"
    ]
    kept = {key: rows[key] for key in rows if not key.startswith("w2")}  # of a mean there is no spread
    own = {name: f(probs, labels) for name, f in distances.CLASSIFICATION.scores.items()}
    told = {
        "num_draws": len(mean),
        "seconds": training.seconds(run),
        "environment": runs.environment(),
        "published": own,
    }
    return kept | told


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table: of `rows`, of that paper, and of its predictions in the file."""
    cells = lambda row: [
        f"{row[key]:.3f} ± {max(abs(end - row[key]) for end in row[f'{key}_interval']):.3f}" for key in KEYS
    ]
    body = [
        [label, str(row["num_draws"]), *cells(row), f"{row['seconds']:,.0f}"] for label, row in rows.items()
    ]
    own = next(iter(rows.values()))["published"]
    header = ["method", "draws", *(key.replace("_", " ") for key in KEYS), "seconds"]
    quoted = [
        [label, "-", *(f"{known[key]:.3f}" if key in known else "-" for key in KEYS), "-"]
        for label, known in (PUBLISHED | {"**HMC, the published file**": own}).items()
    ]
    return study_page.table([header, *body, *quoted])


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
