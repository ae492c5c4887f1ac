"""One network, prior, likelihood and split under several inference methods, and how far each is from HMC.

    python scripts/compare.py                      digits, 2 CPU cores: about 3 minutes
    python scripts/compare.py --quick              the same in half a minute, too short to trust
    python scripts/compare.py --from RUN           table and report of a finished run, nothing sampled

MAP is trained first, once a chain: chains and variational means start there. The run folder keeps every
step's result; the same command continues an interrupted run and repeats the table of a finished one.
"""

import dataclasses
import math
import time
import zlib
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from bnn_jax import (
    checkpoint,
    cli,
    compare,
    diagnostics,
    draws,
    ensemble,
    estimators,
    inference_data,
    loop,
    objectives,
    ops,
    parts,
    predict,
    runs,
    sharding,
    trees,
)
from bnn_jax.report import comparison, tables
from bnn_jax.report.progress import track
from bnn_jax.types import Algorithm, Batch, Dataset, Params, UserError


@dataclasses.dataclass(frozen=True)
class Config:
    dataset: str = "digits"  # data set, by name (bnn_jax/data)
    path: Path | None = None  # file or folder of a data set that does not come with the package
    net: str = "digits"  # network, by name (bnn_jax/nets)
    methods: tuple[str, ...] = ("map", "vi", "hmc")  # methods, by name (bnn_jax/infer)
    prior: str = "fan_in"  # prior, by name (bnn_jax/priors)
    seed: int = 0  # of the split, the starts and all random numbers
    out: Path | None = None  # run folder; default runs/compare-DATASET-NET-seedSEED
    quick: bool = False  # short settings that show everything and prove nothing
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None  # finished run to report on again
    batch_size: int = 128  # examples a step of MAP and VI
    map_steps: int = 1500
    map_learning_rate: float = 1e-2  # Adam, cosine decay to 0
    vi_steps: int = 5000
    vi_learning_rate: float = 5e-3  # Adam, cosine decay to 0
    beta_warmup: int = 500  # steps over which the KL weight rises from 0 to 1
    posterior: str = "mean_field"  # variational family, by name (bnn_jax/posteriors)
    estimator: str = "flipout"  # sampling, antithetic, local_reparam or flipout
    num_samples: int = 1  # weight samples a step of VI
    kl: str = "closed_form"  # closed_form (Gaussian priors) or monte_carlo
    vi_draws: int = 200  # draws of the variational posterior that are compared
    num_chains: int = 2  # each starts at a MAP solution of its own, on a device of its own
    num_warmup: int = 60  # steps that adapt the step size, a multiple of block_size
    num_draws: int = 160  # draws a chain, a multiple of block_size
    thin: int = 1  # steps a draw
    block_size: int = 20  # draws a chain between two writes to disk
    trajectory_length: float = math.pi / 4  # of HMC, in prior widths
    num_bootstrap: int = 200  # replicates behind every interval


QUICK = dict(
    map_steps=200, vi_steps=400, beta_warmup=50, vi_draws=20, num_warmup=20, num_draws=20, block_size=10,
    trajectory_length=0.1, num_bootstrap=50,
)  # fmt: skip
REFERENCES = ("hmc", "nuts")  # the first of these that runs is what the others are compared with


class Fitted(NamedTuple):
    """A method's draws on the host: leaves (C, D, ...)."""

    draws: Params
    trace: dict[str, np.ndarray]  # name -> (C, D), empty for a method without chains
    seconds: float


def main(config: Config) -> int:
    """Run, print the table, write the folder. Exit code 1 if no chain of the reference is sound."""
    console = Console()
    config, out = settle(config)
    jax.config.update("jax_compilation_cache_dir", None)
    data = parts.find("data set", config.dataset)(config.path, config.seed)
    methods = build_methods(config, data)
    if config.source is None:
        runs.claim(out, "compare", runs.as_config(config, leave_out=("out", "source")))
    fitted = fit_all(config, data, methods, out, console)
    results, arrays = judge(config, data, fitted)
    runs.write_json(out / "results.json", results)
    comparison.write(out, results, arrays)
    console.print(tables.console(results))
    console.print(f"\nreport: {out / 'report.html'}", highlight=False, soft_wrap=True)
    return 1 if results["reference"] is None and set(REFERENCES) & set(config.methods) else 0
