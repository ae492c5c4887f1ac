"""Every method on the same small problems: how far each is from HMC, and what it costs.

    python benchmarks/posteriors.py                     everything that is not recorded yet
    python benchmarks/posteriors.py --problems digits   one problem
    python benchmarks/posteriors.py --quick             short runs into runs/, to see that it works
    python benchmarks/posteriors.py --table             only write tables and pictures again

Problems are those of `bnn_jax.reference`: their data, network, prior and likelihood are the reference's, and
only method and training change. A row is scored against the stored draws of HMC; its interval counts test
points and draws, and is widened to the range over seeds. Cost is told in seconds and in gradients: passes
over the training data, forwards and backwards, with those that found the start of a chain. Rows are recorded
with a digest of their settings: what is recorded with those of today is not run again, on another machine
neither.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from bnn_jax import (
    cli,
    compare,
    diagnostics,
    draws,
    experiment,
    models,
    objectives,
    parts,
    psis,
    reference,
    runs,
    settings,
    study,
    style,
    trained,
    training,
)
from bnn_jax.commands import train
from bnn_jax.report import cost, study_page
from bnn_jax.settings import Config
from bnn_jax.trees import size
from bnn_jax.types import Batch, UserError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "posteriors.json"
PAGE = ROOT / "docs" / "posteriors.md"
SEEDS = (0, 1)
DRAWS = 200  # of a method whose last state is a distribution
PARTICLES = 10  # of SVGD
LARGEST_K = 99.0  # what is told of a k-hat
_CHAIN = dict(num_chains=2, block_size=20)
_NOISY = dict(num_warmup=400, num_draws=200, thin=20, **_CHAIN)  # minibatches
METHODS: dict[str, dict[str, Any]] = {
    "MAP": dict(method="map"),
    "deep ensemble (5)": dict(method="map", members=5),
    "MC dropout": dict(method="dropout(rate=0.1)"),
    "SWAG, diagonal": dict(method="swag(rank=0)"),
    "SWAG": dict(method="swag"),
    "ensemble of SWAG (5)": dict(method="swag", members=5),
    "Laplace, last layer": dict(method="laplace(form='last_layer')"),
    "Laplace, diagonal": dict(method="laplace(form='diagonal')"),
    "Laplace, Kronecker": dict(method="laplace"),
    "Laplace, Kronecker, sampled": dict(method="laplace(predictive='sampled')"),
    "VI, mean field": dict(method="vi"),
    "mixture of VI (5)": dict(method="vi", members=5),
    "VI, low rank": dict(method="vi", posterior="low_rank", estimator="sampling"),
    "VI, Kronecker": dict(method="vi", posterior="kronecker", estimator="sampling"),
    "IVON": dict(method="ivon"),
    "rank-1": dict(method="rank_one"),
    "SVGD (10)": dict(method=f"svgd(num_particles={PARTICLES})"),
    "SGLD": dict(method="sgld", **_NOISY),
    "pSGLD": dict(method="psgld", **_NOISY),
    "SGHMC": dict(method="sghmc", **_NOISY),
    "cyclical SGHMC": dict(method="sghmc(cycle=200)", **_NOISY | dict(thin=200, num_draws=20)),
    "MCLMC": dict(method="mclmc", num_warmup=200, num_draws=200, thin=5, **_CHAIN),
    "MCLMC, adjusted": dict(method="mclmc_adjusted", num_warmup=60, num_draws=100, **_CHAIN),
    "HMC, short": dict(method="hmc", num_warmup=60, num_draws=100, **_CHAIN),
    "NUTS, short": dict(method="nuts", num_warmup=60, num_draws=40, max_tree_depth=6, **_CHAIN),
    "HMC, subsampled": dict(method="hmcecs", num_warmup=60, num_draws=200, **_CHAIN),
}
FAMILIES = {  # as the pictures show them
    "modes and ensembles": ("map", "dropout", "svgd"),
    "Gaussian at a mode": ("swag", "laplace"),
    "variational": ("vi", "ivon", "rank_one"),
    "chains on minibatches": ("sgld", "psgld", "sghmc", "hmcecs"),
    "chains on all data": ("mclmc", "mclmc_adjusted", "hmc", "nuts"),
}
# Its expansion holds near the mode, which the weights of a network leave: on digits and on Boston the step
# size falls until trajectories have 10,000 leapfrogs.
ONLY = {"HMC, subsampled": ("logistic",)}
# problem -> settings of all methods there, and of the variational ones, which need longer.
TRAINING = {
    "digits": (dict(steps=1500, learning_rate=1e-2), dict(steps=5000, learning_rate=5e-3)),
    "pneumonia": (dict(steps=1000, learning_rate=3e-3), dict(steps=4000, learning_rate=3e-3)),
    "logistic": (dict(steps=5000, learning_rate=1e-2), dict(steps=20000, learning_rate=3e-3)),
    "mnist160": (dict(steps=500, learning_rate=3e-3), dict(steps=4000, learning_rate=3e-3)),
    "boston": (dict(steps=3000, learning_rate=1e-2), dict(steps=10000, learning_rate=1e-2)),
    "concrete": (dict(steps=3000, learning_rate=1e-2), dict(steps=10000, learning_rate=1e-2)),
    "yacht": (dict(steps=3000, learning_rate=1e-2), dict(steps=10000, learning_rate=1e-2)),
}
# (problem, method) -> settings there: a gradient of pneumonia takes ten times that of any other problem; the
# tables' posteriors are narrow, yacht's most of all.
TUNED = {
    ("pneumonia", "MCLMC, adjusted"): dict(
        method="mclmc_adjusted(length=0.2, step_size=0.01)", num_warmup=40, num_draws=60
    ),
    ("pneumonia", "HMC, short"): dict(num_warmup=40, num_draws=60, trajectory_length=math.pi / 16),
    ("pneumonia", "NUTS, short"): dict(num_warmup=40, num_draws=40, max_tree_depth=5),
    ("boston", "SGHMC"): dict(method="sghmc(step_size=0.003)"),
    ("concrete", "SGHMC"): dict(method="sghmc(step_size=0.003)"),
    ("yacht", "IVON"): dict(method="ivon(hess_init=100.0)"),
    ("yacht", "SGLD"): dict(method="sgld(step_size=0.001)"),
    ("yacht", "SGHMC"): dict(method="sghmc(step_size=0.001)"),
    ("yacht", "cyclical SGHMC"): dict(method="sghmc(cycle=200, step_size=0.001)"),
}
QUICK = dict(steps=200, num_warmup=20, num_draws=20, thin=1, block_size=20)
QUICK_CYCLE = dict(method="sghmc(cycle=2)", thin=2)


@dataclasses.dataclass(frozen=True)
class Options:
    quick: bool = False  # short runs, into runs/quick/posteriors; what is committed stays
    problems: tuple[str, ...] = ()  # of those with a reference; default all
    methods: tuple[str, ...] = ()  # labels; default all
    out: Path | None = None  # where run folders go; default runs/posteriors, or runs/quick/posteriors
    data_dir: Path | None = None  # folder with raw data; default: the environment variable BNN_JAX_DATA
    references: Path = reference.FOLDER  # where the reference posteriors are
    again: bool = False  # run also what the recorded results hold already
    table: bool = False  # only write tables and pictures again


def main(options: Options) -> None:
    """Run what is missing, score it, write results, tables and pictures."""
    console = Console()
    where = options.out or Path("runs") / ("quick/posteriors" if options.quick else "posteriors")
    results = where / "posteriors.json" if options.quick else RESULTS
    known = reference.names(options.references)
    if not known:
        raise UserError(
            f"no reference posteriors in {options.references}: benchmarks/make_references.py makes them"
        )
    for given, choices in ((options.problems, known), (options.methods, METHODS)):
        if unknown := ", ".join(sorted(set(given) - set(choices))):
            raise UserError(f"no {unknown} here: choose from {', '.join(choices)}")
    if not options.table:
        targets = [reference.load(name, options.references) for name in options.problems or known]
        if not any(applicable(target, options.methods) for target in targets):
            raise UserError(
                f"{', '.join(options.methods)} can run on none of {', '.join(t.name for t in targets)}, only "
                f"on {', '.join(sorted({name for m in options.methods for name in ONLY[m]}))}"
            )
        for target in targets:
            collect(where, target, options.quick, results)
            kept = () if options.again else recorded(results, target.name)
            todo = [
                run
                for run in planned(where, target, options.methods, options.quick)
                if run[0].name not in kept
            ]
            if todo:
                _, found = reference.problem(target, options.data_dir)
            for place, label, config in todo:
                row = place / "row.json"
                if not row.exists():
                    console.rule(f"{target.name}, {label}, seed {config.seed}")
                    train.main(dataclasses.replace(config, out=place), found)
                    told = judged(target, place, found, label, config.seed)
                    runs.write_json(row, {"run": place.name, **told})
                    jax.clear_caches()  # of compiled programs that no later run can use
                collect(where, target, options.quick, results)
    record = runs.read_json(results)
    if record is None:
        raise UserError("no results yet: run without --table")
    write(record, results.with_suffix(".md") if options.quick else PAGE, options.references)


def applicable(target: reference.Reference, wanted: Sequence[str] = ()) -> list[str]:
    """The methods, of those wanted if any are, that can run on a problem."""
    return [label for label in wanted or METHODS if target.name in ONLY.get(label, (target.name,))]


def planned(
    where: Path, target: reference.Reference, wanted: Sequence[str], quick: bool
) -> Iterator[tuple[Path, str, Config]]:
    """Folder, method and settings of every run on a problem."""
    for label in applicable(target, wanted):
        for seed in SEEDS[:1] if quick else SEEDS:
            config = configured(target, label, seed, quick)
            yield where / target.name / content_name(label, config), label, config


def configured(target: reference.Reference, label: str, seed: int, quick: bool) -> Config:
    """The settings of a run: the problem's data and model, the method's training."""
    method = METHODS[label] | TUNED.get((target.name, label), {})
    common, variational = TRAINING.get(target.name, ({}, {}))
    name = plain(label)
    chosen = common | (variational if name in FAMILIES["variational"] else {})
    defaults = {f.name: f.default for f in dataclasses.fields(Config)}
    own = ("num_chains", "num_warmup", "num_draws", "thin", "block_size", "method")
    given = {name: defaults[name] for name in own} | chosen | method
    given |= dict(seed=seed, data_dir=None, eval_every=chosen.get("steps"))
    if name == "vi":
        given["beta_warmup"] = given["steps"] // 10
    if quick:
        given |= QUICK | (QUICK_CYCLE if "cycle" in given["method"] else {})
    return dataclasses.replace(reference.config(target), **given)


def plain(label: str) -> str:
    """The file in `bnn_jax/infer` of a method."""
    return parts.plain(METHODS[label]["method"])


def content_name(label: str, config: Config) -> str:
    """A folder's name that says what is run and changes with any setting that is not its default."""
    return f"{runs.slug(label)}-seed{config.seed}-{study.digest([config], {})[:8]}"


