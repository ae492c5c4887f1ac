"""The types that every part shares: NamedTuples of arrays or of pure functions.

Axis letters used in shapes throughout the package:
    B batch   S weight samples in one step   D posterior draws   C chains   K classes
    T test points   P weights (all leaves, flattened)   N training examples   F features of a table

Keys are typed (`jax.random.key`), always the first argument, never returned and never stored.
All log densities are in nats.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

Key = jax.Array  # a typed PRNG key, `jax.random.key(seed)`
Params = Any  # a pytree of float arrays: the weights of a network
Info = dict[str, jax.Array]  # named scalars, for logs and traces
# (key, phi, x) -> (outputs (S, B, ...), the S weight samples stacked, or None where none are drawn)
Estimator = Callable[[Key, Any, jax.Array], tuple[jax.Array, Params | None]]


class UserError(ValueError):
    """A mistake of the user's, told in one line: what, where, what to do. Scripts exit with 2."""


def positive(what: str, value: float) -> float:
    """`value`, if it is a finite positive number.

    Raises:
        UserError: it is not; `what` begins the line.
    """
    if not 0 < value < float("inf"):
        raise UserError(f"{what} must be a positive number, not {value}")
    return float(value)


class Batch(NamedTuple):
    """Examples and their targets."""

    x: Any  # (B, ...) float
    y: Any  # (B,) int labels, or float targets


class Prior(NamedTuple):
    """A prior p(w) over a parameter pytree; every weight is independent."""

    sample: Callable  # (key, like: Params) -> Params
    log_prob: Callable  # (params) -> ()                             nats, normalised
    scale: Callable  # (like) -> Params   the width of each weight's prior, HMC's unit of length
    moments: Callable | None = None  # (like) -> (mean, std), for a Gaussian prior only


class Likelihood(NamedTuple):
    """p(y | outputs), one example at a time."""

    log_prob: Callable  # (outputs, y) -> (B,)                       nats
    mean: Callable  # (outputs) -> (B, K) probabilities, or (B,) predicted means
    noise: Callable  # (outputs) -> (B,) entropy in nats, or variance: the aleatoric part
    task: str  # "classification" or "regression"
    # (outputs, y) -> (R, *outputs.shape): sum_r root_r root_r^T is the Fisher information of one example's
    # outputs, E s s^T over p(y | outputs), s = d log_prob / d outputs; y only for weights an example
    fisher_root: Callable | None = None


class Posterior(NamedTuple):
    """A variational family q_phi(w)."""

    init: Callable  # (params) -> phi, centred on params
    sample: Callable  # (key, phi) -> params
    log_prob: Callable  # (phi, params) -> ()                        nats
    kl: Callable | None = None  # (phi, prior) -> () KL(q || p) in closed form, Gaussian priors only
    moments: Callable | None = None  # (phi) -> (mean, std) if independent and symmetric


class Algorithm(NamedTuple):
    """An inference method. With `chain`, the states of successive steps are the draws; without,
    the last state is a distribution and repeated `sample` calls are."""

    init: Callable  # (key, params) -> state
    step: Callable  # (key, state, batch) -> (state, info)
    sample: Callable  # (key, state) -> params
    chain: bool = False
    linearise_at: Callable | None = None  # (state) -> params: draws predict by the network's tangent there
    log_prob: Callable | None = None  # (state, params) -> () nats, the density that `sample` draws from
    point: bool = False  # whether `sample` gives the same weights under every key
    whole: bool = False  # whether draws are made of the last steps of a run, which must not stop early


class Scaling(NamedTuple):
    """What was done to raw values: x = (raw - shift) / scale, y = (raw - target_shift) / target_scale.
    Raw pixels lie in [0, 1]; shift and scale broadcast over the last axis."""

    shift: Any  # () or (C,) of images, (F,) of features; float32
    scale: Any
    target_shift: float = 0.0  # of regression targets, whose raw unit is the data's own
    target_scale: float = 1.0


class Dataset(NamedTuple):
    """A data set in its parts, as NumPy arrays that a network takes as they are.

    Images are (N, H, W, C), features (N, F), both standardised by `scaling`; so are regression targets."""

    name: str
    x_train: Any  # (N, ...) float32
    y_train: Any  # (N,) int32 labels or float32 targets
    x_test: Any
    y_test: Any
    num_classes: int  # 0 for regression
    description: str  # one line: source, preprocessing, split
    scaling: Scaling
    x_val: Any = None  # the validation part, or None
    y_val: Any = None
    class_names: tuple[str, ...] = ()  # one a class, or none known
    ids: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # part (train, val, test) -> file names or rows
    left_out: tuple[str, ...] = ()  # what could not be read and was skipped on request: file and reason
