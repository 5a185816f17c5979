"""The tables of the small trainings on Imagenette and Caltech-101, made from results/."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from claims import (
    build_cells_table,
    build_claims_table,
    build_ensembles_table,
    build_protocols_table,
    build_summary_table,
)

from spp_cls.cli.terminal import Table
from spp_cls.evaluation.rows import read_csv
from spp_cls.evaluation.seeds import TextRow
from spp_cls.models.specs import SPECS


def build_mini_tables(results: Path, paper: Sequence[TextRow]) -> list[Table]:
    """Build Table 2 in miniature, every protocol on it, the paper's claims, and what averaging networks gains."""
    rows = _read_imagenette(results)
    if not rows:
        return []
    return [
        build_cells_table(rows, paper, "Table 2 in miniature: ten crops, Imagenette"),
        build_protocols_table(rows, "Every protocol: top-1 error, Imagenette"),
        build_claims_table(rows, "The paper's claims, Imagenette"),
        *_build_ensembles(rows),
        *_build_hours(results / "curves/mini.csv"),
    ]


def build_mini_caltech_tables(results: Path) -> list[Table]:
    """Build Tables 3 and 4 in miniature: protocols and claims on images of natural shapes."""
    rows = _read_caltech(results)
    if not rows:
        return []
    return [
        build_protocols_table(rows, "Tables 3 and 4 in miniature: top-1 error, Caltech-101"),
        build_claims_table(rows, "The paper's claims, Caltech-101"),
        *_build_ensembles(rows),
        *_build_hours(results / "curves/mini_caltech.csv"),
    ]


def build_mini_timm_tables(results: Path) -> list[Table]:
    """Build the tables of a network of timm with average pooling and with SPP."""
    rows = [row for row in read_csv(results / "mini.csv") if row["net"] not in SPECS and row["protocol"] != "warp1"]
    if not rows:
        return []
    return [
        build_protocols_table(rows, "ResNet-10-T: top-1 error, Imagenette at 128 pixels"),
        build_claims_table(rows, "What pooling and sizes do, Imagenette at 128 pixels"),
    ]


def build_summary(results: Path) -> list[Table]:
    """Build the table of the paper's claims for the first page."""
    rows = {"Imagenette": _read_imagenette(results), "Caltech-101": _read_caltech(results)}
    title = "Networks at a quarter of their width, three seeds, 95 % intervals"
    table = build_summary_table(rows, title)
    return [table] if table[2] else []


def build_shapes_table(results: Path) -> list[Table]:
    """Build the table of training on whole images beside training on square crops."""
    rows = read_csv(results / "mini_caltech.csv")
    shaped = {(row["net"], row["seed"]) for row in rows if row["sizes"].endswith("natural")}
    pairs = [row for row in rows if (row["net"], row["seed"]) in shaped and row["sizes"] != "alternate"]
    if not pairs:
        return []
    return [build_protocols_table(pairs, "Square crops (sizes: single) and whole images, Caltech-101")]


def _read_imagenette(results: Path) -> list[TextRow]:
    # The images of Imagenette here are squares: warped they are the same.
    return [row for row in read_csv(results / "mini.csv") if row["net"] in SPECS and row["protocol"] != "warp1"]


def _read_caltech(results: Path) -> list[TextRow]:
    return [row for row in read_csv(results / "mini_caltech.csv") if not row["sizes"].endswith("natural")]


def _build_ensembles(rows: Sequence[TextRow]) -> list[Table]:
    table = build_ensembles_table(rows, "Averaged scores of several networks: top-1 error")
    return [table] if table[2] else []


def _build_hours(curves: Path) -> list[Table]:
    """Build the table of the time of the trainings, at the speed of each run's median epoch.

    Some epochs shared their core with other work or were stopped, which a sum would count.
    """
    if not curves.exists():
        return []
    seconds: dict[tuple[str, ...], list[float]] = {}
    with curves.open(newline="") as file:
        for row in csv.DictReader(file):
            run = tuple(row[name] for name in ("net", "pooling", "sizes", "seed"))
            seconds.setdefault(run, []).append(float(row["seconds"]))
    hours: dict[str, list[float]] = {}
    for (net, *_), epochs in seconds.items():
        hours.setdefault(net, []).append(len(epochs) * statistics.median(epochs) / 3600)
    cells = [[net, len(runs), f"{sum(runs):.1f}"] for net, runs in hours.items()]
    cells.append(["all", sum(map(len, hours.values())), f"{sum(map(sum, hours.values())):.1f}"])
    return [("Time of the trainings, on one CPU core each", ("net", "runs", "hours"), cells)]
