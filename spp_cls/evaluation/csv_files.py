"""CSV files of results: rows of a dataclass, which several processes may add to one file, and files written whole."""

import csv
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import IO, Any, get_type_hints

from spp_cls.cli.errors import UserError, explain_write_errors
from spp_cls.cli.files import lock_file, replace_atomically
from spp_cls.cli.reading import check_regular
from spp_cls.cli.schema import has_type

# File names in the cells that are not UTF-8 keep the bytes that they have on the disk.
_ENCODING: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


@dataclass(frozen=True)
class RowFile:
    """A kind of file of rows: the dataclass whose fields are the columns, and the program that writes them.

    Files of an earlier version are read without `new_columns`.
    """

    row: type
    program: str
    new_columns: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in their order."""
        return [field.name for field in fields(self.row)]

    @property
    def old_columns(self) -> list[str]:
        """Names of the columns of an earlier version."""
        return [name for name in self.columns if name not in self.new_columns]

    def append(self, rows: Iterable[Any], path: str | Path) -> None:
        """Add rows to the file of the key `out`, or make it with a header; several processes may add to one file.

        Raises:
            UserError: if the file has other columns or is damaged, or cannot be written.
        """
        with explain_write_errors(path, "out"):
            path = _follow_links(path)
            if path.exists():
                check_regular(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _open_alone(path) as file:
                written = self._read(file, path)
                with replace_atomically(path) as unfinished, unfinished.open("w", **_ENCODING) as new:
                    writer = csv.DictWriter(new, self.columns)
                    writer.writeheader()
                    writer.writerows([*written, *map(asdict, rows)])

    def check(self, path: str | Path) -> None:
        """Check, before the work that it is for, that rows can be added to a file; nothing is written.

        Raises:
            UserError: as append does.
        """
        with explain_write_errors(path, "out"):
            path = _follow_links(path)
            if path.exists():
                check_regular(path)
                with path.open("a+", **_ENCODING) as file:
                    file.seek(0)
                    self._read(file, path)
            _check_folder(path)

    def read(self, path: str | Path) -> list[dict[str, str]]:
        """Read the rows of a file that `append` wrote, as text; no file, or an empty one, means no rows.

        Raises:
            UserError: if it is no file, has other columns, or a cell is not of its column's kind.
        """
        path = Path(path)
        try:
            if not path.exists():
                return []
            check_regular(path)
            with path.open(**_ENCODING) as file:
                return self._read(file, path)
        except OSError as error:
            raise UserError(f"cannot read the results {path}: {error.strerror}; name another file") from error

    def _read(self, file: IO[str], path: Path) -> list[dict[str, str]]:
        hints = get_type_hints(self.row)
        try:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or self.columns
            # A file that is not text has other columns too.
            if columns not in (self.columns, self.old_columns):
                raise UserError(
                    f"{path} has other columns than results of {self.program}; move it away or name another file"
                )
            rows = list(reader)
        except csv.Error as error:
            raise UserError(
                f"{path} is not a file of results of {self.program} ({error}); name another file"
            ) from error
        for number, row in enumerate(rows, start=1):
            # A row of an earlier version in a file that has grown since has nothing in the new columns.
            filled = [name for name in columns if row[name] or name not in self.new_columns]
            wrong = [name for name in filled if not _is_cell(row[name], hints[name])]
            # DictReader keeps the rest of a long line under None.
            if wrong or None in row:
                reason = wrong[0] if wrong else "too many cells"
                raise UserError(f"result {number} of {path} is damaged ({reason}); remove that line")
        return [dict.fromkeys(self.new_columns, "") | row for row in rows]


def _follow_links(path: str | Path) -> Path:
    """Return the file that a path leads to, so that a new one takes its place and not that of a link.

    Raises:
        OSError: if links lead in a circle.
    """
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return found


@contextmanager
def _open_alone(path: Path) -> Iterator[IO[str]]:
    """Open a file, made if there is none, to which no other process adds rows meanwhile."""
    while True:
        with path.open("a+", **_ENCODING) as file:
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


def _is_cell(text: str | None, hint: Any) -> bool:
    """Return whether a cell holds what a field of this type does."""
    if text is None:
        return False
    if hint is str or (text == "" and has_type(None, hint)):
        return True
    if hint is bool:
        return text in ("True", "False")
    try:
        return isfinite(int(text) if hint is int else float(text))
    except ValueError:
        return False


def write_lines(path: str | Path, header: Sequence[str], lines: Iterable[Sequence[object]], key: str) -> None:
    """Write a CSV file whole; `path` is the value of a key.

    Raises:
        UserError: if the file cannot be written.
    """
    path = Path(path)
    with explain_write_errors(path, key):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as unfinished, unfinished.open("w", **_ENCODING) as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(lines)


def check_distinct(**paths: str | None) -> None:
    """Raise UserError if a key is empty, or two of them name one file: the later would overwrite the earlier."""
    keys: dict[str, str] = {}
    for key, path in paths.items():
        if path == "":
            raise UserError(f"{key} is empty; name a file, or leave out {key}")
        if path and (other := keys.setdefault(os.path.realpath(path), key)) != key:
            raise UserError(f"{other} and {key} name one file, {path}; name another file for one of them")


def check_writable(path: str | Path, key: str, columns: Sequence[str]) -> None:
    """Check, before the work that it is for, that write_lines can write a file; nothing is written.

    Raises:
        UserError: if it cannot, or if it would overwrite something else than a file that begins with these columns.
    """
    path = Path(path)
    with explain_write_errors(path, key):
        if path.exists():
            check_regular(path)
            with path.open("rb") as file:
                begin = ",".join(columns).encode()
                found = file.read(len(begin))
            if found and found != begin:
                raise UserError(f"{path} holds something else than {key}; choose another file with {key}=PATH")
        _check_folder(path)


def _check_folder(path: Path) -> None:
    """Raise OSError if the folder of a file, or the one that it would be made in, takes no file."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    tempfile.TemporaryFile(dir=folder).close()
