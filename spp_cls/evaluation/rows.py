"""Results: rows, one a checkpoint and protocol, and their CSV files."""

import csv
import errno
import hashlib
import os
import platform
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import IO, Any, get_type_hints

import torch

from spp_cls.cli.errors import UserError
from spp_cls.cli.files import lock_file, replace_atomically
from spp_cls.cli.reading import check_regular
from spp_cls.cli.schema import has_type
from spp_cls.data.loading.workers import count_cpus


@dataclass(frozen=True)
class Row:
    """The errors of a network, or of several whose scores are averaged, under a protocol, in percent.

    The rest is what is needed to judge them. Of several `networks`, different values are joined by +, parameters are
    added, and `checkpoint_sha256` is that of their digests. `data`, `data_digest` and `stored_side` are those of
    SourceIdentity. `agreement_with_crop10` is the percentage of images whose best class is that of crop10, where both
    were tested together. `seconds` is the time of all protocols that were tested together, which share work.
    """

    protocol: str
    views: int
    top1_error: float
    top5_error: float
    images: int
    agreement_with_crop10: float | None
    networks: int
    net: str
    width: str
    pooling: str
    levels: str
    sizes: str
    input_size: int
    seed: str
    epochs: int
    parameters: int
    data: str
    data_digest: str
    stored_side: int | None
    checkpoint: str
    checkpoint_sha256: str
    precision: str
    seconds: float
    images_per_second: float
    spp_cls: str
    torch: str
    python: str
    hardware: str


_COLUMNS = [field.name for field in fields(Row)]

# Files of 0.1 are read without these.
_NEW_COLUMNS = ("networks", "width", "seed", "data_digest", "stored_side")


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_hardware() -> str:
    """Describe the processor, or the GPUs, that this process computes on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{count_cpus()} CPU cores, {platform.machine()}"


def find_version() -> str:
    """Return the version of this package, which may be a checkout that is not installed."""
    try:
        return version("spp_cls")
    except PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])


def append_csv(rows: Iterable[Row], path: str | Path) -> None:
    """Add rows to a CSV file, or make one with a header; several processes may add to one file.

    Raises:
        UserError: if the file has other columns, or cannot be written.
    """
    path = Path(path)
    try:
        if path.exists():
            check_regular(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_alone(path) as file:
            written = _read_rows(file, path)
            with replace_atomically(path.resolve()) as unfinished, unfinished.open("w", newline="") as new:
                writer = csv.DictWriter(new, _COLUMNS)
                writer.writeheader()
                writer.writerows([*written, *map(asdict, rows)])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with out=PATH") from error


@contextmanager
def _open_alone(path: Path) -> Iterator[IO[str]]:
    """Open a file, made if there is none, to which no other process adds rows meanwhile."""
    while True:
        with path.open("a+", newline="", errors="replace") as file:
            try:
                lock_file(file, wait=True)
            except OSError as error:
                # A file system without locks.
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                    raise
            # Another process may have put its file in the place of this one before this one was locked.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                yield file
                return


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a file that append_csv wrote, as text; no file, or an empty one, means no rows.

    Raises:
        UserError: if it is no file, has other columns, or a cell is not of its column's kind.
    """
    path = Path(path)
    try:
        if not path.exists():
            return []
        check_regular(path)
        # A file that is not text has other columns too.
        with path.open(newline="", errors="replace") as file:
            return _read_rows(file, path)
    except OSError as error:
        raise UserError(f"cannot read the results {path}: {error.strerror}; name another file") from error


def _read_rows(file: IO[str], path: Path) -> list[dict[str, str]]:
    hints = get_type_hints(Row)
    try:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or _COLUMNS
        if columns not in (_COLUMNS, [name for name in _COLUMNS if name not in _NEW_COLUMNS]):
            raise UserError(f"{path} has other columns than results of eval.py; move it away or name another file")
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path} is not a file of results of eval.py ({error}); name another file") from error
    for number, row in enumerate(rows, start=1):
        # A row of 0.1 in a file that has grown since has nothing in the new columns.
        filled = [name for name in columns if row[name] or name not in _NEW_COLUMNS]
        wrong = [name for name in filled if not _is_cell(row[name], hints[name])]
        # DictReader keeps the rest of a long line under None.
        if wrong or None in row:
            raise UserError(
                f"result {number} of {path} is damaged ({wrong[0] if wrong else 'too many cells'}); remove that line"
            )
    return [dict.fromkeys(_NEW_COLUMNS, "") | row for row in rows]


def _is_cell(text: str | None, hint: Any) -> bool:
    """Return whether a cell holds what a field of Row does."""
    if text is None:
        return False
    if hint is str or (text == "" and has_type(None, hint)):
        return True
    try:
        return isfinite(int(text) if hint is int else float(text))
    except ValueError:
        return False
