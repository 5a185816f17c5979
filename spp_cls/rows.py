"""Rows of results, one a checkpoint and protocol, and their CSV files."""

import csv
import hashlib
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from spp_cls.errors import UserError


@dataclass(frozen=True)
class Row:
    """A measured figure with its protocol and all that is needed to judge it. Errors are in percent.

    `data` is imagenet, demo or an image folder's name. `agreement_with_crop10` is the share of images, in percent,
    whose best class is that of crop10, where both were tested together. `seconds` is the time of all protocols that
    were tested together, which share work.
    """

    protocol: str
    views: int
    top1_error: float
    top5_error: float
    images: int
    agreement_with_crop10: float | None
    net: str
    pooling: str
    levels: str
    sizes: str
    input_size: int
    epochs: int
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
        read_csv(path)
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if is_new:
                writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with out=PATH") from error


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read rows that append_csv wrote, as text; none where there is no file.

    Raises:
        UserError: the file has other columns.
    """
    path = Path(path)
    if not path.exists():
        return []
    # What is no text at all has other columns too.
    with path.open(newline="", errors="replace") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [field.name for field in fields(Row)]:
            raise UserError(f"{path} has other columns than rows of eval.py; move it away or name another file")
        return list(reader)
