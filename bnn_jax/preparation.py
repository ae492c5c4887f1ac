"""Preparing data sets once, as array_record files that are read at random and without TensorFlow.

TensorFlow Datasets (TFDS) writes into a folder `incomplete.*` and renames it when all is there, so what an
interrupted preparation leaves is never taken for a data set. Originals that lie in the raw-data folder, in a
subfolder of the data set's name, are taken from there, after their checksums; others are downloaded.
"""

import contextlib
import difflib
import errno
import importlib.util
import os
import re
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bnn_jax import builders, parts, prepared
from bnn_jax.types import UserError

NEEDED = ("tensorflow", "importlib_resources")  # by TFDS to prepare, which requires neither of them itself


class Outcome(NamedTuple):
    """A prepared data set."""

    folder: Path
    new: bool  # False if it was there before
    lengths: dict[str, int]  # part -> number of examples
    remains: tuple[Path, ...]  # folders of preparations of this data set that did not end


def from_catalogue(name: str, out: Path, raw: Path | None = None) -> Outcome:
    """Prepare a data set of the TFDS catalogue below `out`, if it is not there.

    Args:
        name: NAME, NAME/CONFIG or NAME:VERSION.
        raw: the raw-data folder; originals lie in raw/NAME.

    Raises:
        UserError: no such data set, configuration or version; TensorFlow or another package is missing; an
            original is missing and cannot be downloaded, or is damaged.
        OSError: no room on the disk.
    """
    import tensorflow_datasets as tfds

    base = re.split("[:/]", name)[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        near = ", ".join(difflib.get_close_matches(base, known)) or "none"
        raise UserError(
            f"TensorFlow Datasets has no data set {base!r}; of similar name: {near}; for your own files pass "
            "--dataset folder, medmnist or cifar10_tiles"
        )
    try:
        builder = tfds.builder(name, data_dir=out, file_format=prepared.FORMAT)
    except ImportError as error:
        raise UserError(
            f"preparing {name} needs the package {error.name}: pip install {error.name}"
        ) from None
    except (AssertionError, ValueError) as error:
        reason = _line(error).rpartition('}": ')[2]  # what was asked for comes first
        raise UserError(f"TensorFlow Datasets has no {name}: {reason}") from None
    folder = Path(builder.data_dir)
    manual = raw / base if raw is not None and (raw / base).is_dir() else None
    if not folder.exists():
        check_packages()
        _check_originals(builder, manual, raw, out)
    downloads = out / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    # TFDS takes an extracted file of equal name for that of this data set, so the folder is always a new one.
    with (
        tempfile.TemporaryDirectory(prefix="extracted-", dir=downloads) as extracted,
        told(name, out, manual),
    ):
        settings = tfds.download.DownloadConfig(
            manual_dir=manual, extract_dir=extracted, try_download_gcs=False
        )
        return _write(builder, settings, out)


def from_content(name: str, content: builders.Content, out: Path) -> Outcome:
    """Prepare our own data below `out` as the data set `name`.

    Raises:
        UserError: as `check_name`; it is there already; TensorFlow is missing; a picture that became
            unreadable.
        OSError: no room on the disk.
    """
    check_name(name)
    if existing(name, out):
        raise UserError(f"{existing(name, out)} exists: delete it, or choose another --name")
    check_packages()
    with told(name, out):
        return _write(builders.build(name, content, out), None, out)


def existing(name: str, out: Path) -> Path | None:
    """The folder of our own data set `name` below `out`, if it is prepared."""
    folder = out / name / builders.OWN_VERSION
    return folder if folder.exists() else None


def outcome(folder: Path, new: bool) -> Outcome:
    """What is prepared in `folder`.

    Raises:
        UserError: as `prepared.open_folder`.
    """
    return Outcome(
        folder, new, prepared.open_folder(folder).lengths, tuple(folder.parent.glob("incomplete.*"))
    )


def check_name(name: str) -> None:
    """Raise a UserError unless our own data may be called so: another data set would be loaded by that name,
    or TFDS could not."""
    import tensorflow_datasets as tfds

    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise UserError(
            f"--name {name!r}: use small letters, digits and underscores, and begin with a letter"
        )
    owners = {
        "bnn_jax": parts.names("data set"),
        "TensorFlow Datasets": tfds.list_builders(with_community_datasets=False),
    }
    for owner, names in owners.items():
        if name in names:
            raise UserError(f"--name {name} is a data set of {owner}: choose another name")


def _write(builder: Any, settings: Any, out: Path) -> Outcome:
    folder = Path(builder.data_dir)
    new = not folder.exists()
    if new:
        builder.download_and_prepare(download_config=settings, download_dir=out / "downloads")
    return outcome(folder, new)


def check_packages() -> None:
    """Raise a UserError unless the packages are there that only preparing needs."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise UserError(f'preparing data needs {package}, reading does not: pip install -e ".[prepare]"')


def _check_originals(builder, manual, raw, out):
    """Tell of missing originals at once where they cannot be downloaded; TFDS tries for minutes."""
    wanted = {info.filename: url for url, info in (builder.url_infos or {}).items()}
    missing = [name for name in wanted if manual is None or not (manual / name).is_file()]
    cached = any((out / "downloads" / builder.name).glob("*.INFO"))
    if builder.BUILDER_CONFIGS or cached or not missing or urllib.request.getproxies():
        return  # the list may name files that are not needed, or a proxy may resolve the host
    host = urllib.parse.urlsplit(wanted[missing[0]]).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        where = manual or (raw / builder.name if raw is not None else "a subfolder of --data-dir")
        raise UserError(
            f"{builder.name}: no {', '.join(missing)} in {where}, and {host} cannot be reached: put the file"
            f"{'s' * (len(missing) > 1)} there (--data-dir or BNN_JAX_DATA names the folder above)"
        ) from None


@contextlib.contextmanager
def told(name: str, out: Path, manual: Path | None = None) -> Iterator[None]:
    """A context in which TFDS's error for a user's mistake becomes a UserError of one line, and that for a
    full disk an OSError."""
    import requests
    import tensorflow_datasets as tfds

    core = tfds.core.download
    try:
        yield
    except core.download_manager.NonMatchingChecksumError as error:
        found = re.search("downloaded to (.*), has wrong checksum", str(error))
        raise UserError(
            f"{found[1] if found else name} is damaged or another version: its checksum is not the one that "
            "TensorFlow Datasets knows: fetch it again"
        ) from None
    except (requests.RequestException, core.util.DownloadError) as error:
        raise UserError(f"{name} cannot be downloaded ({_line(error)}): try again later") from None
    except ImportError as error:
        raise UserError(
            f"preparing {name} needs the package {error.name}: pip install {error.name}"
        ) from None
    except AssertionError as error:
        if "manual" not in str(error).lower():
            raise
        place = manual or f"a folder {name} in --data-dir"
        raise UserError(f"{name} must be fetched by hand into {place}: {_line(error)}") from None
    except Exception as error:  # the writers of TensorFlow and array_record tell of the disk in words only
        for code in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(code) in str(error) or "Not enough disk space" in str(error):
                raise OSError(code, os.strerror(code), str(out)) from None
        raise


def _line(error):
    return " ".join(str(error).split())[:300]
