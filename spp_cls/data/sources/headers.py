"""Width and height of all images of a source, from the headers of the files."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from spp_cls.data.sources import listing
from spp_cls.data.sources.files import ImageFiles
from spp_cls.data.sources.source import ImageSource
from spp_cls.data.transforms.decode import UndecodableImageError

# Images of one task of a thread.
_CHUNK = 1000


def read_image_sizes(source: ImageSource) -> NDArray[np.int64]:
    """Return the width and height of each image, N x 2; 0 x 0 where the file is not an image.

    Packed data has them in a column. Those of a large image folder are cached as its list is (listing.py), until a
    folder of images changes.

    Raises:
        UserError: if a file cannot be read.
    """
    stored = getattr(source, "sizes", None)
    if stored is not None:
        return np.asarray(stored, np.int64)
    if isinstance(source, ImageFiles) and len(source) >= listing.LEAST_CACHED:
        return _read_cached(source)
    return _read_headers(source)


def _read_cached(source: ImageFiles) -> NDArray[np.int64]:
    cached = listing.find_cache("sizes", os.fsencode(source.root.resolve()) + b"\0" + source.names.tobytes())
    folders = sorted({os.path.dirname(source.name(index)) for index in range(len(source))})
    changed = np.array([os.stat(source.root / folder).st_mtime_ns for folder in folders], np.int64)
    found = listing.read_cache(cached, "changed", "sizes")
    if np.array_equal(found.get("changed", ()), changed):
        sizes = found["sizes"]
        # Else a crafted or damaged one. What is not an image has 0 x 0.
        if (
            sizes.dtype == np.int64
            and sizes.shape == (len(source), 2)
            and sizes.min(initial=0) >= 0
            and np.array_equal(*(sizes == 0).T)
        ):
            return sizes
    now = time.time_ns()
    sizes = _read_headers(source)
    if now - changed.max() > listing.SETTLED_SECONDS * 10**9:
        listing.write_cache(cached, changed=changed, sizes=sizes)
    return sizes


def _read_headers(source: ImageSource) -> NDArray[np.int64]:
    sizes = np.zeros((len(source), 2), np.int64)

    def read_chunk(start: int) -> None:
        for index in range(start, min(start + _CHUNK, len(source))):
            try:
                sizes[index] = source.size(index)
            except UndecodableImageError:
                continue

    starts = range(0, len(source), _CHUNK)
    with ThreadPoolExecutor() as pool:
        is_short = len(source) < listing.LEAST_CACHED
        bar = {"unit": f" x {_CHUNK} images", "desc": "Reading sizes", "file": sys.stdout, "disable": is_short}
        for _ in tqdm(pool.map(read_chunk, starts), total=len(starts), **bar):
            pass
    return sizes
