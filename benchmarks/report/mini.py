"""The tables of the small trainings on Imagenette and Caltech-101, made from results/."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from report.cells import build_cells_table, build_ensembles_table, build_protocols_table
from report.claims import build_claims_table, build_summary_table
from spp_cls.cli.terminal import Table
from spp_cls.evaluation.rows import read_csv
from spp_cls.evaluation.seeds import TextRow, keep_last, select_single
from spp_cls.models.config import NetConfig
from spp_cls.models.specs import BASELINE_LEVELS, SPECS

# The order of the lines.
_NETS = tuple(SPECS)
_POOLINGS = ("none", "avg", "spp")
_SIZES = ("single", "alternate", "progressive")

# The networks of conf/experiment/mini.yaml: rows of others in the same file are no cells of these tables.
_WIDTH, _CROP = "0.25", "112"
_LEVELS = tuple(" ".join(map(str, levels)) for levels in (BASELINE_LEVELS, NetConfig().levels))


def build_mini_tables(results: Path, paper: Sequence[TextRow]) -> list[Table]:
    """Build Table 2 in miniature, every protocol on it, the paper's claims, and what averaging networks gains."""
    rows = read_imagenette(results)
    cells = build_cells_table(rows, paper, "Table 2 in miniature: ten crops, Imagenette")
    return [cells, *_build_comparisons(rows, "Imagenette"), *_build_epochs_table(results)] if rows else []


def build_mini_caltech_tables(results: Path) -> list[Table]:
    """Build Tables 3 and 4 in miniature: protocols and claims on images of natural shapes."""
    return _build_comparisons(_read_caltech(results), "Caltech-101")


def build_mini_timm_tables(results: Path) -> list[Table]:
    """Build the tables of a network of timm with average pooling and with SPP."""
    rows = [row for row in _read(results / "mini.csv") if row["net"] not in SPECS and row["protocol"] != "warp1"]
    return _build_comparisons(rows, "ResNet-10-T, Imagenette at 128 pixels")


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
    rows = {"Imagenette": read_imagenette(results), "Caltech-101": _read_caltech(results)}
    title = "Networks at a quarter of their width, 95 % intervals over seeds"
    table = build_summary_table(rows, title)
    return [table] if table[2] else []


def build_shapes_table(results: Path) -> list[Table]:
    """Build the table of training on whole images beside training on square crops."""
    rows = [row for row in _read(results / "mini_caltech.csv") if _is_mini(row)]
    shaped = {(row["net"], row["seed"]) for row in rows if _is_natural(row)}
    pairs = [row for row in rows if (row["net"], row["seed"]) in shaped and row["sizes"] != "alternate"]
    return [build_protocols_table(pairs, "Square crops (sizes: single) and whole images, Caltech-101")] if pairs else []


def read_imagenette(results: Path) -> list[TextRow]:
    """Read the rows of the paper's networks on Imagenette, in the paper's order.

    Without warp1, which on the squares of this data set does no more than shrink.
    """
    return [row for row in _read(results / "mini.csv") if _is_mini(row) and row["protocol"] != "warp1"]


def _read_caltech(results: Path) -> list[TextRow]:
    return [row for row in _read(results / "mini_caltech.csv") if _is_mini(row) and not _is_natural(row)]


def _read(path: Path) -> list[TextRow]:
    return sorted(keep_last(read_csv(path)), key=_get_order)


def _is_mini(row: TextRow) -> bool:
    is_small = (row["width"], row["input_size"]) == (_WIDTH, _CROP)
    return row["net"] in SPECS and is_small and row["levels"] in _LEVELS


def _is_natural(row: TextRow) -> bool:
    return row["sizes"].endswith("natural")


def _get_order(row: TextRow) -> tuple[int, ...]:
    """Return the place of a row's line; what is not listed comes last."""
    return tuple(
        order.index(value) if value in order else len(order)
        for order, value in ((_NETS, row["net"]), (_POOLINGS, row["pooling"]), (_SIZES, row["sizes"]))
    )


def _build_epochs_table(results: Path) -> list[Table]:
    """Build the table of what choosing the best epoch by the images that test gives each training."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for (_, pooling, sizes, _), epochs in _read_curves(results / "curves/mini.csv").items():
        errors = [float(row["val_top1_error"]) for row in epochs]
        found[pooling, sizes].append((min(errors), errors[-1]))
    lines = []
    for pooling, sizes in sorted(found, key=lambda each: (_POOLINGS.index(each[0]), _SIZES.index(each[1]))):
        runs = found[pooling, sizes]
        best, last = (statistics.mean(errors) for errors in zip(*runs, strict=True))
        lines.append([pooling, sizes, len(runs), f"{best:.2f}", f"{last:.2f}", f"{last - best:.2f}"])
    header = ("pooling", "sizes", "runs", "best epoch", "last epoch", "difference")
    return (
        [("Validation error (centre crop) of the best and the last epoch, Imagenette", header, lines)] if lines else []
    )


def build_hours_table(results: Path) -> list[Table]:
    """Build the table of the time of trainings and tests, at the median epoch and the median test of each network.

    Some epochs and tests were stopped on the way, or shared their core with other work, which a sum would count.
    """
    lines, total = [], [0.0, 0.0]
    places = (("mini", "mini", "Imagenette"), ("mini_timm", "mini", "Imagenette"),
              ("mini_caltech", "mini_caltech", "Caltech-101"))  # fmt: skip
    for curves, tested, data in places:
        trainings: dict[str, list[float]] = defaultdict(list)
        for (net, *_), epochs in _read_curves(results / f"curves/{curves}.csv").items():
            trainings[net].append(len(epochs) * statistics.median(float(row["seconds"]) for row in epochs) / 3600)
        tests = _find_test_hours(results / f"{tested}.csv")
        for net, runs in trainings.items():
            # Those of the same protocols take about the same time.
            hours = [sum(runs), sum(len(each) * statistics.median(each) for each in tests[net])]
            count = sum(map(len, tests[net]))
            lines.append([data, net, len(runs), f"{hours[0]:.1f}", count, f"{hours[1]:.1f}"])
            total = [whole + own for whole, own in zip(total, hours, strict=True)]
    lines.append(["all", "", "", f"{total[0]:.1f}", "", f"{total[1]:.1f}"])
    header = ("data", "net", "trainings", "hours of trainings", "tests", "hours of tests")
    return [("Hours of one CPU core", header, lines)] if len(lines) > 1 else []


def _find_test_hours(path: Path) -> dict[str, list[list[float]]]:
    """Return for each network the hours of its tests, in groups of the same protocols."""
    # The protocols of one test share its time.
    tests: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in select_single(read_csv(path)):
        tests[row["net"], row["checkpoint_sha256"], row["seconds"]].append(row["protocol"])
    groups: dict[str, dict[tuple[str, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
    for (net, _, seconds), protocols in tests.items():
        groups[net][tuple(protocols)].append(float(seconds) / 3600)
    return defaultdict(list, {net: list(own.values()) for net, own in groups.items()})


def _read_curves(path: Path) -> dict[tuple[str, str, str, str], list[dict[str, str]]]:
    """Return the epochs of each run, by net, pooling, sizes and seed."""
    runs: dict[tuple[str, str, str, str], list[dict[str, str]]] = defaultdict(list)
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                runs[row["net"], row["pooling"], row["sizes"], row["seed"]].append(row)
    return dict(runs)
