"""Parquet files as Hugging Face publishes data sets: columns image (bytes and path) and label."""

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError, shorten
from spp_cls.cli.reading import check_regular, parse_json
from spp_cls.cli.schema import has_type
from spp_cls.data.sources.packed import import_pyarrow

_MOST_CLASSES = 10_000_000

# How the names of the files of a split may begin.
_PREFIXES = {"train": ("train",), "val": ("validation", "valid", "val", "test")}


def open_parquet(root: Path) -> dict[str, "ParquetImages"]:
    """Open train and val for packing; classes without names are the numbers up to the largest label of both.

    Raises:
        UserError: as ParquetImages does.
    """
    sources = {split: ParquetImages(root, split) for split in _PREFIXES}
    longest = max((source.class_names for source in sources.values()), key=len)
    if all(source.class_names == _name_numbers(len(source.class_names)) for source in sources.values()):
        for source in sources.values():
            source.class_names = longest
    return sources


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
        pyarrow = import_pyarrow()
        labels: list[NDArray[np.int64]] = []
        self._names: list[str] = []
        # File, row group and row of each image.
        self._rows: list[tuple[int, int, int]] = []
        for number, path in enumerate(self._paths):
            try:
                check_regular(path)
                labels.append(self._read_file(number, path))
            except (pyarrow.ArrowException, ValueError, KeyError, OSError) as error:
                if isinstance(error, UserError):
                    raise
                raise _make_refusal(path, error) from error
        self.labels = np.concatenate(labels)
        self.class_names = _read_class_names(pyarrow.parquet.ParquetFile(self._paths[0]).schema_arrow, self.labels)
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.class_names)):
            raise UserError(f"{root} has labels of {split} that are not among its {len(self.class_names)} classes")
        self._lock = Lock()
        self._group = lru_cache(maxsize=2)(self._read_group)

    def _read_file(self, number: int, path: Path) -> NDArray[np.int64]:
        """List the names and rows of a file; return its labels."""
        file = import_pyarrow().parquet.ParquetFile(path)
        if not {"image", "label"} <= set(file.schema_arrow.names):
            raise UserError(f"{path} lacks the columns image and label; it has {', '.join(file.schema_arrow.names)}")
        rows = file.read(columns=["label", "image.path"])
        labels = rows["label"]
        if not str(labels.type).startswith(("int", "uint")) or labels.null_count:
            raise ValueError(f"its labels are {labels.type}, {labels.null_count} of them empty, not whole numbers")
        names = rows["image"].to_pylist() if "image" in rows.column_names else [None] * len(rows)
        for row, name in enumerate(names):
            given = name.get("path") if isinstance(name, dict) else None
            self._names.append(given if given and isinstance(given, str) else f"{path.stem}/{row}")
        for group in range(file.num_row_groups):
            self._rows += [(number, group, row) for row in range(file.metadata.row_group(group).num_rows)]
        if len(self._rows) != len(self._names):
            raise ValueError("its row groups do not have the rows that it says")
        return labels.to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Return the path of an image as noted in the file, or else its file and row."""
        return self._names[index]

    def location(self, index: int) -> str:
        """Return the name of an image and its file, for messages."""
        return f"{self.name(index)} in {self._paths[self._rows[index][0]]}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image.

        Raises:
            UserError: if the file is damaged.
        """
        file, group, row = self._rows[index]
        pyarrow = import_pyarrow()
        try:
            with self._lock:
                images = self._group(file, group)
            image = images[row].as_py()
        except (pyarrow.ArrowException, ValueError, KeyError, IndexError, OSError) as error:
            raise _make_refusal(self._paths[file], error) from error
        content = image.get("bytes") if isinstance(image, dict) else None
        return content if isinstance(content, bytes) else b""

    def _read_group(self, file: int, group: int) -> Any:
        return (
            import_pyarrow()
            .parquet.ParquetFile(self._paths[file])
            .read_row_group(group, columns=["image.bytes"])["image"]
        )


def _make_refusal(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a Parquet file of images and labels, or damaged ({shorten(error)})")


def _read_class_names(schema: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Return the names that the Hugging Face library noted in the file, or else the numbers."""
    try:
        noted = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = noted["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError):
        names = None
    if has_type(names, list[str]) and names:
        return tuple(names)
    if not len(labels) or labels.max() >= _MOST_CLASSES:
        raise UserError("the Parquet files name no classes, and have no labels to count them by")
    return _name_numbers(int(labels.max()) + 1)


def _name_numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))
