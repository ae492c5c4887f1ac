"""The settings of a training run, and what follows from them alone."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bnn_jax import augment, chains, data, runs
from bnn_jax.types import Dataset, UserError

EPOCHS = 20  # without --epochs and --steps
FREE = ("path", "data_dir", "keep", "tensorboard")  # may change when a run goes on


@dataclasses.dataclass(frozen=True)
class Config(augment.Augmentation, data.Options):
    """The settings of a run."""

    net: str = "lenet"  # network, by name (bnn_jax/nets)
    method: str = "vi"  # method, by name (bnn_jax/infer)
    out: Path | None = None  # run folder; default runs/train-DATASET-NET-METHOD-seedSEED
    seed: int = 0  # of the split, the start and all random numbers
    prior: str = "fan_in"  # prior, by name (bnn_jax/priors)
    members: int = 1  # independent members of an ensemble, trained side by side
    pretrained: Path | None = None  # a run folder or an orbax checkpoint of parameters to start from
    epochs: int | None = None  # passes over the training data; default 20
    steps: int | None = None  # instead of epochs
    batch_size: int = 128  # examples a step
    optimizer: str = "adam"  # by its optax name
    learning_rate: float = 1e-3  # the highest of the schedule
    schedule: str = "cosine"  # cosine (to 0) or constant
    warmup: int = 0  # steps over which the learning rate rises from 0
    patience: int | None = None  # stop after so many evaluations without a better score; keep the best
    plateau_patience: int | None = None  # lower the learning rate after so many, likewise
    plateau_factor: float = 0.1  # by which it is lowered
    plateau_floor: float = 1e-9  # lowest learning rate of the plateau
    monitor: str = "val_nll"  # that score: val_nll, val_accuracy (of classes) or val_rmse (of a regression)
    eval_every: int | None = None  # steps between evaluations and checkpoints; default an epoch
    record_std: bool = False  # add the posterior standard deviation of every layer to the history (VI)
    eval_draws: int = 10  # posterior draws of an evaluation during training
    keep: int = 2  # newest checkpoints that are kept, besides the best
    compute: str = "float32"  # or bfloat16: the forward pass; weights and KL stay float32
    noise: str = "learned"  # of a regression: learned (one level), input (a second output) or its known value
    posterior: str = "mean_field"  # variational family, by name (bnn_jax/posteriors)
    estimator: str = "flipout"  # sampling, antithetic, local_reparam or flipout
    num_samples: int = 1  # weight samples a step of VI
    strategy: str | None = None  # how they run: unroll, vmap, map, map(c): c at a time; default by backend
    kl: str = "closed_form"  # closed_form (Gaussian priors) or monte_carlo
    temperature: float = 1.0  # of the posterior; below 1 a cold one
    beta: float = 1.0  # the KL weight; 1 is the ELBO
    beta_warmup: int = 0  # steps over which the KL weight rises from 0
    balance: str = "none"  # none, class_weights, over_sample, under_sample or focal
    focal_gamma: float = 2.0  # exponent of the focal loss
    crop_stride: int | None = None  # predict by averaging over crops so many pixels apart; default the centre
    tensorboard: bool = False  # also write the history for TensorBoard (pip install tensorboardX)
    num_chains: int = 2  # of a method that has chains, each starting at a MAP solution of its own
    num_warmup: int = 60  # steps that adapt the step size, a multiple of block_size
    num_draws: int = 160  # draws a chain, a multiple of block_size
    thin: int = 1  # steps a draw
    block_size: int = 20  # draws a chain between two writes to disk
    trajectory_length: float = math.pi / 4  # of HMC, in prior widths
    max_tree_depth: int = 8  # of NUTS


def num_steps(config: Config, visited: int) -> int:
    """Optimisation steps, for `visited` examples an epoch."""
    return config.steps or (config.epochs or EPOCHS) * (visited // config.batch_size)


def over_images(config: Config) -> Callable:
    """How a prediction for crops becomes one for images: see `predict.build`."""
    if config.crop is None:
        return lambda f: f
    if config.crop_stride is not None:
        return partial(augment.over_crops, size=config.crop, stride=config.crop_stride)
    return lambda f: lambda images: f(augment.centre_crop(images, config.crop))


def input_shape(config: Config, x_shape: Sequence[int]) -> tuple[int, ...]:
    """(H, W, C) or (F,) of what the network sees, for examples of `x_shape`."""
    return tuple(x_shape) if config.crop is None else (config.crop, config.crop, x_shape[-1])


def folder(config: Config) -> Path:
    """The run folder: `--out`, or one named after the settings."""
    name = f"train-{config.dataset}-{config.net}-{config.method}-seed{config.seed}"
    return config.out or Path("runs") / runs.slug(name)


def check(config: Config, found: Dataset) -> None:
    """Raise a UserError in one line unless the settings are in range and fit the data and one another."""
    for name in ("members", "batch_size", "eval_draws", "keep", "num_chains"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(config, name)}")
    for name in ("epochs", "steps", "eval_every", "patience", "plateau_patience", "crop_stride"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if config.epochs is not None and config.steps is not None:
        raise UserError("--epochs and --steps exclude each other")
    if found.x_val is None and (config.patience is not None or config.plateau_patience is not None):
        raise UserError(
            f"--patience and --plateau-patience need a validation part; the data set {found.name} has none"
        )
    if not 0 <= config.beta < math.inf or config.beta_warmup < 0:
        raise UserError("--beta and --beta-warmup must not be negative, nor infinite")
    if config.crop_stride is not None and config.crop is None:
        raise UserError("--crop-stride needs --crop, the side of the crops")
    if config.crop is not None:
        sides = found.x_train.shape[1:-1]
        if len(sides) != 2 or config.crop > min(sides):
            raise UserError(f"--crop {config.crop} does not fit inputs of shape {found.x_train.shape[1:]}")
    scores = ("val_nll", "val_accuracy" if found.num_classes else "val_rmse")
    if config.monitor not in scores:
        raise UserError(f"--monitor must be {' or '.join(scores)} for {found.name}, not {config.monitor!r}")
    if not found.num_classes and config.balance != "none":
        raise UserError(f"--balance is for classes; the data set {found.name} is a regression")


def check_chain(config: Config, transform: Callable | None) -> None:
    """The same for a method with chains, which need the plain likelihood of the full data."""
    if transform is not None or config.balance != "none":
        raise UserError(
            f"{config.method} samples the posterior of the data as they are: no augmentation, no --balance"
        )
    if config.stream:
        raise UserError(f"{config.method} takes all data in every step: leave --stream out")
    if config.members != 1:
        raise UserError(f"{config.method} runs --num-chains chains and takes no --members")
    chains.check_blocks(
        config.num_chains, config.num_warmup, config.num_draws, config.thin, config.block_size
    )
