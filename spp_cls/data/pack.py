"""Packs a data set into a few Arrow files: python -m spp_cls.data.pack data.root=IN out=OUT [key=value ...].

    data=imagefolder    what IN is: imagefolder, imagenet, parquet (as from Hugging Face) or demo
    min_side=null       null keeps the bytes as they are; 256 writes JPEGs of that min side, for crops of 224
    quality=90          of those JPEGs
    num_workers=auto    threads that decode and encode; auto: one a CPU
    on_bad=stop         at an image that cannot be decoded: stop, or skip, which lists it in the manifest

Every image is decoded once on the way. The same command again goes on where it was stopped; a packed data set is
whole when its manifest.json is there. `python -m spp_cls.data.pack verify data.root=OUT` checks one.
"""

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import simplejpeg
import torch
from tqdm import tqdm

from spp_cls.data.crops import resize
from spp_cls.data.decode import Data, UndecodableImageError, decode
from spp_cls.data.packed import COLUMNS, MANIFEST, PackedImages, arrow, read_manifest
from spp_cls.data.parquet import ParquetImages
from spp_cls.data.sources import ImageSource, open_source
from spp_cls.data.workers import available_cpus
from spp_cls.errors import UserError, one_line
from spp_cls.options import options, required, whole_number

ROWS_PER_BATCH = 1024
IMAGES_PER_FILE = 32 * ROWS_PER_BATCH
SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")

# What a stopped packing leaves beside its files: what it packs, and a note for each file that is whole.
_UNFINISHED = "unfinished.json"
_NOTE = ".json"

PackSource = ImageSource | ParquetImages
Item = TypeVar("Item")
Result = TypeVar("Result")


class Settings(NamedTuple):
    """How images are packed: as they are (min_side None), or as JPEGs of a min side and a quality."""

    min_side: int | None = None
    quality: int = 90


class Row(NamedTuple):
    """One image in a packed file: the COLUMNS, in their order."""

    image: Data
    label: int
    name: str
    width: int
    height: int


def pack(
    sources: Mapping[str, PackSource], out: Path, settings: Settings, num_workers: int, on_bad: str
) -> dict[str, Any]:
    """Write the splits of a data set into `out` and return the manifest; files that are whole already stay.

    Raises:
        UserError: an image cannot be decoded and `on_bad` is stop; `out` holds something else, or is not writable.
    """
    manifest: dict[str, Any] = {
        "format": 1,
        **settings._asdict(),
        "rows_per_batch": ROWS_PER_BATCH,
        "images_per_file": IMAGES_PER_FILE,
        "classes": list(next(iter(sources.values())).class_names),
        "sources": {split: _fingerprint(source) for split, source in sources.items()},
    }
    if _is_packed_already(out, manifest):
        return read_manifest(out)
    manifest["splits"] = {}
    with ThreadPoolExecutor(num_workers) as pool:
        for split, source in sources.items():
            notes = []
            with tqdm(total=len(source), unit=" images", desc=f"Packing {split}", file=sys.stdout) as bar:
                for start in range(0, len(source), IMAGES_PER_FILE):
                    path = out / f"{split}-{start // IMAGES_PER_FILE:05d}.arrow"
                    indices = range(start, min(start + IMAGES_PER_FILE, len(source)))
                    notes.append(_pack_file(path, source, indices, settings, pool, 4 * num_workers, on_bad, bar))
            manifest["splits"][split] = {
                "images": sum(note["images"] for note in notes),
                "bad": [image for note in notes for image in note.pop("bad")],
                "files": notes,
            }
    _write_json(out / MANIFEST, manifest)
    for leftover in (out / _UNFINISHED, *out.glob(f"*.arrow{_NOTE}")):
        leftover.unlink()
    return manifest


def _is_packed_already(out: Path, manifest: Mapping[str, Any]) -> bool:
    """Make the folder, or check that what is there is the same data in the same settings, whole or not."""
    out.mkdir(parents=True, exist_ok=True)
    for path in (out / MANIFEST, out / _UNFINISHED):
        if path.is_file():
            old = json.loads(path.read_text())
            different = [key for key, value in manifest.items() if old.get(key) != value]
            if different:
                raise UserError(
                    f"{out} was packed with other {', '.join(different)}; remove it or choose another folder with out="
                )
            return path.name == MANIFEST
    if any(out.iterdir()):
        raise UserError(f"{out} is not empty and no packed data set; choose another folder with out=")
    _write_json(out / _UNFINISHED, manifest)
    return False


