"""Collect the learning curves of runs in one CSV file: python benchmarks/curves.py runs=FOLDER out=FILE."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from spp_cls.cli.arguments import parse_keys, run_tool
from spp_cls.cli.errors import UserError
from spp_cls.cli.files import replace_atomically
from spp_cls.cli.schema import key

COLUMNS = ("net", "width", "pooling", "sizes", "seed", "epoch", "train_top1_error", "val_top1_error", "seconds")

_USAGE = """python benchmarks/curves.py runs=FOLDER out=FILE

Collects the errors and seconds of each epoch of all runs below a folder that were trained with the logger csv."""


@dataclass(frozen=True, kw_only=True)
class CurvesOptions:
    """The keys of this command."""

    runs: str = key("runs/mini", help="folder of runs")
    out: str = key("results/curves/mini.csv", help="file to write")


def read_curve(folder: Path) -> Iterator[dict[str, object]]:
    """Yield a row for each epoch of a run."""
    config = OmegaConf.load(folder / "config.yaml")
    run = {
        "net": config.model.name, "width": config.model.width, "pooling": config.model.pooling, "sizes": config.sizes,
        "seed": config.seed,
    }  # fmt: skip
    steps = 0
    with (folder / "csv/metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["epoch"]:
                errors = {f"{part}_top1_error": f"{float(row[f'{part}/top1_error']):.4f}" for part in ("train", "val")}
                images = (int(row["step"]) - steps) * config.data.batch_size
                steps = int(row["step"])
                seconds = f"{images / float(row['images_per_second']):.1f}"
                yield {**run, "epoch": int(float(row["epoch"])), **errors, "seconds": seconds}


def main(arguments: Sequence[str]) -> None:
    """Write the curves of all runs below a folder."""
    options = parse_keys(CurvesOptions, arguments, _USAGE, "python benchmarks/curves.py runs=runs/mini")
    folders = sorted(path.parent.parent for path in Path(options.runs).rglob("csv/metrics.csv"))
    if not folders:
        raise UserError(
            f"there is no run with csv/metrics.csv below {options.runs}; train with logger=[tensorboard,csv]"
        )
    with replace_atomically(Path(options.out)) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for folder in folders:
            writer.writerows(read_curve(folder))
    print(f"{len(folders)} runs: {options.out}")


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
