"""What a data set is, whatever the folder it lies in: for results that say what they were measured on."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spp_cls.data.sources.packed import PackedImages
from spp_cls.data.sources.parquet import ParquetImages
from spp_cls.data.sources.source import ImageSource


@dataclass(frozen=True)
class SourceIdentity:
    """A split of a data set, by its name and by a digest of its classes and of the labels and names of all images.

    The digest is not of the pixels: a copy with the same names, whatever was done to its images, has the same.
    `stored_side` is the min side that packing stored the images at, None: as they came.
    """

    name: str
    digest: str
    stored_side: int | None = None


def identify_source(kind: str, root: str | Path, source: ImageSource) -> SourceIdentity:
    """Identify a split that open_source opened.

    A pack of unchanged files has the digest of the files.
    """
    parts = [hash_list(source), *source.class_names]
    storage = find_storage(source)
    if storage:
        parts.append(f"{storage.min_side} {storage.quality}")
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return SourceIdentity(name_source(kind, root, source), digest, storage and storage.min_side)


class Storage(NamedTuple):
    """The min side and the JPEG quality that packing stored images at."""

    min_side: int
    quality: int


def find_storage(source: ImageSource) -> Storage | None:
    """Return how a pack stored its images; None: as they came."""
    if not isinstance(source, PackedImages) or source.min_side is None or source.quality is None:
        return None
    return Storage(source.min_side, source.quality)


def name_source(kind: str, root: str | Path, source: ImageSource | ParquetImages) -> str:
    """Return the name of a data set: its kind, the name of its folder, or of a pack the name of what was packed."""
    if isinstance(source, PackedImages):
        return source.packed_name
    return Path(os.path.abspath(root)).name if kind in ("imagefolder", "parquet") else kind


def hash_list(source: ImageSource | ParquetImages) -> str:
    """Hash the names and labels of the images of a source, to recognise it."""
    digest = hashlib.sha256(source.labels.tobytes())
    for index in range(len(source)):
        digest.update(source.name(index).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
