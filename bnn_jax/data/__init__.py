"""Data sets, one a file, each `load(path, seed, ...) -> Dataset`; and what all of them share.

A loader reads raw values into `Part`s and hands them to `assemble`, which standardises them by the
training part alone and checks that a network can be trained on them. Beyond `path` and `seed` a loader
may take any field of `Options` by name; one that it does not take and a user sets is refused.
"""

import dataclasses
import hashlib
import inspect
import os
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnn_jax import parts, splits, views
from bnn_jax.types import Dataset, Scaling, UserError

DATA_DIR = "BNN_JAX_DATA"  # environment variable: the folder in which relative --path are looked up, too
NUM_HASHED = 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may say about the data, on every command line that trains on some."""

    dataset: str = "digits"  # data set, by name (bnn_jax/data) or of the TensorFlow Datasets catalogue
    path: Path | None = None  # file or folder of a data set that does not come with the package
    data_dir: Path | None = None  # folder with raw data; default: the environment variable BNN_JAX_DATA
    image_size: int | None = None  # pixels a side to which images are resized
    channels: int | None = None  # 1 for grey, 3 for RGB images; default: as the files are
    split: str | None = None  # given, given_test (validation drawn anew) or random; default: as given
    ratios: tuple[float, float, float] | None = None  # of drawn parts: train, val, test; default 8 1 1
    group_by: str | None = None  # regular expression for file names: equal first groups stay together
    positive: str | None = None  # class folder that recall and precision are of; default the second of two
    target: str | None = None  # column of a table to predict; default: the last
    fold: int | None = None  # which of the splits that come with a table
    stream: bool = False  # read a prepared data set from disk during training, not into memory before
    view: str = "rgb"  # RGB images as rgb, hsv or fourier (bnn_jax/views.py)
    limit: int | None = None  # at most so many examples of each part, drawn at random, for a quick look
    skip_bad: bool = False  # leave out what cannot be read, and list it, instead of stopping


class Part(NamedTuple):
    """One part of a data set as it was read."""

    x: np.ndarray  # (n, H, W, C) uint8 pixels or floats in [0, 1], or (n, F) features
    y: np.ndarray  # (n,) integer labels or float targets
    ids: Sequence[str] = ()  # file name or row of each


def load(options: Options, seed: int = 0) -> Dataset:
    """The data set that `options` describe.

    Raises:
        UserError: no such data set, an option that it does not take, or as its loader says.
    """
    takes = taken(options)
    if options.stream:
        raise UserError("--stream works in scripts/train.py alone: elsewhere data are read into memory")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit must be at least 1, not {options.limit}")
    set_ = chosen(options, takes)
    root = data_dir(options)
    if "data_dir" in takes:
        set_["data_dir"] = root
    if "name" in takes:
        set_["name"] = options.dataset
    found = _loader(options)(path=find_path(options.path, root), seed=seed, **set_)
    found = found if options.limit is None else limited(found, options.limit, seed)
    return found if options.view == "rgb" else viewed(found, options.view)


def generated(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    sizes: Sequence[int],
    class_names: Sequence[str],
    description: str,
) -> Dataset:
    """A data set of drawn examples: the first `sizes[0]` train, the next validate, the rest test."""
    train, val, test = (
        Part(x[rows], y[rows], rows) for rows in np.split(np.arange(len(y)), np.cumsum(sizes)[:2])
    )
    names = tuple(class_names)
    return assemble(
        name, train, test, val, num_classes=len(names), class_names=names, description=description
    )


def limited(found: Dataset, limit: int, seed: int = 0) -> Dataset:
    """At most `limit` examples of each part, in their order; scaled as they were.

    Raises:
        UserError: so few that a class is missing from the training part.
    """
    taken, ids = {}, dict(found.ids)
    for number, part in enumerate(splits.PARTS):
        x, y = getattr(found, f"x_{part}"), getattr(found, f"y_{part}")
        if x is not None and len(x) > limit:
            rows = np.sort(np.random.default_rng((seed, number)).permutation(len(x))[:limit])
            taken |= {f"x_{part}": x[rows], f"y_{part}": y[rows]}
            if part in ids:
                ids[part] = tuple(ids[part][row] for row in rows)
    description = f"{found.description}; at most {limit:,} of each part"
    return check(found._replace(**taken, ids=ids, description=description))


def viewed(found: Dataset, view: str) -> Dataset:
    """The same RGB images in another view (`views`), standardised by it.

    Raises:
        UserError: no such view, or not RGB images.
    """
    if found.x_train.ndim != 4 or found.x_train.shape[-1] != 3:
        raise UserError(f"--view {view} is for RGB images; {found.name} has none")
    given = [f"x_{part}" for part in splits.PARTS if getattr(found, f"x_{part}") is not None]
    raw = {name: views.apply(view, to_images(getattr(found, name), found.scaling)) for name in given}
    shift, scale = _moments(raw["x_train"])
    scale = _guarded(shift, scale)
    arrays = {name: (x - shift) / scale for name, x in raw.items()}
    scaling = found.scaling._replace(shift=shift, scale=scale)
    return found._replace(**arrays, scaling=scaling, description=f"{found.description}; view {view}")


def chosen(options: Options, takes: Collection[str]) -> dict[str, Any]:
    """What the user has set beyond data set and place, by name.

    Raises:
        UserError: something that is not in `takes`.
    """
    places = ("dataset", "path", "data_dir", "stream", "view", "limit")
    fields = [field for field in dataclasses.fields(Options) if field.name not in places]
    set_ = {f.name: getattr(options, f.name) for f in fields if getattr(options, f.name) != f.default}
    for name in set_:
        if name not in takes:
            raise UserError(f"the data set {options.dataset} takes no --{name.replace('_', '-')}")
    return set_


def taken(options: Options) -> frozenset[str]:
    """The names of the fields of `Options` that the loader of this data set takes."""
    return frozenset(inspect.signature(_loader(options)).parameters)


def names() -> list[str]:
    """The data sets that have a loader of their own; every other name is one of the catalogue's."""
    return parts.names("data set")


