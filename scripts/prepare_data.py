"""Prepare a data set once, as files that are read at random and without TensorFlow.

    python scripts/prepare_data.py --dataset mnist
    python scripts/prepare_data.py --dataset mnist --data-dir RAW      originals in RAW/mnist, no download
    python scripts/prepare_data.py --dataset folder --path XRAYS --name my_xrays --image-size 224
    python scripts/prepare_data.py --dataset medmnist --path pneumoniamnist.npz --name pneumonia
    python scripts/prepare_data.py --dataset cifar10_tiles --path SHEETS

--dataset is any name of the TensorFlow Datasets catalogue, or one of our own kinds of files. Then, anywhere:
scripts/train.py --dataset mnist, or --dataset my_xrays. Needs pip install -e ".[prepare]"; reading does not.
"""

import contextlib
import dataclasses
import io
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: errors only
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # which would be announced

from rich.console import Console
from rich.progress import Progress

from bnn_jax import builders, cli, data, preparation, prepared
from bnn_jax.types import UserError

OWN = ("folder", "medmnist", "cifar10_tiles")
TILES_NAME = "cifar10_from_tiles"


@dataclasses.dataclass(frozen=True)
class Config:
    dataset: str = "mnist"  # name in the TensorFlow Datasets catalogue, or folder, medmnist, cifar10_tiles
    path: Path | None = None  # file or folder of our own kinds
    name: str | None = None  # what our own is called from now on
    out: Path | None = None  # folder of prepared data; default: TFDS_DATA_DIR, else ~/tensorflow_datasets
    data_dir: Path | None = None  # folder with raw data; default: the environment variable BNN_JAX_DATA
    image_size: int | None = None  # of folder: pixels a side to which images are resized
    channels: int | None = None  # of folder: 1 for grey, 3 for RGB; default: as the files are
    skip_bad: bool = False  # of folder: leave out what cannot be read, and list it, instead of stopping


def main(config: Config) -> None:
    """Prepare, unless it is there, and say where."""
    console = Console()
    say = lambda text: console.print(text, highlight=False, soft_wrap=True, markup=False)
    out = prepared.root(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; choose a folder")
    if not sys.stderr.isatty():
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
    name = own_name(config) if config.dataset in OWN else config.dataset
    say(f"preparing {name} in {out}")
    found = own(config, name, out, console) if config.dataset in OWN else from_catalogue(config, out)
    counts = ", ".join(f"{number:,} {part}" for part, number in found.lengths.items())
    say(f"{'prepared' if found.new else 'already prepared'}: {found.folder}: {counts}")
    for left in found.remains:
        say(f"{left} is of a preparation that did not end: delete it unless one is running")
    here = "" if out == prepared.root() else f" --path {out}"
    say(f"use it: --dataset {name}{here}")


def from_catalogue(config, out):
    """A data set of the catalogue."""
    given = [
        field.name
        for field in dataclasses.fields(config)
        if field.name in ("path", "name", "image_size", "channels", "skip_bad")
        and getattr(config, field.name) != field.default
    ]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise UserError(f"{flag} is for {', '.join(OWN)}; {config.dataset} is taken as the catalogue has it")
    with contextlib.redirect_stdout(io.StringIO()):  # what TFDS prints is wrong of files that lie here
        return preparation.from_catalogue(config.dataset, out, data.data_dir(config))


def own_name(config):
    """What our own data are to be called."""
    if config.name is None and config.dataset != "cifar10_tiles":
        raise UserError(f"--dataset {config.dataset} needs --name NAME, by which the data are loaded later")
    return config.name or TILES_NAME


def own(config, name, out, console):
    """One of our own kinds of files."""
    preparation.check_name(name)
    folder = preparation.existing(name, out)
    if folder is not None:
        return preparation.outcome(folder, new=False)
    preparation.check_packages()
    content = read(config, console)
    if content.left_out:
        told = (f"left out {len(content.left_out)}:", *content.left_out)
        console.print("\n  ".join(told), highlight=False, soft_wrap=True, markup=False)
    with contextlib.redirect_stdout(io.StringIO()):
        return preparation.from_content(name, content, out)


def read(config, console):
    """What to store."""
    if config.dataset != "folder":
        fields = ("dataset", "path", "data_dir", "image_size", "channels", "skip_bad")
        options = data.Options(**{field: getattr(config, field) for field in fields})
        return builders.from_dataset(data.load(options))
    if config.path is None:
        raise UserError("--dataset folder needs --path FOLDER")
    path = data.find_path(config.path, data.data_dir(config))
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("checking the images", total=None)
        checked = lambda done, total: bar.update(task, completed=done, total=total)
        return builders.from_folder(path, config.image_size, config.channels, config.skip_bad, checked)


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
