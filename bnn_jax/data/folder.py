"""A folder of class folders of image files, with or without train, val and test folders around them.

    path/cat/*.png, path/dog/*.png          or          path/train/cat/*.png, path/test/cat/*.png, ...

Part folders are train (training), val (valid, validation) and test (testing), in upper or lower case. A class
is a folder, numbered in the order of the names; so are the files, whatever order the file system has. Names
that begin with a dot or two underscores are passed over, and so is any file outside the class folders that is
no image, as checksums and metadata are. Files of equal decoded pixels never lie in two drawn parts.
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from bnn_jax import pixels
from bnn_jax.data import assemble, partition
from bnn_jax.splits import content_hash, group_ids
from bnn_jax.types import Dataset, UserError

PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def load(
    path: Path | None = None,
    seed: int = 0,
    image_size: int | None = None,
    channels: int | None = None,
    split: str | None = None,
    ratios: tuple[float, float, float] | None = None,
    group_by: str | None = None,
    positive: str | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """The images below `path`, resized to `image_size`, as `pixels.read_all` reads them.

    Without `split`, part folders are kept and missing parts drawn from train (a ratio of 0: not drawn);
    without part folders all are drawn, stratified by class. `group_by` finds in a file's name, without its
    folders, the group that stays together. Classes are numbered by name; `positive` makes one of two class 1.
    An id is the path relative to `path`.

    Raises:
        UserError: no such folder, no class folders or one only, folders that fit neither form, an empty
            class, a class missing in a part; a file in a class folder that is no image (unless `skip_bad`);
            as `pixels.read_all` and `splits.divide`.
    """
    if path is None:
        raise UserError("the data set folder needs --path FOLDER")
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is a file, not a folder" if path.exists() else f"no folder {path}")
    files, left_out = listing(path, skip_bad)
    given = None if files[0][1] is None else np.array([part for _, part, _ in files])
    _check_classes(path, files, split)
    x, kept, unread = pixels.read_all([path / name for name, _, _ in files], image_size, channels, skip_bad)
    left_out += [told.replace(f"{path}{os.sep}", "", 1) for told in unread]
    files = [files[i] for i in kept]
    _check_classes(path, files, split)
    class_names, y = np.unique([label for _, _, label in files], return_inverse=True)
    if positive is not None and (len(class_names) != 2 or positive not in class_names):
        told = ", ".join(class_names)
        raise UserError(f"--positive {positive} must be one of two class folders; {path} has {told}")
    ids = [name for name, _, _ in files]
    parts, how = partition(
        x,
        y,
        ids,
        given=None if given is None else given[kept],
        split=split or ("random" if given is None else "given"),
        ratios=ratios,
        groups=None if group_by is None else group_ids([Path(name).name for name in ids], group_by),
        duplicates=content_hash(x),
        seed=seed,
    )
    if positive == class_names[0]:  # after the split, which stays what it is
        class_names = class_names[::-1]
        parts = {part: found._replace(y=1 - found.y) for part, found in parts.items()}
    height, width, depth = x.shape[1:]
    del x  # the parts hold copies
    name = path.resolve().name
    shape = f"{height} x {width} {'grey' if depth == 1 else 'RGB'}"
    return assemble(
        name,
        **parts,
        num_classes=len(class_names),
        class_names=class_names,
        left_out=left_out,
        description=f"images of folder {name}, {shape}, {len(class_names)} classes, standardised: {how}",
    )


def listing(root: Path, skip_bad: bool) -> tuple[list[tuple[str, str | None, str]], list[str]]:
    """[(relative path, part or None, class)] sorted by path, and what was left out.

    Raises:
        UserError: as `load`, except for what is inside the files.
    """
    parts = _part_folders(root)
    places = [(folder, PARTS[folder.name.lower()]) for folder in parts] or [(root, None)]
    stray = [e for place in (root, *parts) for e in _visible(place) if not e.is_dir() and _is_image(e)]
    bad = [f"{entry.relative_to(root).as_posix()} lies in no class folder" for entry in stray]
    files = []
    for place, part in places:
        classes = _folders(place)
        if not classes:
            raise UserError(f"{place} holds no class folders: give the images of each class a folder")
        for folder in classes:
            entries = {entry.relative_to(root).as_posix(): entry for entry in _visible(folder)}
            inner = next((name for name, entry in entries.items() if entry.is_dir()), None)
            if inner:
                raise UserError(
                    f"{root}: the class folder {folder.name} holds a folder, {inner}: mend --path"
                )
            found = [(name, part, folder.name) for name, entry in entries.items() if _is_image(entry)]
            if not found:
                raise UserError(f"the class folder {folder} holds no images: fill or remove it")
            files += found
            bad += [
                f"{name} has no suffix of an image file ({' '.join(pixels.SUFFIXES)})"
                for name, entry in entries.items()
                if not _is_image(entry)
            ]
    if bad and not skip_bad:
        raise UserError(f"{root}: {bad[0]}: move it away, or pass --skip-bad to leave it out")
    return sorted(files), bad


def _part_folders(root):
    """The folders below `root` if they are parts, [] if they are classes."""
    folders = _folders(root)
    parts, others = [], []
    for folder in folders:
        (parts if folder.name.lower() in PARTS else others).append(folder)
    if parts and others:
        raise UserError(
            f"{root} holds part folders ({parts[0].name}) and others ({others[0].name}): move the others away"
        )
    first = {}
    for folder in parts:
        other = first.setdefault(PARTS[folder.name.lower()], folder)
        if other != folder:
            raise UserError(f"{root} holds {other.name} and {folder.name}, one part twice: join them")
    return parts


def _visible(folder):
    try:
        return sorted(e for e in folder.iterdir() if not e.name.startswith((".", "__")))
    except PermissionError:
        raise UserError(f"the folder {folder} may not be read: look at its rights") from None


def _folders(folder):
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _is_image(file):
    return file.suffix.lower() in pixels.SUFFIXES


def _check_classes(path, files, split):
    """Here with names; `splits.divide` would tell most of it, but knows classes by number only."""
    classes = {label for _, _, label in files}
    if len(classes) < 2:
        raise UserError(f"{path} has one class only ({classes.pop()}); two are needed")
    if files[0][1] is None or split == "random":
        counts = Counter(label for _, _, label in files)
        rare = min(counts, key=counts.get)
        if counts[rare] < 2:
            raise UserError(
                f"{path}: class {rare} has one image, too few to be divided: add some, or remove it"
            )
        return
    by_part = {}
    for _, part, label in files:
        by_part.setdefault(part, set()).add(label)
    for part, found in by_part.items():
        if found != classes:
            raise UserError(
                f"{path}: class {min(classes - found)} has no images in the {part} folder: add some, or draw "
                "the parts anew with --split random"
            )
