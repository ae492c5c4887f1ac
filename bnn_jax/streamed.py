"""A prepared data set whose inputs stay on disk: a `Dataset` of `stream.Source`s."""

from bnn_jax import data, prepared, stream
from bnn_jax.types import Dataset, UserError


def load(options: data.Options) -> Dataset:
    """The parts train, test and, where there is one, val of a set that `scripts/prepare_data.py` prepared.

    Targets are in memory, inputs are read when they are used, standardised by the training part.

    Raises:
        UserError: an option that draws parts or picks rows (a stream keeps the parts that it has), no such
            set, or one without test part.
    """
    if options.dataset in data.names():
        raise UserError(f"--stream is for prepared data sets; {options.dataset} is read into memory")
    if options.limit is not None:
        raise UserError("--stream reads whole parts: leave --limit out")
    if options.view != "rgb":
        raise UserError(f"--stream reads pixels as they are: leave --view {options.view} out")
    how = data.chosen(options, ("image_size", "channels"))
    root = prepared.root(data.find_path(options.path, data.data_dir(options)))
    found = prepared.open_folder(prepared.find(options.dataset, root), **how)
    missing = [part for part in ("train", "test") if not found.lengths.get(part)]
    if missing:
        raise UserError(
            f"{found.full_name} has no {missing[0]} part, and a stream keeps the parts that it has: leave "
            "--stream out to have one drawn"
        )
    train = stream.from_catalogue(options.dataset, "train", root, **how)
    parts = {"train": train}
    for part in ("val", "test"):
        if found.lengths.get(part):
            scaling = train.x.scaling
            parts[part] = stream.from_catalogue(options.dataset, part, root, scaling=scaling, **how)
    return data.check(
        Dataset(
            name=options.dataset,
            **{f"x_{part}": batch.x for part, batch in parts.items()},
            **{f"y_{part}": batch.y for part, batch in parts.items()},
            num_classes=len(found.class_names),
            description=f"{found.full_name} by TensorFlow Datasets, standardised, streamed in its own parts",
            scaling=train.x.scaling,
            class_names=found.class_names,
        )
    )
