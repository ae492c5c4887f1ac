"""Toy images, generated: a sinusoidal grating in one of four orientations in strong noise, (N, 12, 12, 1).

    x_ij = 1/2 + CONTRAST sin 2 pi (c (j cos a_k + i sin a_k) / 12 + u) + NOISE e_ij,    a_k = 45 deg k

c ~ U(1.5, 3.5) cycles, u ~ U(0, 1), e_ij ~ N(0, 1); the few pixels beyond [0, 1] are clipped. The class is
the orientation k. As the phase u is uniform, every class has the same mean image and nothing linear in x
tells them apart. Right of a hundred: logistic regression 26 (a guess 25), a Gaussian with a covariance a
class 55, the nets `digits` 87 and `convnet(widths=(16, 32))` 93, the best possible decision, with c and u
integrated out, 98.
"""

from pathlib import Path

import numpy as np

from bnn_jax.data import generated
from bnn_jax.types import Dataset, UserError

SIDE = 12
CYCLES = (1.5, 3.5)  # lowest and highest number of cycles in twelve pixels
CONTRAST = 0.1
NOISE = 0.18  # standard deviation of a pixel
CLASSES = ("vertical", "rising", "horizontal", "falling")  # how the stripes run, row 0 at the top
SIZES = (1200, 300, 600)  # training, validation, test


def load(path: Path | None = None, seed: int = 0) -> Dataset:
    """1,200 training, 300 validation and 600 test images, all drawn by `seed`, as many of each class.

    Raises:
        UserError: a path is given; this data set is generated.
    """
    if path is not None:
        raise UserError("the data set gratings is generated and takes no --path")
    rng = np.random.default_rng(seed)
    y = np.arange(sum(SIZES)) % len(CLASSES)
    x = pattern(y, rng.uniform(*CYCLES, len(y)), rng.uniform(size=len(y)))
    x = np.clip(x + NOISE * rng.standard_normal(x.shape), 0, 1)[..., None]
    description = f"generated {SIDE}x{SIDE} gratings in noise, standardised, seed {seed}"
    return generated("gratings", x, y, SIZES, CLASSES, description)


def pattern(label: np.ndarray, cycles: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """The images without noise, (n, 12, 12).

    Args:
        label: (n,) classes. cycles: (n,) in twelve pixels across the stripes. phase: (n,) in cycles.
    """
    row, column = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, cycles, phase = (
        np.asarray(a)[:, None, None] for a in (np.pi / 4 * np.asarray(label), cycles, phase)
    )
    across = column * np.cos(angle) + row * np.sin(angle)
    return 0.5 + CONTRAST * np.sin(2 * np.pi * (cycles * across + phase))
