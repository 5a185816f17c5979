"""Parquet files as Hugging Face data sets come in: columns image (bytes and path) and label."""

import json
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spp_cls.data.packed import arrow
from spp_cls.errors import UserError

# How the files of a split may begin.
_PREFIXES = {"train": ("train",), "val": ("validation", "valid", "val", "test")}


class ParquetImages:
    """A split of Parquet files below `root`, to be read in order: an ImageSource but for `size`.

    Raises:
        UserError: there are no such files, or they lack the columns.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        found = sorted(root.rglob("*.parquet"))
        named = ([path for path in found if path.name.startswith(prefix)] for prefix in _PREFIXES[split])
        self._paths = next((some for some in named if some), [])
        if not self._paths:
            raise UserError(f"{root} has no Parquet files of {split}; their names begin with {_PREFIXES[split][0]}")
        parquet = arrow().parquet
        labels: list[NDArray[np.int64]] = []
        self._names: list[str] = []
        # The file and the row group of each image, and its row in there.
        self._places: list[tuple[int, int, int]] = []
        for number, path in enumerate(self._paths):
            file = parquet.ParquetFile(path)
            if not {"image", "label"} <= set(file.schema_arrow.names):
                raise UserError(
                    f"{path} lacks the columns image and label; it has {', '.join(file.schema_arrow.names)}"
                )
            rows = file.read(columns=["label", "image.path"])
            labels.append(rows["label"].to_numpy().astype(np.int64))
            names = rows["image"].to_pylist() if "image" in rows.column_names else [None] * len(rows)
            self._names += [(name or {}).get("path") or f"{path.stem}/{row}" for row, name in enumerate(names)]
            for group in range(file.num_row_groups):
                self._places += [(number, group, row) for row in range(file.metadata.row_group(group).num_rows)]
        self.labels = np.concatenate(labels)
        self.class_names = _class_names(parquet.ParquetFile(self._paths[0]).schema_arrow, self.labels)
        self._lock = Lock()
        self._group = lru_cache(maxsize=2)(self._read_group)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """Path that an image had when it was put into the file, or else its file and row."""
        return self._names[index]

    def place(self, index: int) -> str:
        """Name of an image and its file, for messages."""
        return f"{self.name(index)} in {self._paths[self._places[index][0]]}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image."""
        file, group, row = self._places[index]
        with self._lock:
            images = self._group(file, group)
        return bytes(images[row].as_py()["bytes"] or b"")

    def _read_group(self, file: int, group: int) -> Any:
        return arrow().parquet.ParquetFile(self._paths[file]).read_row_group(group, columns=["image.bytes"])["image"]


def _class_names(schema: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Names that the Hugging Face library noted in the file, or else the numbers."""
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = noted.get("info", {}).get("features", {}).get("label", {}).get("names")
    return tuple(names) if names else tuple(str(number) for number in range(int(labels.max()) + 1))
