"""Rows of results, one a checkpoint and protocol, and what they say of file, version and hardware."""

import platform
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from spp_cls.data.loading.workers import count_cpus
from spp_cls.evaluation.csv_files import RowFile


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


# The new columns are those that version 0.1 did not have.
ROW_FILE = RowFile(Row, "eval.py", new_columns=("networks", "width", "seed", "data_digest", "stored_side"))
append_csv, check_csv, read_csv = ROW_FILE.append, ROW_FILE.check, ROW_FILE.read


def describe_hardware(device: torch.device, world_size: int = 1) -> str:
    """Describe the processor, or the GPUs, that so many processes compute on, each on a device like `device`."""
    if device.type == "cuda":
        return f"{world_size} x {torch.cuda.get_device_name(device)}"
    return f"{count_cpus()} CPU cores, {platform.machine()}"


def find_version() -> str:
    """Return the version of this package, which may be a checkout that is not installed."""
    try:
        return version("spp_cls")
    except PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])
