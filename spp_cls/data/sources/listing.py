"""Lists of image files; long ones are cached between runs until a folder changes."""

import hashlib
import logging
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError
from spp_cls.cli.files import replace_atomically
from spp_cls.cli.reading import is_file

_log = logging.getLogger(__name__)

_IMAGE_ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")

# Shorter lists take little time to make.
LEAST_CACHED = 50_000

# A folder that changed just before it was listed may change again without a new modification time.
SETTLED_SECONDS = 2


def list_class_folders(folder: Path) -> tuple[str, ...]:
    """List the folders of the classes in `folder`, sorted.

    Raises:
        UserError: if there are none, or an entry is a link that leads nowhere but to itself.
    """
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise UserError(f"cannot list {error.filename or folder}: {error.strerror}; mend or remove it") from error
    if not classes:
        raise UserError(f"{folder} has no class folders; it needs one folder of images for each class")
    return tuple(classes)


def list_images(folder: Path) -> list[str]:
    """List the names of a folder's image files, sorted."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(_IMAGE_ENDINGS) and not entry.name.startswith(".")
    )


def list_class_images(folder: Path, classes: Sequence[str]) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """List the images of class folders: names as <class>/<image>, and the number of each class.

    A long list is cached in $XDG_CACHE_HOME/spp_cls or ~/.cache/spp_cls, until a class folder's modification time
    changes.
    """
    cached = find_cache("images", os.fsencode(folder.resolve()))
    changed = np.array([os.stat(folder / name).st_mtime_ns for name in classes], np.int64)
    key = np.array([os.fsencode(name) for name in classes])
    found = _read_list(cached)
    if np.array_equal(found.get("classes", ()), key) and np.array_equal(found.get("changed", ()), changed):
        return found["names"], found["counts"]
    now = time.time_ns()
    images = [list_images(folder / name) for name in classes]
    names = np.array(
        [os.fsencode(f"{name}/{file}") for name, files in zip(classes, images, strict=True) for file in files]
    )
    counts = np.array([len(files) for files in images], np.int64)
    if len(names) >= LEAST_CACHED and now - changed.max() > SETTLED_SECONDS * 10**9:
        write_cache(cached, classes=key, changed=changed, names=names, counts=counts)
    return names, counts


def find_cache(kind: str, content: bytes) -> Path | None:
    """Return the file in which something about `content`, a folder or a list of files, is cached; None for no cache."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        # A user without a home, as in some containers.
        return None
    return caches / "spp_cls" / f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}.npz"


def read_cache(path: Path | None, *names: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a cache by these names; none if there is no cache, or it is damaged."""
    if path is None or not is_file(path):
        return {}
    try:
        # Without pickles, which is NumPy's default.
        with np.load(path) as file:
            found = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
        _log.info("the cache %s is damaged (%s) and made again", path, error)
        return {}
    return found if all(isinstance(array, np.ndarray) and array.ndim for array in found.values()) else {}


def _read_list(path: Path | None) -> dict[str, NDArray[Any]]:
    """Return a list of images that was cached; nothing if there is none, or it is not whole."""
    found = read_cache(path, "classes", "changed", "names", "counts")
    if not found:
        return {}
    is_list = found["names"].dtype.kind == "S" and found["names"].ndim == 1 and found["counts"].dtype == np.int64
    return found if is_list and found["counts"].sum() == len(found["names"]) else {}


def write_cache(path: Path | None, **arrays: NDArray[np.generic]) -> None:
    """Write arrays to a cache, if there is one and it can be written."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as unfinished:
            np.savez(unfinished, allow_pickle=False, **arrays)
    except OSError as error:
        _log.info("cannot write the cache %s: %s; the next run reads everything again", path, error.strerror)
