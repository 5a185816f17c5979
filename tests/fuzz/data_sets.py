"""Data sets in files: packed, half packed, Parquet, kept lists of images, ImageNet's labels."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spp_cls.data.pack import verify
from spp_cls.data.sources import listing, open_source
from spp_cls.data.sources.packing import PackSettings, pack
from spp_cls.data.sources.parquet import ParquetImages
from spp_cls.data.transforms.decode import decode
from tests.fuzz.damage import Evil, Files, Random, damage_bytes, damage_json, to_json

# A packed data set.


def damage_table(data: bytes, random: Random, code: str) -> bytes:
    """Damage the rows or columns of an Arrow file."""
    table = pa.ipc.open_file(data).read_all()
    columns = {name: table[name].to_pylist() for name in table.column_names}
    name = table.column_names[int(random.integers(len(columns)))]
    row = int(random.integers(len(table)))
    values = [None, -1, 3, 2**31 - 1, 0, "x", code, b"", b"\xff\xd8\xff", 1.5]
    match int(random.integers(6)):
        case 0:
            del columns[name]
        case 1:
            columns = {f"{key}_" if key == name else key: column for key, column in columns.items()}
        case 2:
            columns = {key: column[:-1] for key, column in columns.items()}
        case 3:
            columns[name] = [values[int(random.integers(len(values)))]] * len(table)
        case _:
            columns[name][row] = values[int(random.integers(len(values)))]
    arrays = {}
    for key, column in columns.items():
        kind = table.schema.field(key).type if key in table.column_names else None
        try:
            arrays[key] = pa.array(column, kind)
        except (pa.ArrowException, TypeError, OverflowError):
            arrays[key] = pa.array([None if each is None else str(each) for each in column])
    changed = pa.table(arrays)
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, changed.schema) as writer:
        writer.write_table(changed, max_chunksize=int(random.integers(1, 5)))
    return buffer.getvalue()


def damage_pack(files: Files, random: Random, code: str) -> Files:
    files = dict(files)
    manifest = json.loads(files["manifest.json"])
    if random.random() < 0.45:
        files["manifest.json"] = damage_json(files["manifest.json"], random, code)
        return files
    entry = manifest["splits"]["val"]["files"][0]
    damage: Callable[..., bytes] = damage_bytes if random.random() < 0.6 else lambda *given: damage_table(*given, code)
    files[entry["name"]] = damage(files[entry["name"]], random)
    # Else its length alone would tell.
    entry["bytes"] = len(files[entry["name"]])
    files["manifest.json"] = to_json(manifest)
    return files


def open_pack(folder: Path) -> Any:
    source = open_source("packed", folder, "val")
    found = []
    for index in range(len(source)):
        pixels = decode(source.read(index), source.location(index))
        width, height = source.size(index)
        found.append((pixels.tobytes(), source.name(index), int(source.labels[index]), min(width, height) > 0))
    return found, source.class_names


def is_right_pack(found: Any) -> bool:
    """Names and bytes have no check sums until verify compares them."""
    rows, classes = found
    return all(0 <= label < len(classes) and has_pixels for _, _, label, has_pixels in rows)


def damage_unfinished(files: Files, random: Random, code: str) -> Files:
    files = dict(files)
    names = [name for name in files if name.startswith("packed/")]
    name = names[int(random.integers(len(names)))]
    damage = damage_bytes if name.endswith(".arrow") else lambda *given: damage_json(*given, code)
    files[name] = damage(files[name], random)
    return files


def open_unfinished(folder: Path) -> Any:
    sources = {split: open_source("imagefolder", folder / "images", split) for split in ("train", "val")}  # type: ignore[arg-type]
    pack(sources, folder / "packed", PackSettings(), 1, "skip")  # type: ignore[arg-type]
    verify(folder / "packed")
    return [open_pack_split(folder / "packed", split) for split in ("train", "val")]


def open_pack_split(folder: Path, split: Any) -> Any:
    source = open_source("packed", folder, split)
    return [(bytes(source.read(i)), source.name(i), int(source.labels[i])) for i in range(len(source))]


# Parquet files.


def damage_parquet(files: Files, random: Random, code: str) -> Files:
    name = sorted(files)[0]
    if random.random() < 0.6:
        return {**files, name: damage_bytes(files[name], random)}
    table = pq.read_table(io.BytesIO(files[name]))
    labels = [[0, None, 1], ["a", "b", "c"], [0, -1, 1], [0, 1.5, 2], [0, 2**40, 1], [[0], [1], [2]]]
    images = [
        ["a", "b", "c"],
        [None, None, None],
        [{"bytes": None, "path": None}] * 3,
        [{"bytes": "text", "path": "p"}] * 3,
    ]
    columns = {each: table[each] for each in table.column_names}
    if random.random() < 0.5:
        columns["label"] = pa.array(labels[int(random.integers(len(labels)))])
    if random.random() < 0.5:
        columns["image"] = pa.array(images[int(random.integers(len(images)))])
    noted = damage_json(table.schema.metadata[b"huggingface"], random, code)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({b"huggingface": noted}), buffer, row_group_size=2)
    return {**files, name: buffer.getvalue()}


def open_parquet(folder: Path) -> Any:
    source = ParquetImages(folder, "train")
    return [(source.read(i), source.name(i), int(source.labels[i])) for i in range(len(source))], source.class_names


def is_right_parquet(found: Any) -> bool:
    rows, classes = found
    return all(
        isinstance(data, bytes) and isinstance(name, str) and 0 <= label < len(classes) for data, name, label in rows
    )


# Lists of images that are kept, and labels as ImageNet has them.


def damage_list(files: Files, random: Random, code: str) -> Files:
    name = next(name for name in files if name.endswith(".npz"))
    if random.random() < 0.6:
        return {**files, name: damage_bytes(files[name], random)}
    with np.load(io.BytesIO(files[name])) as found:
        arrays = dict(found)
    key = sorted(arrays)[int(random.integers(len(arrays)))]
    match int(random.integers(4)):
        case 0:
            del arrays[key]
        case 1:
            arrays[key] = np.array([Evil(code)], dtype=object)
        case 2:
            arrays[key] = arrays[key][:-1]
        case _:
            arrays[key] = np.arange(7)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return {**files, name: buffer.getvalue()}


def open_list(folder: Path) -> Any:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    listing.LEAST_CACHED = 1
    for each in (folder / "images/train").iterdir():
        os.utime(each, (1e9, 1e9))
    for kept in (folder / "cache/spp_cls").glob("*.npz"):
        # Its name is that of the folder's path.
        kept.rename(listing.find_cache("images", os.fsencode((folder / "images/train").resolve())))
    source = open_source("imagefolder", folder / "images", "train")
    return [source.name(i) for i in range(len(source))], source.labels.tolist()


def damage_labels(files: Files, random: Random, code: str) -> Files:
    names = [name for name in files if not name.endswith(".JPEG")]
    name = names[int(random.integers(len(names)))]
    if random.random() < 0.3:
        return {**files, name: b"" if random.random() < 0.5 else code.encode()}
    return {**files, name: damage_bytes(files[name], random)}


def open_labels(folder: Path) -> Any:
    found = []
    for root in ("kaggle", "devkit"):
        source = open_source("imagenet", folder / root, "val")
        found.append([source.class_names[source.labels[i]] for i in range(len(source))])
    return found


def is_right_labels(found: Any) -> bool:
    """A name of a class may be another name."""
    return [len(each) for each in found] == [3, 3]
