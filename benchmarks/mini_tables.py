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
    cells = build_cells_table(rows, paper, "Table 2 in miniature: ten crops, Imagenette")
    hours = _build_hours(results / "curves/mini.csv")
    return [cells, *_build_comparisons(rows, "Imagenette"), *hours] if rows else []


def build_mini_caltech_tables(results: Path) -> list[Table]:
    """Build Tables 3 and 4 in miniature: protocols and claims on images of natural shapes."""
    comparisons = _build_comparisons(_read_caltech(results), "Caltech-101")
    return [*comparisons, *_build_hours(results / "curves/mini_caltech.csv")] if comparisons else []


def build_mini_timm_tables(results: Path) -> list[Table]:
    """Build the tables of a network of timm with average pooling and with SPP."""
    return _build_comparisons(_read_squares(results, of_the_paper=False), "ResNet-10-T, Imagenette at 128 pixels")


def _build_comparisons(rows: Sequence[TextRow], place: str) -> list[Table]:
    """Build the tables of protocols, claims and ensembles of the networks of one place; without rows, none."""
    tables = [
        build_protocols_table(rows, f"Every protocol: top-1 error, {place}"),
        build_claims_table(rows, f"Claims, {place}"),
        build_ensembles_table(rows, f"Averaged scores of several networks: top-1 error, {place}"),
    ]
    return [table for table in tables if table[2]]


def build_summary(results: Path) -> list[Table]:
    """Build the table of the paper's claims for the first page."""
    rows = {"Imagenette": _read_imagenette(results), "Caltech-101": _read_caltech(results)}
    title = "Networks at a quarter of their width, 95 % intervals over seeds"
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
    return _read_squares(results, of_the_paper=True)


def _read_squares(results: Path, of_the_paper: bool) -> list[TextRow]:
    """Read the rows of the paper's networks, or of the others, on Imagenette, whose images here are squares."""
    rows = read_csv(results / "mini.csv")
    # Warped, squares are the same.
    return [row for row in rows if (row["net"] in SPECS) == of_the_paper and row["protocol"] != "warp1"]


def _read_caltech(results: Path) -> list[TextRow]:
    return [row for row in read_csv(results / "mini_caltech.csv") if not row["sizes"].endswith("natural")]


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
