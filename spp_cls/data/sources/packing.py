"""Writes packed data sets; packed.py reads them."""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import simplejpeg
from tqdm import tqdm

from spp_cls.cli.errors import UserError
from spp_cls.cli.files import replace_atomically
from spp_cls.cli.reading import is_file
from spp_cls.cli.schema import key
from spp_cls.data.sources.identity import hash_file, hash_list
from spp_cls.data.sources.packed import (
    COLUMNS,
    MANIFEST,
    TYPES,
    Manifest,
    PackedFile,
    import_pyarrow,
    read_described,
    read_manifest,
)
from spp_cls.data.sources.parquet import ParquetImages
from spp_cls.data.sources.source import ImageSource, check_classes
from spp_cls.data.transforms.crops import resize
from spp_cls.data.transforms.decode import Data, UndecodableImageError, decode

ROWS_PER_BATCH = 64
IMAGES_PER_FILE = 512 * ROWS_PER_BATCH

# Arrow's binary columns, one in each batch, hold less than 2 GiB.
MOST_BYTES = (2**31 - 2) // ROWS_PER_BATCH

# What an interrupted packing leaves: the start of its manifest, and a note beside each complete file.
_UNFINISHED = "unfinished.json"
_NOTE = ".json"

PackSource = ImageSource | ParquetImages
OnBad = Literal["stop", "skip"]
Item = TypeVar("Item")
Result = TypeVar("Result")


class PackSettings(NamedTuple):
    """How images are packed: unchanged (min_side None), or as JPEGs of a min side and a quality."""

    min_side: int | None = None
    quality: int = 90


@dataclass(frozen=True)
class _Unfinished:
    """What is read of the start of a manifest; all of it is compared."""

    format: int = key(least=1, most=1)


class Row(NamedTuple):
    """One image in a packed file: the COLUMNS, in their order."""

    image: Data
    label: int
    name: str
    width: int
    height: int


def pack(
    sources: Mapping[str, PackSource],
    out: Path,
    settings: PackSettings,
    num_workers: int,
    on_bad: OnBad,
    name: str = "packed",
) -> dict[str, Any]:
    """Write the splits of a data set into `out` and return the manifest; complete files are kept.

    `name` is the name of the data set in results.

    Raises:
        UserError: if the splits have other classes, or `out` holds something else; if an image cannot be decoded, or
            has over MOST_BYTES, and `on_bad` is stop.
    """
    check_classes(sources)
    manifest: dict[str, Any] = {
        "format": 1,
        **settings._asdict(),
        "rows_per_batch": ROWS_PER_BATCH,
        "images_per_file": IMAGES_PER_FILE,
        "classes": list(next(iter(sources.values())).class_names),
        "sources": {split: hash_list(source) for split, source in sources.items()},
    }
    if _is_packed(out, manifest):
        return read_manifest(out)
    if not (out / _UNFINISHED).is_file():
        _write_json(out / _UNFINISHED, manifest)
    manifest |= {"name": name, "splits": {}}
    with ThreadPoolExecutor(num_workers) as pool:
        for split, source in sources.items():
            notes = []
            with tqdm(total=len(source), unit=" images", desc=f"Packing {split}", file=sys.stdout) as bar:
                read_row = partial(_read_row, source, settings)
                for start in range(0, len(source), IMAGES_PER_FILE):
                    path = out / f"{split}-{start // IMAGES_PER_FILE:05d}.arrow"
                    indices = range(start, min(start + IMAGES_PER_FILE, len(source)))
                    rows = _map_in_order(pool, read_row, indices, 4 * num_workers)
                    notes.append(_pack_file(path, rows, on_bad, bar))
                    bar.update(start + len(indices) - bar.n)
            manifest["splits"][split] = {
                "images": sum(note["images"] for note in notes),
                "bad": [image for note in notes for image in note.pop("bad")],
                "files": notes,
            }
    _write_json(out / MANIFEST, manifest)
    for leftover in (out / _UNFINISHED, *out.glob(f"*.arrow{_NOTE}"), *out.glob(".*.arrow")):
        leftover.unlink()
    return manifest


