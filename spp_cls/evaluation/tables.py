"""The paper's tables with our results beside them: python -m spp_cls.evaluation.tables [key=value ...]."""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spp_cls.cli.arguments import parse_keys, run_tool
from spp_cls.cli.errors import UserError, check_png, explain_write_errors, shorten
from spp_cls.cli.reading import is_file
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import Table, format_as
from spp_cls.evaluation.images import get_min_side
from spp_cls.evaluation.protocols import PROTOCOLS, REFERENCE_SIDE
from spp_cls.evaluation.rows import read_csv
from spp_cls.evaluation.seeds import TextRow, compute_spread, group_by_seed, select_single, summarise

TITLES = {
    "2": "Table 2: ImageNet 2012 validation, 10 views",
    "3": "Table 3: ImageNet 2012 validation, one view, min side 256",
    "4": "Table 4: ImageNet 2012 validation, single network",
}
HEADER = ("", "views", "paper top-1", "ours", "difference", "paper top-5", "ours", "difference")
MEASURED_HEADER = (
    "data", "networks", "net", "width", "pooling", "sizes", "best epoch", "protocol", "views", "top-1 error",
    "top-5 error", "seeds", "images", "same best class as crop10",
)  # fmt: skip

# A row of ours measures what a row of the paper does if these agree and it is of all ImageNet validation images.
_IDENTITY = ("net", "pooling", "levels", "sizes", "protocol")
_IMAGENET_VAL = "50000"
_ERRORS = ("top1_error", "top5_error")
# What spp_cls.transfer reads.
_SCORES = ("data", "layer", "view", "side", "score")


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
            missing = [
                name for name in ("table", "row", "views", *_IDENTITY, *_ERRORS, *_SCORES) if row.get(name) is None
            ]
            if missing:
                raise ValueError(f"{missing[0]} is missing")
            for name in (*_ERRORS, "score"):
                float(row[name] or 0)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not the paper's results ({shorten(error)}); take it from the repository") from error
    return rows


def build_paper_tables(paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]]) -> list[Table]:
    """Build Tables 2, 3 and 4 with our error and the difference beside each of the paper's, empty if not measured.

    Ours is the mean and standard deviation over seeds.
    """
    groups = list(group_by_seed(ours).values())
    return [
        (title, HEADER, [_compare(row, find_results(row, groups)) for row in paper if row["table"] == number])
        for number, title in TITLES.items()
    ]


def find_results(paper_row: TextRow, groups: Sequence[Mapping[str, TextRow]]) -> Mapping[str, TextRow]:
    """Find the group of our results that measures what a row of the paper does; empty if there is none.

    A group is a row for each seed. Of several, which differ in more than their seed, such as precision, it is the last.
    """
    same = [members for members in groups if _measures(_get_first(members), paper_row)]
    return same[-1] if same else {}


def _get_first(members: Mapping[str, TextRow]) -> TextRow:
    return next(iter(members.values()))


def _measures(row: TextRow, paper_row: TextRow) -> bool:
    """Return whether a row of ours measures what a row of the paper does."""
    return (
        bool(paper_row["net"] and select_single([row]))
        and (row["data"], row["images"]) == ("imagenet", _IMAGENET_VAL)
        and all(row[key] == paper_row[key] for key in _IDENTITY)
        and row["width"] in ("", "1")
        and row["input_size"] == str(REFERENCE_SIDE)
        and is_sharp(row, max(get_min_side(view, REFERENCE_SIDE) for view in PROTOCOLS[row["protocol"]].views))
    )


def is_sharp(row: Mapping[str, Any], side: int) -> bool:
    """Return whether the images of a row were stored with a min side of `side` at least, or as they came."""
    return not row["stored_side"] or int(row["stored_side"]) >= side


def _compare(paper_row: TextRow, results: Mapping[str, TextRow]) -> list[str]:
    cells = [paper_row["row"], paper_row["views"]]
    for name in _ERRORS:
        error = paper_row[name]
        spread = summarise(results, name) if results else None
        difference = f"{spread.mean - float(error):+.2f}" if spread and error else ""
        cells += [error, str(spread or ""), difference]
    return cells


