"""Rows of results: one a protocol and checkpoint, as CSV and as a table for people."""

import csv
import hashlib
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from spp_cls.errors import UserError


@dataclass(frozen=True)
class Row:
    """A measured figure with its protocol and all that is needed to judge it. Errors are in percent.

    `seconds` is the time of the whole command over all protocols that it ran, which share work.
    """

    protocol: str
    views: int
    top1_error: float
    top5_error: float
    images: int
    net: str
    pooling: str
    levels: str
    sizes: str
    parameters: int
    data: str
    checkpoint: str
    checkpoint_sha256: str
    precision: str
    seconds: float
    images_per_second: float
    spp_cls: str
    torch: str
    python: str
    hardware: str


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hardware() -> str:
    """Name the processor, or the GPUs, that this process computes on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores, {platform.machine()}"


def append_csv(rows: Iterable[Row], path: str | Path) -> None:
    """Add rows to a CSV file, which is made with a header where there is none.

    Raises:
        UserError: the file has other columns, or cannot be written.
    """
    path = Path(path)
    columns = [field.name for field in fields(Row)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open(newline="") as file:
                found = next(csv.reader(file), [])
            if found != columns:
                raise UserError(f"{path} has other columns than the rows to add; choose another file with out=PATH")
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if is_new:
                writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with out=PATH") from error


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay rows out in columns; numbers stand to the right."""
    cells = [list(header)] + [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [bool(rows) and isinstance(rows[0][column], int | float) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