def in_own_unit(scaling: Scaling, means: Any, variances: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predicted means and variances of standardised targets in the unit of the target, float64."""
    shift, scale = scaling.target_shift, scaling.target_scale
    return np.float64(means) * scale + shift, np.float64(variances) * scale**2


def targets_in_own_unit(scaling: Scaling, y: Any) -> np.ndarray:
    """Standardised targets in their own unit, float64."""
    return np.float64(y) * scaling.target_scale + scaling.target_shift


def _loader(options):
    return parts.find("data set", options.dataset if options.dataset in names() else "catalogue")


def data_dir(options: Options) -> Path | None:
    """The raw-data folder: `--data-dir`, else the environment variable, else None."""
    set_ = options.data_dir or os.environ.get(DATA_DIR)
    return Path(set_) if set_ else None


def find_path(path: Path | None, root: Path | None) -> Path | None:
    """`path` as it is where it exists, else inside the raw-data folder where it exists there."""
    if path is None or path.exists() or root is None or not (root / path).exists():
        return path
    return root / path


def read_npz(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), form: str = "the right"
) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file, those of `optional` that it has. Pickled objects are never loaded.

    Raises:
        UserError: no such file, damaged, no .npz file, not of the format called `form` because an array is
            missing, or an array of pickled objects.
    """
    try:
        with open(path, "rb") as raw:
            if not zipfile.is_zipfile(raw):  # np.load would take text for a pickle
                raise UserError(f"{path} is damaged or not an .npz file: fetch it again, or look at its name")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                missing = [name for name in required if name not in file.files]
                if missing:
                    raise UserError(f"{path} is not in {form} format: no array {', '.join(missing)}")
                return {n: file[n] for n in (*required, *optional) if n in file.files}
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise UserError(
                f"{path} holds pickled Python objects, which are never loaded as they can run any code: "
                "save its arrays as numbers or text"
            ) from None
        raise UserError(f"{path} is damaged or not an .npz file: {' '.join(str(error).split())}") from None


def partition(
    x: np.ndarray,
    y: np.ndarray,
    ids: Sequence[str],
    *,
    given: Sequence[str] | None = None,
    split: str | None = None,
    ratios: Sequence[float] | None = None,
    groups: Sequence[str] | None = None,
    duplicates: Sequence[str] | None = None,
    stratify: bool = True,
    seed: int = 0,
) -> tuple[dict[str, Part], str]:
    """The parts "train", "test" and where there is one "val" of (N, ...) examples, and how they were made.

    Without `split` and `ratios`, parts that the data came with are taken as they are; with either, or where
    none came, `splits.divide` draws (`split` None: what is missing). `ratios` None is 8:1:1.

    Raises:
        UserError: as `splits.divide`; or `ratios` or `groups` are set although nothing is drawn.
    """
    if given is not None and split is None and ratios is None and groups is None:
        part, how = np.asarray(given), "the parts it came with"
    else:
        mode = split or ("random" if given is None else "given")
        unused = [flag for flag, value in (("--ratios", ratios), ("--group-by", groups)) if value is not None]
        complete = mode == "given" and given is not None and set(splits.PARTS) <= set(given)
        if complete and unused:
            raise UserError(f"{unused[0]} has no use, as the data come with all parts: draw some by --split")
        ratios = (8, 1, 1) if ratios is None else ratios
        kept = dict(stratify=stratify, groups=groups, duplicates=duplicates)
        part = splits.divide(y, mode=mode, given=given, ratios=ratios, seed=seed, **kept)
        drawn = "" if complete else f", drawn parts {':'.join(f'{r:g}' for r in ratios)}, seed {seed}"
        how = f"split {mode}{drawn}"
    ids = np.asarray(ids)
    found = {p: Part(x[part == p], y[part == p], ids[part == p]) for p in splits.PARTS}
    if len(found["val"].y) == 0:
        del found["val"]
    counts = ", ".join(f"{len(read.y)} {p}" for p, read in found.items())
    return found, f"{counts}; {how}"


def assemble(
    name: str,
    train: Part,
    test: Part,
    val: Part | None = None,
    *,
    num_classes: int,
    description: str,
    class_names: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> Dataset:
    """Standardise by the training part and check.

    Images are standardised by the mean and standard deviation of all training pixels of a channel,
    features by those of their column (a constant one is only shifted), regression targets likewise.

    Raises:
        UserError: as `check`; or all training pixels have one value.
    """
    found = {"train": train, "test": test} | ({} if val is None else {"val": val})
    raw = {
        part: to_float(read.x) if np.ndim(read.x) == 4 else np.array(read.x, float)
        for part, read in found.items()
    }
    images = raw["train"].ndim == 4
    if raw["train"].size == 0:
        raise UserError(f"data set {name}, training part: no examples")
    shift, scale = _moments(raw["train"])
    if images and (scale == 0).all():
        raise UserError(f"data set {name}: all training pixels have the same value")
    scale = _guarded(shift, scale)
    scaling = Scaling(shift, scale)
    if num_classes == 0:
        target = np.asarray(train.y, np.float64)
        spread = float(target.std())
        scaling = Scaling(shift, scale, float(target.mean()), spread if spread > 0 else 1.0)
    arrays = {}
    for part, read in found.items():
        raw[part] -= shift  # in place: large images fit into memory once, not twice
        raw[part] /= scale
        arrays[f"x_{part}"] = raw[part].astype(np.float32, copy=False)
        if num_classes:
            arrays[f"y_{part}"] = np.asarray(read.y).astype(np.int32)
        else:
            centred = np.asarray(read.y, np.float64) - scaling.target_shift
            arrays[f"y_{part}"] = (centred / scaling.target_scale).astype(np.float32)
    return check(
        Dataset(
            name=name,
            **arrays,
            num_classes=num_classes,
            description=description,
            scaling=scaling,
            class_names=tuple(map(str, class_names)),
            ids={part: tuple(map(str, read.ids)) for part, read in found.items() if len(read.ids)},
            left_out=tuple(left_out),
        )
    )


def _moments(x):
    """Mean and standard deviation over all axes but the last, in float64, as the sum of millions of float32
    pixels loses digits and differs between machines; block by block, as a float64 copy may not fit."""
    axes, blocks = tuple(range(x.ndim - 1)), range(0, len(x), 256)
    number = x.size // x.shape[-1]
    mean = sum(x[i : i + 256].sum(axes, dtype=np.float64) for i in blocks) / number
    variance = sum(np.square(x[i : i + 256] - mean).sum(axes) for i in blocks) / number
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def _guarded(shift, scale):
    """The scale, 1 where a column is constant."""
    return np.where(scale > 1e-7 * np.maximum(np.abs(shift), 1e-30), scale, np.float32(1))


def to_float(x: np.ndarray) -> np.ndarray:
    """Raw values as float32; uint8 pixels 0..255 become 0..1."""
    x = np.asarray(x)
    return np.divide(x, np.float32(255)) if x.dtype == np.uint8 else x.astype(np.float32)


def to_images(x: Any, scaling: Scaling) -> np.ndarray | None:
    """Network inputs as pictures: (n, H, W) or (n, H, W, 3) in [0, 1]; None if they are no images."""
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        return None
    raw = np.clip(x * scaling.scale + scaling.shift, 0, 1)
    return raw[..., 0] if raw.shape[-1] == 1 else raw


def fingerprint(data: Dataset) -> str:
    """A hash of every array and of their order: equal data, equal hash. Of inputs that are streamed from
    disk, `NUM_HASHED` examples count for all."""
    digest = hashlib.sha256()
    for part in ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"):
        array = getattr(data, part)
        if array is not None:
            if not isinstance(array, np.ndarray):
                array = array[np.linspace(0, len(array) - 1, NUM_HASHED).astype(int)]
            digest.update(f"{part} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check(data: Dataset) -> Dataset:
    """`data`, if a network can be trained on it.

    Raises:
        UserError: an empty part, lengths that differ, NaN or infinite values, labels out of range,
            a single class.
    """
    given = [("training", data.x_train, data.y_train), ("test", data.x_test, data.y_test)]
    if data.x_val is not None:
        given.append(("validation", data.x_val, data.y_val))
    for part, x, y in given:
        where = f"data set {data.name}, {part} part"
        if len(x) == 0:
            raise UserError(f"{where}: no examples")
        if len(x) != len(y):
            raise UserError(f"{where}: {len(x)} inputs but {len(y)} targets")
        x = x if isinstance(x, np.ndarray) else y  # streamed inputs are not read through
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