def judged(target: reference.Reference, place: Path, found: Any, label: str, seed: int) -> dict[str, Any]:
    """The row of a finished run: scores and distances, convergence, seconds and gradients."""
    config = experiment.reopen(place).config
    row = {"method": label, "seed": seed, "seconds": training.seconds(place)}
    row["environment"] = runs.environment()
    try:
        run = trained.load(place)
    except UserError as error:  # no sound chain: that is the result
        return row | {"note": str(error).partition(": ")[2]}
    predict = trained.each if found.num_classes else trained.regress
    mean, noise = predict(run, found.x_test, run.num_draws or DRAWS)
    number = len(mean)
    block = 1
    if run.chains is not None:
        mean, noise = mean[run.chains], noise[run.chains]
        values = diagnostics.function_values(mean) if found.num_classes else mean
        row |= diagnostics.function_summary(values)
        block = compare.block_length(values.shape[1], len(values), row["ess_function_median"])
    scored = reference.score(target, mean, None if found.num_classes else noise, block=block)
    scored = {name: value for name, value in scored.items() if name not in ("floor", "hmc")}
    if run.chains is None and config.members == 1:
        row |= importance(place, run, found)
    return row | scored | {"num_draws": number, "passes": passes(place, config, found)}


def importance(place: Path, run: trained.Trained, found: Any) -> dict[str, float]:
    """`k_hat` of a method whose draws have a density, an infinite one as `LARGEST_K`; nothing of others."""
    kept = experiment.reopen(place)
    if kept.algorithm.log_prob is None:
        return {}
    target = objectives.log_joint(
        kept.model.apply, kept.model.prior, kept.model.likelihood, len(found.x_train)
    )
    key, state = run.source
    batch = Batch(jnp.asarray(found.x_train), jnp.asarray(found.y_train))

    def log_ratio(i):
        params = kept.algorithm.sample(jax.random.fold_in(key, i), state)
        return target(params, batch) - kept.algorithm.log_prob(state, params)

    ratios = np.asarray(jax.jit(lambda i: jax.lax.map(log_ratio, i))(jnp.arange(DRAWS)))
    return {"k_hat": float(np.clip(psis.smooth(ratios).k, -LARGEST_K, LARGEST_K))}


