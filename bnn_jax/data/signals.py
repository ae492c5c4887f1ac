"""Toy signals, generated: sine, square or saw-tooth waves in Gaussian noise, (N, 32, 1), three classes.

    x_i = wave_k(c i / L + u) + NOISE e_i,    c ~ U(2, 5) cycles,  u ~ U(0, 1),  e_i ~ N(0, 1),  i < L = 32

The waves have mean 0 and root mean square 1. As the phase u is uniform, every class has the same mean signal
and nothing linear in x tells them apart. Right of a hundred: logistic regression 34 (a guess 33), a Gaussian
with a covariance a class 63, two 1-D convolutions with pooling and a global average 91, the best possible
decision, with c and u integrated out, 96: some signals are ambiguous, whatever the classifier.
"""

from pathlib import Path

import numpy as np

from bnn_jax.data import generated
from bnn_jax.types import Dataset, UserError

LENGTH = 32
CYCLES = (2.0, 5.0)  # lowest and highest number of cycles in a signal
NOISE = 0.6  # standard deviation, in units of the wave's root mean square
CLASSES = ("sine", "square", "saw-tooth")
SIZES = (1200, 300, 600)  # training, validation, test


def load(path: Path | None = None, seed: int = 0) -> Dataset:
    """1,200 training, 300 validation and 600 test signals, all drawn by `seed`, as many of each class.

    Raises:
        UserError: a path is given; this data set is generated.
    """
    if path is not None:
        raise UserError("the data set signals is generated and takes no --path")
    rng = np.random.default_rng(seed)
    y = np.arange(sum(SIZES)) % len(CLASSES)
    x = pattern(y, rng.uniform(*CYCLES, len(y)), rng.uniform(size=len(y)))
    x = (x + NOISE * rng.standard_normal(x.shape))[..., None]
    description = f"generated waves of {LENGTH} samples in noise, standardised, seed {seed}"
    return generated("signals", x, y, SIZES, CLASSES, description)


def pattern(label: np.ndarray, cycles: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """The waves without noise, (n, 32).

    Args:
        label: (n,) classes. cycles: (n,) in a signal. phase: (n,) in cycles.
    """
    turn = (np.arange(LENGTH) / LENGTH * cycles[:, None] + phase[:, None]) % 1
    waves = (
        np.sqrt(2) * np.sin(2 * np.pi * turn),
        np.where(turn < 0.5, 1.0, -1.0),
        np.sqrt(3) * (2 * turn - 1),
    )
    return np.choose(np.asarray(label)[:, None], waves)
