"""Packed data sets: a few Arrow IPC files and a manifest, written by packing.py."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError

MANIFEST = "manifest.json"

# The columns of a packed file; readers of other languages go by their names.
_IMAGE, _LABEL, _NAME, _WIDTH, _HEIGHT = range(5)
COLUMNS = ("image", "label", "name", "width", "height")


def import_pyarrow() -> Any:
    """Import pyarrow, an optional dependency.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UserError("packed data and Parquet files need pyarrow; install it with: pip install pyarrow") from error
    return pyarrow


def read_manifest(root: Path) -> dict[str, Any]:
    """Read the manifest of a packed data set.

    Raises:
        UserError: if the folder is not a packed data set, or its packing was not finished.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{root} has no {MANIFEST}: it is not a packed data set, or its packing was stopped; "
            "run python -m spp_cls.data.pack (again)"
        )
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


class PackedImages:
    """A split of a packed data set, an ImageSource: memory-mapped, so that opening a million images takes no time.

    Raises:
        UserError: if the folder is not a packed data set, a file is missing or cut short, or there is no such split.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        manifest = read_manifest(root)
        if split not in manifest["splits"]:
            raise UserError(f"the packed data set {root} has no split {split}; pack a data set that has one")
        self.class_names: tuple[str, ...] = tuple(manifest["classes"])
        # Before 0.2 a pack had no name.
        self.packed_name = str(manifest.get("name", "packed"))
        self.min_side: int | None = manifest.get("min_side")
        self.quality: int | None = manifest.get("quality")
        self._rows: int = manifest["rows_per_batch"]
        files = manifest["splits"][split]["files"]
        for file in files:
            path = root / file["name"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise UserError(f"{path} is missing or cut short; copy it again or pack it again")
        self._paths = [root / file["name"] for file in files]
        # Index of the first image of each file, and the number of all images.
        self._starts = np.cumsum([0, *(file["images"] for file in files)])
        self.labels = self._read_numbers(_LABEL)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Each process maps the files itself.
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_batches")}

    @cached_property
    def _readers(self) -> list[Any]:
        pyarrow = import_pyarrow()
        return [pyarrow.ipc.open_file(pyarrow.memory_map(str(path))) for path in self._paths]

    @cached_property
    def _batches(self) -> dict[tuple[int, int], tuple[Any, ...]]:
        return {}

    def _read_numbers(self, column: int) -> NDArray[np.int64]:
        """Return a column of all images."""
        chunks = [
            reader.get_batch(number).column(column).to_numpy()
            for reader in self._readers
            for number in range(reader.num_record_batches)
        ]
        return np.concatenate(chunks or [np.zeros(0)]).astype(np.int64)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Width and height of each image as it was packed, N x 2."""
        return np.stack([self._read_numbers(_WIDTH), self._read_numbers(_HEIGHT)], 1)

    def _read_cell(self, column: int, index: int) -> Any:
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        number, row = divmod(index - int(self._starts[file]), self._rows)
        columns = self._batches.get((file, number))
        if columns is None:
            columns = self._batches[file, number] = tuple(self._readers[file].get_batch(number).columns)
        return columns[column][row]

    def name(self, index: int) -> str:
        """Return the name of an image in the data set that was packed."""
        return str(self._read_cell(_NAME, index).as_py())

    def location(self, index: int) -> str:
        """Return the name of an image and of the packed data set, for messages."""
        return f"{self.name(index)} in {self.root}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the bytes of an image: a view of the mapped file, not a copy."""
        # Arrow's own buffers hold signed bytes, which decoders refuse.
        return np.frombuffer(self._read_cell(_IMAGE, index).as_buffer(), np.uint8)

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height of an image as it was packed."""
        return int(self._read_cell(_WIDTH, index).as_py()), int(self._read_cell(_HEIGHT, index).as_py())