def _fingerprint(source: PackSource) -> str:
    """Hash the names and labels of a source, to know it again."""
    digest = hashlib.sha256(source.labels.tobytes())
    for index in range(len(source)):
        digest.update(source.name(index).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _pack_file(
    path: Path,
    source: PackSource,
    indices: Sequence[int],
    settings: Settings,
    pool: ThreadPoolExecutor,
    ahead: int,
    on_bad: str,
    bar: Any,
) -> dict[str, Any]:
    """Write one file, unless its note says that it is whole; return the note."""
    note = path.with_name(path.name + _NOTE)
    if note.is_file():
        bar.update(len(indices))
        return dict(json.loads(note.read_text()))
    bad: list[dict[str, str]] = []

    def good() -> Iterator[Row]:
        for row in _in_order(pool, lambda index: _row(source, index, settings), indices, ahead):
            bar.update()
            if isinstance(row, Row):
                yield row
            elif on_bad == "stop":
                raise UserError(f"{row['reason']}; to leave such images out: on_bad=skip")
            else:
                bad.append(row)

    unfinished = path.with_name(f".{path.name}")
    images = _write_rows(unfinished, good())
    with unfinished.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = unfinished.stat().st_size
    os.replace(unfinished, path)
    _write_json(note, {"name": path.name, "images": images, "bytes": size, "sha256": sha256, "bad": bad})
    return {"name": path.name, "images": images, "bytes": size, "sha256": sha256, "bad": bad}


def _row(source: PackSource, index: int, settings: Settings) -> Row | dict[str, str]:
    """Decode an image, encode it again if need be, and return its row; its name and the reason if it is damaged."""
    data, name = source.read(index), source.name(index)
    try:
        pixels = decode(data, source.place(index), settings.min_side)
    except UndecodableImageError as error:
        return {"name": name, "reason": str(error)}
    if settings.min_side is not None:
        pixels = np.ascontiguousarray(resize(pixels, settings.min_side))
        # The colours of photographs as shipped have half the resolution too.
        data = simplejpeg.encode_jpeg(pixels, quality=settings.quality, colorsubsampling="420")
    return Row(data, int(source.labels[index]), name, pixels.shape[1], pixels.shape[0])


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Map like pool.map, but begin no more than `ahead` items early."""
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
    pyarrow = arrow()
    types = (pyarrow.binary(), pyarrow.int64(), pyarrow.string(), pyarrow.int32(), pyarrow.int32())
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
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)


def verify(root: Path) -> dict[str, int]:
    """Check the files of a packed data set against its manifest; return the number of images of each split.

    Raises:
        UserError: a file is missing or differs, or labels are no classes.
    """
    manifest = read_manifest(root)
    counts = {}
    for split, content in manifest["splits"].items():
        images = PackedImages(root, split)
        for entry in content["files"]:
            with (root / entry["name"]).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise UserError(f"{root / entry['name']} differs from what was packed; copy it again or pack anew")
        if len(images) != len(images.labels) or not set(images.labels.tolist()) <= set(range(len(images.class_names))):
            raise UserError(f"the labels of {split} in {root} are none of its {len(images.class_names)} classes")
        counts[split] = len(images)
    return counts


def main(arguments: list[str]) -> None:
    """Pack, or verify what was packed."""
    if arguments[:1] == ["verify"]:
        root = Path(required(options({"data.root": None}, arguments[1:]), "data.root"))
        print(", ".join(f"{split}: {count:,} images as packed" for split, count in verify(root).items()))
        return
    given = options(
        {
            "data": "imagefolder",
            "data.root": None,
            "out": None,
            "min_side": "null",
            "quality": "90",
            "num_workers": "auto",
            "on_bad": "stop",
        },
        _plain_keys(arguments),
    )
    root, out = Path(required(given, "data.root")), Path(required(given, "out"))
    if given["on_bad"] not in ("stop", "skip"):
        raise UserError(f"on_bad is stop or skip, not {given['on_bad']}")
    settings = Settings(
        None if given["min_side"] == "null" else whole_number(given, "min_side"), whole_number(given, "quality", 100)
    )
    workers = available_cpus() if given["num_workers"] == "auto" else whole_number(given, "num_workers")
    torch.set_num_threads(1)  # the threads share out the images
    sources: dict[str, PackSource] = {
        split: ParquetImages(root, split) if given["data"] == "parquet" else open_source(given["data"], root, split)
        for split in SPLITS
    }
    manifest = pack(sources, out, settings, workers, given["on_bad"])
    for split, content in manifest["splits"].items():
        size = sum(file["bytes"] for file in content["files"])
        print(f"{split}: {content['images']:,} images, {size / 1e6:,.0f} MB, {len(content['bad'])} left out")
    print(f"Train from it: python train.py data=packed data.root={out}")


def _plain_keys(arguments: Sequence[str]) -> list[str]:
    """Let --on-bad skip be said for on_bad=skip, as the command lines of other tools have it."""
    text = "\n".join(arguments).replace("--on-bad\n", "on_bad=").replace("--on-bad=", "on_bad=")
    return text.split("\n") if text else []


if __name__ == "__main__":
    one_line(lambda: main(sys.argv[1:]))
