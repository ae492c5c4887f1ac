"""Make the reference posteriors of `bnn_jax/references`: long runs of HMC on small problems.

    python benchmarks/make_references.py                   all of them, hours; a run that was stopped goes on
    python benchmarks/make_references.py --only digits     one
    python benchmarks/make_references.py --quick           everything short, into runs/, to see that it works

Each problem is a configuration of scripts/train.py whose chains start at MAP solutions of their own. What the
chains predict for the test points and the moments of their weights are kept, with R-hat and effective sample
sizes beside them.
"""

import dataclasses
import math
from pathlib import Path

import jax
from rich.console import Console

from bnn_jax import cli, data, draws, experiment, predict, reference
from bnn_jax.commands import train
from bnn_jax.settings import Config
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
KEPT = 200  # draws of all chains whose predictions are kept
_TABLE = dict(
    dataset="table", net="shallow", fold=0, steps=3000, batch_size=64, learning_rate=1e-2, eval_every=1000
)
_CHAINS = dict(method="hmc", num_chains=4, num_warmup=200, num_draws=1000, block_size=100)
PROBLEMS = {
    "digits": Config(
        dataset="digits",
        net="digits",
        steps=1500,
        learning_rate=1e-2,
        trajectory_length=math.pi / 4,
        **_CHAINS | dict(num_draws=500),
    ),
    "pneumonia": Config(
        dataset="medmnist",
        path=Path("pneumoniamnist.npz"),
        net="lenet",
        limit=1000,
        steps=1000,
        learning_rate=3e-3,
        trajectory_length=math.pi / 4,
        **_CHAINS | dict(num_warmup=60, num_draws=160, block_size=5),  # minutes each
    ),
    "logistic": Config(
        dataset="medmnist",
        path=Path("pneumoniamnist.npz"),
        net="mlp(hidden=())",
        steps=1000,
        learning_rate=3e-3,
        trajectory_length=math.pi / 4,
        **_CHAINS | dict(num_draws=500),
    ),
    "mnist160": Config(
        dataset="idx",
        path=Path("mnist"),
        net="mlp(hidden=(100,))",
        limit=160,
        steps=500,
        batch_size=32,
        learning_rate=3e-3,
        trajectory_length=math.pi / 2,
        **_CHAINS | dict(num_draws=500),
    ),
    "boston": Config(
        path=Path("uci") / "bostonHousing.npz", trajectory_length=math.pi / 8, **_TABLE, **_CHAINS
    ),
    "concrete": Config(
        path=Path("uci") / "concrete.npz",
        trajectory_length=math.pi / 2,
        **_TABLE,
        **_CHAINS | dict(num_draws=2000),
    ),
    # With a learned noise chains would not meet: its targets follow a formula, and the noise goes towards 0.
    "yacht": Config(
        path=Path("uci") / "yacht.npz",
        noise="0.05",
        trajectory_length=math.pi / 4,
        **_TABLE,
        **_CHAINS,
    ),
}
QUICK = dict(steps=200, num_chains=2, num_warmup=40, num_draws=20, block_size=20, trajectory_length=0.05)


@dataclasses.dataclass(frozen=True)
class Options:
    quick: bool = False  # everything short, into runs/quick/references; what is committed stays
    only: tuple[str, ...] = ()  # problems to run
    out: Path | None = None  # where run folders go; default runs/references, or runs/quick/references
    data_dir: Path | None = None  # folder with raw data; default: the environment variable BNN_JAX_DATA


def main(options: Options) -> None:
    """Sample what is missing, then write the files."""
    console = Console()
    unknown = ", ".join(sorted(set(options.only) - set(PROBLEMS)))
    if unknown:
        raise UserError(f"no problem {unknown}: choose from {', '.join(PROBLEMS)}")
    where = options.out or Path("runs") / ("quick/references" if options.quick else "references")
    folder = where / "files" if options.quick else reference.FOLDER
    for name in options.only or PROBLEMS:
        console.rule(name)
        config = PROBLEMS[name]
        if options.quick:
            config = dataclasses.replace(config, **QUICK)
        make(name, dataclasses.replace(config, out=where / name, data_dir=options.data_dir), folder, console)
        jax.clear_caches()


def make(name: str, config: Config, folder: Path, console: Console) -> None:
    """Run one problem's chains and write its files."""
    found = experiment.load_data(config)
    train.main(config, found)
    kept = experiment.reopen(config.out)
    weights, _ = draws.load(config.out, kept.params, config.num_draws // config.block_size)
    predict_each = predict.build_each(kept.model.apply, kept.model.likelihood)
    given = predict_each(draws.pool(weights), found.x_test)
    by_chain = lambda a: a.reshape(config.num_chains, config.num_draws, *a.shape[1:])
    mean, noise = jax.tree.map(by_chain, given)
    if not found.num_classes:
        mean, noise = data.in_own_unit(found.scaling, mean, noise)
    thin = max(1, config.num_chains * config.num_draws // KEPT)
    reference.save(folder, name, config.out, config, found, (mean, noise), thin)
    console.print(f"{folder / name}.npz", highlight=False)


if __name__ == "__main__":
    cli.run(main, Options, __doc__, cpu_devices=lambda options: max(c.num_chains for c in PROBLEMS.values()))
