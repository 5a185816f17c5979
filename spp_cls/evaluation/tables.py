"""The paper's tables with our results beside them: python -m spp_cls.evaluation.tables [key=value ...]."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spp_cls.cli.arguments import parse_arguments, run_tool
from spp_cls.cli.errors import UserError, shorten
from spp_cls.cli.reading import is_file
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import Table, format_as
from spp_cls.evaluation.images import get_min_side
from spp_cls.evaluation.protocols import PROTOCOLS
from spp_cls.evaluation.rows import read_csv

TITLES = {
    "2": "Table 2: ImageNet 2012 validation, 10 views",
    "3": "Table 3: ImageNet 2012 validation, one view, min side 256",
    "4": "Table 4: ImageNet 2012 validation, single network",
}
HEADER = ("", "views", "paper top-1", "ours", "difference", "paper top-5", "ours", "difference")
MEASURED_HEADER = (
    "data", "net", "pooling", "sizes", "epochs", "protocol", "views", "top-1 error", "top-5 error", "images",
    "same best class as crop10",
)  # fmt: skip

# A row of ours measures what a row of the paper does if these agree and it is of all ImageNet validation images.
_IDENTITY = ("net", "pooling", "levels", "sizes", "protocol")
_IMAGENET_VAL = "50000"
_ERRORS = ("top1_error", "top5_error")


@dataclass(frozen=True)
class Options:
    """The keys of this command."""

    results: str = key("results", help="folder of paper.csv and of the CSV files that eval.py wrote")
    format: Literal["terminal", "markdown", "csv"] = key("terminal", help="form of the tables")
    chart: str | None = key(None, help="PNG file to draw the top-1 errors in")


def read_results(folder: str | Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Read the paper's rows, and ours from all CSV files of the folder that eval.py wrote.

    Files named transfer*.csv are those of spp_cls.transfer, which has tables of its own.

    Raises:
        UserError: if the folder has no paper.csv, or a file has other columns.
    """
    paper = read_paper(folder)
    paths = [path for path in sorted(Path(folder).glob("*.csv")) if not path.name.startswith(("paper", "transfer"))]
    return paper, [row for path in paths for row in read_csv(path)]


def read_paper(folder: str | Path) -> list[dict[str, str]]:
    """Read the paper's rows from the folder's paper.csv.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    path = Path(folder) / "paper.csv"
    if not is_file(path):
        raise UserError(f"there is no paper.csv in {folder}; give the folder of results as results=PATH")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            missing = [name for name in ("table", "row", "views", *_IDENTITY, *_ERRORS) if row.get(name) is None]
            if missing:
                raise ValueError(f"{missing[0]} is missing")
            for name in _ERRORS:
                float(row[name] or 0)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not the paper's results ({shorten(error)}); take it from the repository") from error
    return rows


def build_paper_tables(paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]]) -> list[Table]:
    """Build Tables 2, 3 and 4 with our error and the difference beside each of the paper's, empty if not measured."""
    return [
        (title, HEADER, [_compare(row, find_result(row, ours)) for row in paper if row["table"] == number])
        for number, title in TITLES.items()
    ]


def find_result(paper_row: dict[str, str], ours: Sequence[dict[str, str]]) -> dict[str, str] | None:
    """Return our last result that measures what a row of the paper does."""
    same = [
        row
        for row in ours
        if paper_row["net"]
        and (row["data"], row["images"]) == ("imagenet", _IMAGENET_VAL)
        and all(row[key] == paper_row[key] for key in _IDENTITY)
        and row["networks"] in ("", "1")
        and row["width"] in ("", "1")
        and _is_sharp(row)
    ]
    return same[-1] if same else None


def _is_sharp(row: dict[str, str]) -> bool:
    """Return whether the images were stored as large as the protocol of a row takes them."""
    side = max(get_min_side(view, int(row["input_size"])) for view in PROTOCOLS[row["protocol"]].views)
    return not row["stored_side"] or int(row["stored_side"]) >= side


def _compare(paper_row: dict[str, str], result: dict[str, str] | None) -> list[str]:
    cells = [paper_row["row"], paper_row["views"]]
    for name in _ERRORS:
        error = paper_row[name]
        measured = f"{float(result[name]):.2f}" if result else ""
        difference = f"{float(result[name]) - float(error):+.2f}" if result and error else ""
        cells += [error, measured, difference]
    return cells


def build_measured_table(ours: Sequence[dict[str, str]]) -> Table:
    """Build the table of our results on other data than ImageNet, which the paper has no errors for."""
    rows = [
        [
            _name_data(row),
            *(row[key] for key in ("net", "pooling", "sizes", "epochs", "protocol", "views")),
            *(f"{float(row[key]):.2f}" for key in _ERRORS),
            row["images"],
            f"{float(row['agreement_with_crop10']):.2f}" if row["agreement_with_crop10"] else "",
        ]
        for row in ours
        if _name_data(row) != "imagenet"
    ]
    return "Measured with this code on other data", MEASURED_HEADER, rows


def _name_data(row: dict[str, str]) -> str:
    return f"{row['data']}, stored at {row['stored_side']}" if row["stored_side"] else row["data"]


def draw_chart(paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]], path: str | Path) -> None:
    """Draw the top-1 errors of the paper and ours as a PNG: ImageNet by row, other data by protocol.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("drawing a chart needs matplotlib; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(14, 7), layout="constrained")
    left, right = figure.subplots(1, 2)
    compared = [row for row in paper if row["net"] and row["top1_error"]][::-1]
    heights = range(len(compared))
    left.barh([y + 0.2 for y in heights], [float(row["top1_error"]) for row in compared], 0.4, label="paper")
    found = [(y, result) for y in heights if (result := find_result(compared[y], ours))]
    errors = [float(result["top1_error"]) for _, result in found]
    left.barh([y - 0.2 for y, _ in found], errors, 0.4, color="C1", label="ours")
    left.set_yticks(list(heights), [row["row"] for row in compared])
    left.set(title="ImageNet 2012 validation", xlabel="top-1 error, %")
    left.legend()
    others = [row for row in ours if _name_data(row) != "imagenet"][::-1]
    names = [f"{_name_data(row)}, {row['net']}, {row['protocol']}" for row in others]
    right.barh(names, [float(row["top1_error"]) for row in others], color="C1")
    right.set(title="Other data, ours", xlabel="top-1 error, %")
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str]) -> None:
    """Print the tables; with chart=PATH draw them too."""
    usage = "python -m spp_cls.evaluation.tables [key=value ...]"
    names, options = parse_arguments(Options, arguments, usage, "python -m spp_cls.evaluation.tables format=markdown")
    if names:
        raise UserError(f"{names[0]} is not key=value; usage: {usage}")
    paper, ours = read_results(options.results)
    tables = [*build_paper_tables(paper, ours), build_measured_table(ours)]
    print("\n\n".join(format_as(table, options.format) for table in tables))
    if options.chart:
        draw_chart(paper, ours, options.chart)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
