"""Results: rows, one a checkpoint and protocol, and their CSV files."""

import csv
import hashlib
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from spp_cls.cli.errors import UserError
from spp_cls.data.loading.workers import count_cpus


@dataclass(frozen=True)
class Row:
    """The errors of a checkpoint under a protocol, in percent, and all that is needed to judge them.

    `data` is imagenet, demo or an image folder's name. `agreement_with_crop10` is the percentage of images whose best
    class is that of crop10, where both were tested together. `seconds` is the time of all protocols that were tested
    together, which share work.
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


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_hardware() -> str:
    """Describe the processor, or the GPUs, that this process computes on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{count_cpus()} CPU cores, {platform.machine()}"


def append_csv(rows: Iterable[Row], path: str | Path) -> None:
    """Add rows to a CSV file, or make one with a header.

    Raises:
        UserError: if the file has other columns, or cannot be written.
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
    """Read the rows of a file that append_csv wrote, as text; no file means no rows.

    Raises:
        UserError: if the file has other columns.
    """
    path = Path(path)
    if not path.exists():
        return []
    # A file that is not text has other columns too.
    with path.open(newline="", errors="replace") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [field.name for field in fields(Row)]:
            raise UserError(f"{path} has other columns than results of eval.py; move it away or name another file")
        return list(reader)