def _is_packed(out: Path, manifest: Mapping[str, Any]) -> bool:
    """Make the folder, or check that it holds the same data with the same settings, complete or not."""
    out.mkdir(parents=True, exist_ok=True)
    for path, schema in ((out / MANIFEST, Manifest), (out / _UNFINISHED, _Unfinished)):
        if is_file(path):
            old = read_described(path, schema)
            # Only what is still to be written must have batches of the same length.
            expected = {**manifest, "rows_per_batch": old["rows_per_batch"]} if schema is Manifest else manifest
            different = [key for key, value in expected.items() if old.get(key) != value]
            if different:
                raise UserError(
                    f"{out} was packed with other {', '.join(different)}; remove it or choose another folder with out="
                )
            return path.name == MANIFEST
    if any(out.iterdir()):
        raise UserError(f"{out} is neither empty nor a packed data set; choose another folder with out=")
    return False


def _pack_file(path: Path, rows: Iterable[Row | dict[str, str]], on_bad: OnBad, bar: Any) -> dict[str, Any]:
    """Write one file and a note about it, and return the note; if there is a note already, the file is complete."""
    note_path = path.with_name(path.name + _NOTE)
    if is_file(note_path) and (note := _read_note(note_path, path)):
        return note
    bad: list[dict[str, str]] = []

    def collect_good() -> Iterator[Row]:
        for row in rows:
            bar.update()
            if isinstance(row, Row):
                yield row
            elif on_bad == "stop":
                raise UserError(f"{row['reason']}; to leave such images out: on_bad=skip")
            else:
                bad.append(row)

    with replace_atomically(path) as unfinished:
        images = _write_rows(unfinished, collect_good())
        size, sha256 = unfinished.stat().st_size, hash_file(unfinished)
    note = {"name": path.name, "images": images, "bytes": size, "sha256": sha256, "bad": bad}
    _write_json(note_path, note)
    return note


def _read_note(note_path: Path, path: Path) -> dict[str, Any] | None:
    """Return the note about a complete file; None if one of the two is damaged, and the file is to be packed again."""
    try:
        note = read_described(note_path, PackedFile)
    except UserError:
        return None
    is_complete = note["name"] == path.name and is_file(path) and path.stat().st_size == note["bytes"]
    return note if is_complete and "bad" in note else None


def _read_row(source: PackSource, settings: PackSettings, index: int) -> Row | dict[str, str]:
    """Return the row of an image, encoded again if asked for; its name and the reason if it cannot be packed."""
    data, name = source.read(index), source.name(index)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the name of the image {source.location(index)!a} is not UTF-8, as names in packed data are; rename it"
        ) from error
    try:
        pixels = decode(data, source.location(index), settings.min_side)
    except UndecodableImageError as error:
        return {"name": name, "reason": str(error)}
    if settings.min_side is not None:
        pixels = np.ascontiguousarray(resize(pixels, settings.min_side))
        # Photographs are usually stored with half the resolution of colour too.
        data = simplejpeg.encode_jpeg(pixels, quality=settings.quality, colorsubsampling="420")
    if len(data) > MOST_BYTES:
        reason = f"{source.location(index)} has {len(data):,} bytes, over the {MOST_BYTES:,} of a packed image"
        return {"name": name, "reason": f"{reason}; encode it smaller, or all images with min_side="}
    return Row(bytes(data), int(source.labels[index]), name, pixels.shape[1], pixels.shape[0])


def _map_in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item], ahead: int
) -> Iterator[Result]:
    """Map like pool.map, but with no more than `ahead` items in work."""
    waiting: deque[Future[Result]] = deque()
    rest = iter(items)
    try:
        while True:
            waiting.extend(pool.submit(work, item) for item in islice(rest, ahead - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as an Arrow IPC file and return their number; all its batches but the last have ROWS_PER_BATCH."""
    pyarrow = import_pyarrow()
    types = [pyarrow.type_for_alias(name) for name in TYPES]
    schema = pyarrow.schema(list(zip(COLUMNS, types, strict=True)))
    count = 0
    rest = iter(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
        while batch := list(islice(rest, ROWS_PER_BATCH)):
            columns = [pyarrow.array(cells, kind) for cells, kind in zip(zip(*batch, strict=True), types, strict=True)]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            count += len(batch)
    return count


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replace_atomically(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
