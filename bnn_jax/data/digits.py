"""Handwritten digits, 1,797 real 8x8 images that come with scikit-learn (Alpaydin & Kaynak 1998).

They are the test part of the UCI "Optical Recognition of Handwritten Digits": 32x32 bitmaps counted in
4x4 blocks, so pixels are 0..16.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from bnn_jax.data import Part, assemble
from bnn_jax.types import Dataset, UserError

NUM_TEST = 500


def load(path: Path | None = None, seed: int = 0) -> Dataset:
    """1,297 training and 500 test images, split at random by `seed`, stratified by digit.

    Pixels are standardised with the mean and standard deviation of all training pixels.

    Raises:
        UserError: a path is given; this data set comes with scikit-learn.
    """
    if path is not None:
        raise UserError("the data set digits comes with scikit-learn and takes no --path")
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=NUM_TEST, random_state=seed, stratify=labels)
    return assemble(
        "digits",
        Part(images[train], labels[train], train),
        Part(images[test], labels[test], test),
        num_classes=10,
        class_names=range(10),
        description="scikit-learn's 8x8 handwritten digits, standardised, stratified random split",
    )
