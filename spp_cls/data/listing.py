"""The image files of class folders; long lists are kept between runs and listed anew when a folder has changed."""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_IMAGE_ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")

# Shorter lists are made in no time.
_WORTH_KEEPING = 50_000

# A folder that changed so shortly before it was listed may change again without a new time of change.
_SETTLED_SECONDS = 2


def images_in(folder: Path) -> list[str]:
    """Names of a folder's image files, sorted."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(_IMAGE_ENDINGS) and not entry.name.startswith(".")
    )


def class_images(folder: Path, classes: Sequence[str]) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """List the images of class folders: their names as <class>/<image>, and how many there are in each class.

    A list of many is kept in the user's cache folder ($XDG_CACHE_HOME/spp_cls or ~/.cache/spp_cls) and taken from
    there as long as no class folder's time of change differs.
    """
    kept = _cache_file(folder)
    changed = np.array([os.stat(folder / name).st_mtime_ns for name in classes], np.int64)
    key = np.array([os.fsencode(name) for name in classes])
    if kept.is_file():
        with np.load(kept) as found:
            if np.array_equal(found["classes"], key) and np.array_equal(found["changed"], changed):
                return found["names"], found["counts"]
    now = time.time_ns()
    images = [images_in(folder / name) for name in classes]
    names = np.array(
        [os.fsencode(f"{name}/{image}") for name, some in zip(classes, images, strict=True) for image in some]
    )
    counts = np.array([len(some) for some in images], np.int64)
    if len(names) >= _WORTH_KEEPING and now - changed.max() > _SETTLED_SECONDS * 10**9:
        _keep(kept, classes=key, changed=changed, names=names, counts=counts)
    return names, counts


def _cache_file(folder: Path) -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return caches / "spp_cls" / f"images-{digest[:16]}.npz"


def _keep(path: Path, **arrays: NDArray[np.generic]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(file.name, path)
    except OSError as error:
        _log.info("the list of images is made anew in each run: cannot write %s: %s", path, error.strerror)
