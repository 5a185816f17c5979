"""Tables of what the kit for GPUs wrote to results/gpu; without a file there is no table."""

from pathlib import Path
from typing import Any

from train_step import VERSIONS

from report.speed import (
    build_data_tables,
    build_layer_tables,
    build_testing_tables,
    build_training_tables,
    describe,
    read_json,
)
from spp_cls.cli.terminal import Table
from spp_cls.evaluation.rows import read_csv
from spp_cls.evaluation.seeds import keep_last


def build_gpu_tables(folder: Path) -> list[Table]:
    """Build the tables of a run of the kit: its parts, speeds, and the errors of the small trainings."""
    speeds = (build_training_tables, build_layer_tables, build_testing_tables, build_data_tables)
    tables = [*_build_parts_table(folder), *_build_steps_table(folder), *_build_feed_table(folder)]
    return [*tables, *(table for build in speeds for table in build(folder)), *_build_mini_table(folder)]


def _build_parts_table(folder: Path) -> list[Table]:
    found = read_json(folder, "summary")
    if not found:
        return []
    rows = [[each["part"], each["status"], f"{each['seconds']:.0f}"] for each in found["parts"]]
    driver = f"driver {found['driver']}, CUDA {found['cuda']}, cuDNN {found['cudnn']}" if "driver" in found else ""
    title = ", ".join(filter(None, ["Parts of the kit", f"size {found['size']}", driver]))
    return [(f"{title} ({describe(found)})", ("part", "status", "seconds"), rows)]


def _build_steps_table(folder: Path) -> list[Table]:
    found = read_json(folder, "train_step")
    steps = [step for step in found.get("steps", []) if "images_per_second" in step]
    if not steps:
        return []
    header = ("net", "size", "batch", "precision", *(f"{version}, images/s" for version in VERSIONS), "of the peak")
    rows = [
        [*_describe_setting(step), *_list_rates(step["images_per_second"]), _describe_share(step)] for step in steps
    ]
    return [(f"Training steps, images a second ({describe(found)})", header, rows)]


def _describe_setting(step: dict[str, Any]) -> list[str]:
    return [str(step[key]) for key in ("net", "size", "batch", "precision")]


def _list_rates(rates: dict[str, float]) -> list[str]:
    return [f"{rates[version]:,.0f}" if version in rates else "" for version in VERSIONS]


def _describe_share(step: dict[str, Any]) -> str:
    return f"{100 * step['share_of_peak']:.0f} %" if "share_of_peak" in step else ""


def _build_feed_table(folder: Path) -> list[Table]:
    found = read_json(folder, "feed")
    if not found:
        return []
    rows = [[name, f"{rate:,.0f}"] for name, rate in found["images_per_second"].items()]
    title = f"Training batches on the device, crops of {found['crop']}, {found['cpus']} CPUs ({describe(found)})"
    return [(title, ("batches from", "images a second"), rows)]


def _build_mini_table(folder: Path) -> list[Table]:
    rows = keep_last(read_csv(folder / "mini.csv"))
    if not rows:
        return []
    header = (
        "net", "pooling", "sizes", "training", "best epoch", "protocol", "top-1 error %", "top-5 error %", "images",
    )  # fmt: skip
    trainings = _find_trainings(folder)
    cells = [
        [
            row["net"], row["pooling"], row["sizes"], trainings.get(Path(row["checkpoint"]).parent.name, ""),
            row["epochs"], row["protocol"], f"{float(row['top1_error']):.2f}", f"{float(row['top5_error']):.2f}",
            row["images"],
        ]
        for row in rows
    ]  # fmt: skip
    return [(f"Table 2 in miniature at full width, one seed ({rows[0]['hardware']}, torch {rows[0]['torch']})", header,
             cells)]  # fmt: skip


def _find_trainings(folder: Path) -> dict[str, str]:
    """Return how the last training of each cell went: passed, failed or cut off."""
    commands = [
        command
        for part in read_json(folder, "summary").get("parts", [])
        if part["part"] == "mini"
        for command in part["commands"]
    ]
    return {command["command"].split("experiment=mini/")[1].split()[0]: command["status"] for command in commands}