def passes(place: Path, config: Config, found: Any) -> float:
    """Gradients in passes over the training data. The warm-up of a chain is counted at the mean number of
    leapfrogs of its draws."""
    count = len(found.x_train)
    outputs = found.num_classes or 1 + (config.noise in models.NOISES)
    name = parts.plain(config.method)
    share = config.batch_size / count
    climbed = settings.num_steps(config, count) * share
    kept = experiment.reopen(place)
    if not kept.algorithm.chain:
        samples = config.num_samples if name in FAMILIES["variational"] else 1
        extra = outputs if name == "laplace" else 0
        particles = PARTICLES if name == "svgd" else 1
        return config.members * (climbed * samples * particles + extra)
    _, trace = draws.load(place, kept.params, config.num_draws // config.block_size)
    leapfrogs = float(np.mean(trace.get("num_steps", 1)))
    each = {
        "hmc": leapfrogs + 1,
        "nuts": leapfrogs + 1,
        "mclmc": 3,
        "mclmc_adjusted": 2 * leapfrogs + 1,
        "hmcecs": (leapfrogs + 1) * share,
    }.get(name, share)
    steps = config.num_warmup + config.num_draws * config.thin
    hessian = size(kept.params) if name == "hmcecs" else 0
    return config.num_chains * (climbed + hessian + steps * each)


def recorded(results: Path, problem: str) -> dict[str, Mapping[str, Any]]:
    """The rows that the results hold of a problem, by the name of their run."""
    rows = (runs.read_json(results) or {}).get(problem, ())
    return {row["run"]: row for row in rows if "run" in row}


def collect(where: Path, target: reference.Reference, quick: bool, results: Path) -> None:
    """The rows of a problem that were run with the settings of today, here or as recorded, into the one JSON;
    what is there of other problems stays."""
    kept = recorded(results, target.name)
    places = [place for place, _, _ in planned(where, target, (), quick)]
    rows = [runs.read_json(place / "row.json") or kept.get(place.name) for place in places]
    record = (runs.read_json(results) or {}) | {target.name: [row for row in rows if row is not None]}
    results.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(results, dict(sorted(record.items())))


def write(record: Mapping[str, Any], page: Path, references: Path) -> None:
    """The page: of every problem a table sorted by distance to HMC, and distance against cost."""
    pictures = page.parent / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = [TEXT.strip(), ""]
    for name, rows in record.items():
        target = reference.load(name, references)
        own = reference.score(target, target.mean, target.variance, replicates=2)
        lines += [f"## {name}", "", told(target, own["floor"]), "", *table(rows, own), ""]
        if missing := [label for label in applicable(target) if label not in grouped(rows)]:
            lines += [f"Not run yet: {'; '.join(missing)}.", ""]
        number = {label: len(own) for label, own in grouped(rows).items()}
        if fewer := [label for label in number if number[label] < max(number.values())]:
            lines += [f"With fewer seeds than the others so far: {'; '.join(fewer)}.", ""]
        points = of_seeds(rows)
        figure = cost.against_distance(
            points,
            own["floor"]["total_variation"],
            "total variation to HMC (mean over test points)",
            f"{name}: distance to HMC against cost",
        )
        style.save(figure, pictures / f"posteriors_{name}.png")
        lines += [f"![{name}: distance to HMC against cost](images/posteriors_{name}.png)", ""]
    places = study_page.places(row["environment"] for rows in record.values() for row in rows)
    lines += [f"Seconds: wall time beside other work on {places}.", ""]
    page.write_text("\n".join(lines))


TEXT = """
# How far each posterior is from HMC's, and at what price

The same network, prior, likelihood and data under every method, scored against stored draws of long HMC runs
([reference posteriors](comparison.md#reference-posteriors)). Tables are sorted by the total variation between
predictive means; "floors" is that distance in units of what two chains of HMC differ by: at 1 and below
nothing can be told from HMC. The number after ± is the half width of the 95 % interval over test points and
draws, or half the range over seeds where that is more. Passes: gradients in passes over the training data,
for chains with those that found their starts. k-hat: shape of the importance ratios' tail, of methods with a
density ([what it means](comparison.md#evidence-and-importance)).

All methods have the problem's training; a few settings were chosen by a first look at the distances (`TUNED`
in the script): steps of chains on minibatches on the tables, for one, so these are seen at their best.

Everything on this page by `python benchmarks/posteriors.py`; what each method is: [methods](methods.md).
"""
TITLES = {
    "in_floors": "floors ↓",
    "total_variation": "total variation ↓",
    "agreement": "agreement ↑",
    "w2": "W2 of draws ↓",
    "entropy_gap": "entropy gap → 0",
    "accuracy": "accuracy ↑",
    "rmse": "RMSE ↓",
    "nll": "NLL ↓",
    "coverage_90": "90 % intervals hold",
    "k_hat": "k-hat",
    "rhat_function_median": "R-hat",
    "passes": "passes",
    "seconds": "seconds",
}
SHORT = {"in_floors": 1, "passes": 0, "seconds": 0, "k_hat": 1}  # digits; 3 for the others


def told(target: reference.Reference, floor: Mapping[str, float]) -> str:
    """A sentence on the problem and what its reference is worth."""
    of_data, diagnosed, config = (target.info[key] for key in ("data", "diagnostics", "config"))
    sentences = (
        "{description}: N = {num_train:,}, {num_test:,} test points; {net}, prior {prior}.",
        "HMC: {num_chains} chains of {num_draws:,} draws, R-hat of function values",
        "{rhat_function_median:.3f} (median) and {rhat_function_q95:.3f} (95 %), effective draws",
        "{ess_function_median:.0f} (median).",
        "Floor: total variation {total_variation:.4f}, W2 {w2:.4f}.",
    )
    return " ".join(sentences).format(**of_data, **{**config, **diagnosed, **floor})


def of_seeds(rows: Sequence[Mapping[str, Any]]) -> list[cost.Point]:
    """Points of the picture, means over seeds; only methods with a score."""
    found = []
    for label, own in grouped(rows).items():
        if scored := [row for row in own if "total_variation" in row]:
            mean, half = summary(scored, "total_variation")
            kind = next(kind for kind, names in FAMILIES.items() if plain(label) in names)
            spent, ends = summary(scored, "passes")[0], (max(mean - half, 0.0), mean + half)
            found.append(cost.Point(label, kind, spent, mean, ends))
    return found


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by method, in the order of `METHODS`."""
    labels = [label for label in METHODS if any(row["method"] == label for row in rows)]
    return {label: [row for row in rows if row["method"] == label] for label in labels}


def summary(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float] | None:
    """Mean over seeds and half width, None where no row has the key."""
    found = [(row[key], row.get(f"{key}_interval", (row[key],))) for row in rows if row.get(key) is not None]
    if not found:
        return None
    values = [value for value, _ in found]
    halves = [abs(end - value) for value, ends in found for end in ends]
    return float(np.mean(values)), max([*halves, (max(values) - min(values)) / 2])


def noted(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why seeds have no score."""
    return [f"seed {row['seed']}: {row['note']}" for row in rows if "note" in row]


def table(rows: Sequence[Mapping[str, Any]], own: Mapping[str, Any]) -> list[str]:
    """Lines of a Markdown table, sorted by distance, HMC itself with its floor last."""
    keys = [key for key in TITLES if any(row.get(key) is not None for row in rows)]
    by_method = grouped(rows)
    methods = {label: {key: summary(group, key) for key in keys} for label, group in by_method.items()}
    notes = {label: "; ".join(noted(group)) for label, group in by_method.items()}
    distance = lambda label: (methods[label].get("total_variation") or (np.inf,))[0]
    lines = [["method", *(TITLES[key] for key in keys)]]
    for label in sorted(methods, key=distance):
        cells = [shown(key, methods[label][key]) for key in keys]
        title = f"{label} ({notes[label]})" if notes[label] else label
        lines.append([title, *cells])
    hmc = {**own["hmc"], **own["floor"], "in_floors": 1.0}
    cells = [shown(key, (hmc[key], 0.0) if hmc.get(key) is not None else None) for key in keys]
    return study_page.table([*lines, ["**HMC, the reference**", *cells]])


def floors(record: Mapping[str, Any]) -> str:
    """The table of docs/methods.md: a row a method, its distance to HMC in floors on every problem."""
    by_problem = [grouped(rows) for rows in record.values()]
    lines = [["method", *record]]
    for label, method in METHODS.items():
        own = [summary(by_method.get(label, ()), "in_floors") for by_method in by_problem]
        if any(value is not None for value in own):
            lines.append([f"{label}, `{method['method']}`", *(shown("in_floors", value) for value in own)])
    return "\n".join(study_page.table(lines))


def shown(key: str, value: tuple[float, float] | None) -> str:
    """A cell."""
    if value is None:
        return "-"
    digits = SHORT.get(key, 3)
    mean, half = value
    plain = f"{mean:,.{digits}f}"
    return plain if key in SHORT or not half else f"{plain} ± {half:.{digits}f}"


if __name__ == "__main__":
    chains = lambda method: method.get("num_chains", 1)
    cli.run(main, Options, __doc__, cpu_devices=lambda options: max(map(chains, METHODS.values())))
