"""Packed data sets: a few Arrow IPC files and a manifest, written by packing.py."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError, shorten
from spp_cls.cli.reading import is_file, read_json
from spp_cls.cli.schema import create_from_plain, key

MANIFEST = "manifest.json"

# The columns of a packed file; readers of other languages go by their names.
_IMAGE, _LABEL, _NAME, _WIDTH, _HEIGHT = range(5)
COLUMNS = ("image", "label", "name", "width", "height")
TYPES = ("binary", "int64", "string", "int32", "int32")

_MOST_IMAGES = 2**40


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


@dataclass(frozen=True)
class PackedFile:
    """What a manifest, or the note beside a file, says of a packed file."""

    name: str = key()
    images: int = key(least=0, most=_MOST_IMAGES)
    bytes: int = key(least=0)
    sha256: str = key()
    bad: tuple[dict[str, str], ...] = key(())

    def __post_init__(self) -> None:
        # A path would lead out of the folder.
        if not self.name or self.name in (".", "..") or set(self.name) & {"/", "\\", "\0"}:
            raise UserError(f"{self.name!r} is not the name of a file")


@dataclass(frozen=True)
class PackedSplit:
    """What a manifest says of a split."""

    images: int = key(least=0, most=_MOST_IMAGES)
    bad: tuple[dict[str, str], ...] = key()
    files: tuple[PackedFile, ...] = key()

    def __post_init__(self) -> None:
        if sum(file.images for file in self.files) != self.images:
            raise UserError(f"its files have {sum(file.images for file in self.files)} images, not {self.images}")


@dataclass(frozen=True)
class Manifest:
    """What a manifest holds; the rest of it tells a packing that was stopped from another."""

    format: int = key(least=1, most=1)
    rows_per_batch: int = key(least=1, most=_MOST_IMAGES)
    classes: tuple[str, ...] = key()
    splits: dict[str, PackedSplit] = key()
    # Before 0.2 a pack had no name.
    name: str = key("packed")
    min_side: int | None = key(None, least=1)
    quality: int | None = key(None, least=1, most=100)


def read_manifest(root: Path) -> dict[str, Any]:
    """Read the manifest of a packed data set, which has the fields of Manifest.

    Raises:
        UserError: if the folder is not a packed data set, or its packing was not finished.
    """
    path = root / MANIFEST
    if not is_file(path):
        raise UserError(
            f"{root} has no {MANIFEST}: it is not a packed data set, or its packing was stopped; "
            "run python -m spp_cls.data.pack (again)"
        )
    return read_described(path, Manifest)


def read_described(path: Path, schema: type) -> dict[str, Any]:
    """Read a JSON file that packing wrote, whose values fit a schema.

    Raises:
        UserError: if it is another file, or damaged.
    """
    try:
        values = read_json(path)
        create_from_plain(schema, values)
    except ValueError as error:
        raise UserError(f"{path} is not of a packed data set ({shorten(error)}); pack it again") from error
    return dict(values)


class PackedImages:
    """A split of a packed data set, an ImageSource: memory-mapped, so that opening a million images takes no time.

    Raises:
        UserError: if the folder is not a packed data set, a file is missing, cut short or damaged, or there is no such
            split.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        manifest = create_from_plain(Manifest, read_manifest(root))
        if split not in manifest.splits:
            raise UserError(f"the packed data set {root} has no split {split}; pack a data set that has one")
        self.class_names: tuple[str, ...] = manifest.classes
        self.packed_name = manifest.name
        self.min_side = manifest.min_side
        self.quality = manifest.quality
        self._rows = manifest.rows_per_batch
        files = manifest.splits[split].files
        self._paths = [root / file.name for file in files]
        for file, path in zip(files, self._paths, strict=True):
            # A file that ends before its map ends the process.
            if not is_file(path) or path.stat().st_size != file.bytes:
                raise UserError(f"{path} is missing or cut short; copy it again or pack it again")
        # Index of the first image of each file, and the number of all images.
        self._starts = np.cumsum([0, *(file.images for file in files)])
        for number, file in enumerate(files):
            self._check_file(number, file)
        self.labels = self._read_numbers(_LABEL)

    def _check_file(self, number: int, file: PackedFile) -> None:
        """Check that the batches of a file are as packing.py writes them; raise UserError if they are not."""
        pyarrow = import_pyarrow()
        path = self._paths[number]
        try:
            reader = self._readers[number]
            if [(field.name, str(field.type)) for field in reader.schema] != list(zip(COLUMNS, TYPES, strict=True)):
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            if reader.num_record_batches != -(-file.images // self._rows):
                raise ValueError("it has not the images that the manifest says")
            for start in range(0, file.images, self._rows):
                batch = reader.get_batch(start // self._rows)
                # Arrow believes the offsets in a file, and reads wherever they point to.
                batch.validate(full=True)
                if batch.num_rows != min(self._rows, file.images - start):
                    raise ValueError("it has not the images that the manifest says")
                if any(each.null_count for each in batch.columns):
                    raise ValueError("it has empty cells")
                labels, widths, heights = (batch.column(column).to_numpy() for column in (_LABEL, _WIDTH, _HEIGHT))
                if labels.min() < 0 or labels.max() >= len(self.class_names):
                    raise ValueError(f"a label is not among its {len(self.class_names)} classes")
                if min(widths.min(), heights.min()) < 1:
                    raise ValueError("an image has no pixels")
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            raise _make_refusal(path, error) from error

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Each process maps the files itself.
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_batches")}

    @cached_property
    def _readers(self) -> list[Any]:
        pyarrow = import_pyarrow()
        readers = []
        for path in self._paths:
            try:
                readers.append(pyarrow.ipc.open_file(pyarrow.memory_map(str(path))))
            except (pyarrow.ArrowException, ValueError, OSError) as error:
                raise _make_refusal(path, error) from error
        return readers

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


def _make_refusal(path: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"{path} is not as packed ({shorten(error)}); copy it again or pack it again")