def build_measured_table(paper: Sequence[TextRow], ours: Sequence[TextRow]) -> Table:
    """Build the table of our results that the paper does not have: mean and standard deviation over seeds."""
    cells = []
    for row, members in _group_others(paper, ours):
        agreements = [
            float(each["agreement_with_crop10"]) for each in members.values() if each["agreement_with_crop10"]
        ]
        cells.append(
            [
                name_data(row),
                row["networks"] or "1",
                *(row[key] for key in ("net", "width", "pooling", "sizes")),
                " ".join(dict.fromkeys(each["epochs"] for each in members.values())),
                *(row[key] for key in ("protocol", "views")),
                *(str(summarise(members, key)) for key in _ERRORS),
                str(len(members)),
                row["images"],
                str(compute_spread(agreements)) if agreements else "",
            ]
        )
    return "Measured with this code, and not in the paper", MEASURED_HEADER, cells


def _group_others(paper: Sequence[TextRow], ours: Sequence[TextRow]) -> list[tuple[TextRow, Mapping[str, TextRow]]]:
    """Return the groups of our results that match no row of the paper: one row of each, and its rows by seed."""
    groups = list(group_by_seed(ours).values())
    beside = [find_results(row, groups) for row in paper]
    return [(_get_first(members), members) for members in groups if members not in beside]


def name_data(row: TextRow) -> str:
    """Return the name of the data of a row, and how a pack stored its images."""
    return f"{row['data']}, stored at {row['stored_side']}" if row["stored_side"] else row["data"]


def draw_chart(paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]], path: str | Path) -> None:
    """Draw the top-1 errors of the paper and ours as a PNG: ImageNet by row, other data with the spread over seeds.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("drawing a chart needs matplotlib; install it with: pip install matplotlib") from error
    compared = [row for row in paper if row["net"] and row["top1_error"]][::-1]
    others = _group_others(paper, ours)[::-1]
    groups = list(group_by_seed(ours).values())
    figure = Figure(figsize=(14, max(4, 0.25 * max(len(compared), len(others)))), layout="constrained")
    left, right = figure.subplots(1, 2)
    # Points: an axis from zero, which bars need, hides differences of a point.
    heights = range(len(compared))
    left.plot([float(row["top1_error"]) for row in compared], heights, "o", color="C0", mfc="none", label="paper")
    if found := [
        (y, summarise(results, "top1_error")) for y in heights if (results := find_results(compared[y], groups))
    ]:
        left.errorbar([each.mean for _, each in found], [y for y, _ in found],
                      xerr=[each.deviation or 0 for _, each in found], fmt="o", color="C1", capsize=2,
                      label="ours")  # fmt: skip
    left.set_yticks(list(heights), [row["row"] for row in compared])
    left.set(title="ImageNet 2012 validation", xlabel="top-1 error, %")
    left.legend()
    spreads = [summarise(members, "top1_error") for _, members in others]
    deviations = [spread.deviation or 0 for spread in spreads]
    places = range(len(others))
    right.errorbar([each.mean for each in spreads], places, xerr=deviations, fmt="o", color="C1", capsize=2)
    names = [f"{name_data(row)}, {row['net']} {row['pooling']} {row['sizes']}, {row['protocol']}" for row, _ in others]
    right.set_yticks(list(places), names)
    right.set(title="Other results of ours, with the spread over seeds", xlabel="top-1 error, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(y=0.04)
    figure.savefig(path, format="png", dpi=100)


def main(arguments: Sequence[str]) -> None:
    """Print the tables; with chart=PATH draw them too."""
    example = "python -m spp_cls.evaluation.tables format=markdown"
    options = parse_keys(Options, arguments, "python -m spp_cls.evaluation.tables [key=value ...]", example)
    if options.chart:
        check_png(options.chart, "chart")
    paper, ours = read_results(options.results)
    tables = [*build_paper_tables(paper, ours), build_measured_table(paper, ours)]
    print("\n\n".join(format_as(table, options.format) for table in tables))
    if options.chart:
        with explain_write_errors(options.chart, "chart"):
            draw_chart(paper, ours, options.chart)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
