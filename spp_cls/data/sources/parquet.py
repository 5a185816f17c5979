"""Parquet files as Hugging Face publishes data sets: columns image (bytes and path) and label."""

import json
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError
from spp_cls.data.sources.packed import import_pyarrow

# How the names of the files of a split may begin.
_PREFIXES = {"train": ("train",), "val": ("validation", "valid", "val", "test")}


class ParquetImages:
    """A split of Parquet files below `root`, for packing: an ImageSource without `size`, fast only in order.

    Raises:
        UserError: if there are no such files, or they lack the columns.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        found = sorted(root.rglob("*.parquet"))
        named = ([path for path in found if path.name.startswith(prefix)] for prefix in _PREFIXES[split])
        self._paths = next((paths for paths in named if paths), [])
        if not self._paths:
            raise UserError(
                f"{root} has no Parquet files of {split}; their names must begin with {_PREFIXES[split][0]}"
            )
        parquet = import_pyarrow().parquet
        labels: list[NDArray[np.int64]] = []
        self._names: list[str] = []
        # File, row group and row of each image.
        self._rows: list[tuple[int, int, int]] = []
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
                self._rows += [(number, group, row) for row in range(file.metadata.row_group(group).num_rows)]
        self.labels = np.concatenate(labels)
        self.class_names = _read_class_names(parquet.ParquetFile(self._paths[0]).schema_arrow, self.labels)
        self._lock = Lock()
        self._group = lru_cache(maxsize=2)(self._read_group)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Return the path of an image as noted in the file, or else its file and row."""
        return self._names[index]

    def location(self, index: int) -> str:
        """Return the name of an image and its file, for messages."""
        return f"{self.name(index)} in {self._paths[self._rows[index][0]]}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image."""
        file, group, row = self._rows[index]
        with self._lock:
            images = self._group(file, group)
        return bytes(images[row].as_py()["bytes"] or b"")

    def _read_group(self, file: int, group: int) -> Any:
        return (
            import_pyarrow()
            .parquet.ParquetFile(self._paths[file])
            .read_row_group(group, columns=["image.bytes"])["image"]
        )


def _read_class_names(schema: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Return the names that the Hugging Face library noted in the file, or else the numbers."""
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = noted.get("info", {}).get("features", {}).get("label", {}).get("names")
    return tuple(names) if names else tuple(str(number) for number in range(int(labels.max()) + 1))
