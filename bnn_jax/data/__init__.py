"""Data sets, one a file, each `load(path, seed) -> Dataset`; and the checks that all of them pass."""

import numpy as np

from bnn_jax.types import Dataset, UserError


def check(data: Dataset) -> Dataset:
    """`data`, if a network can be trained on it.

    Raises:
        UserError: an empty part, lengths that differ, NaN or infinite values, labels out of range,
            a single class.
    """
    for part, x, y in (("training", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        where = f"data set {data.name}, {part} part"
        if len(x) == 0:
            raise UserError(f"{where}: no examples")
        if len(x) != len(y):
            raise UserError(f"{where}: {len(x)} inputs but {len(y)} targets")
        if not np.isfinite(x).all() or not np.isfinite(y).all():
            bad = int((~np.isfinite(np.asarray(x).reshape(len(x), -1)).all(1)).sum()) or "some"
            raise UserError(f"{where}: NaN or infinite values ({bad} examples); clean or drop them")
        if data.num_classes:
            if not np.issubdtype(np.asarray(y).dtype, np.integer):
                raise UserError(f"{where}: class labels must be integers, not {np.asarray(y).dtype}")
            if y.min() < 0 or y.max() >= data.num_classes:
                raise UserError(
                    f"{where}: labels must lie in 0..{data.num_classes - 1}, found {y.min()}..{y.max()}"
                )
    if data.num_classes and len(np.unique(data.y_train)) < 2:
        raise UserError(f"data set {data.name}: the training part has one class only; two are needed")
    return data
