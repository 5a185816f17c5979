"""The paper's Tables 6 to 8 with our results beside them: python -m spp_cls.transfer.tables [key=value ...]."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spp_cls.cli.arguments import parse_keys, run_tool
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import Table, format_as
from spp_cls.evaluation.protocols import REFERENCE_SIDE
from spp_cls.evaluation.tables import is_sharp, name_data, read_paper
from spp_cls.transfer.claims import build_claims_tables, get_setting, name_cost
from spp_cls.transfer.rows import read_rows

TITLES = {
    "6": "Table 6: VOC 2007 classification, mean average precision",
    "7": "Table 7: Caltech-101, accuracy",
    "8": "Table 8: other methods, VOC 2007 (mean average precision) and Caltech-101 (accuracy)",
}
PAPER_HEADER = ("", "data", "paper", "ours", "difference")
RESULT_HEADER = (
    "layer", "view", "side", "C", "accuracy", "+-", "of all images", "AP of 11 points", "AP, exact", "validation",
    "paper",
)  # fmt: skip
LINE_HEADER = ("net", "pooling", "width", "trained on sizes", "best epoch", "draws", "C", "layer")
_LINE = ("net", "pooling", "width", "sizes", "epochs", "draws")

# A row of ours measures what a row of the paper does if these agree.
_IDENTITY = ("data", "net", "pooling", "levels", "sizes", "layer", "view", "side")

# What the paper trains and tests on: 30 images of each of 102 classes, drawn ten times; trainval and test of VOC 2007.
_SETUPS = {
    "caltech101": {"draws": "10", "train_images": "3060"},
    "voc2007": {"draws": "1", "train_images": "5011"},
}
# Of the 9,144 images of Caltech-101 up to 50 of each class, beside the 30 to train on.
_LEAST_TEST_IMAGES = {"caltech101": 2995, "voc2007": 4952}


@dataclass(frozen=True)
class Options:
    """The keys of this command."""

    results: str = key("results", help="folder of paper.csv and of the files transfer*.csv that spp_cls.transfer wrote")
    format: Literal["terminal", "markdown", "csv"] = key("terminal", help="form of the tables")


def read_transfer_results(folder: str | Path) -> list[dict[str, str]]:
    """Read the rows of all files transfer*.csv of a folder.

    Raises:
        UserError: if a file has other columns or is damaged.
    """
    return [row for path in sorted(Path(folder).glob("transfer*.csv")) for row in read_rows(path)]


def get_score(row: Mapping[str, Any]) -> float:
    """Return what the paper's tables have: accuracy as the mean over classes, or average precision of 11 points."""
    return float(row["map_11"] if row["accuracy"] in (None, "") else row["accuracy"])


def build_paper_tables(paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]]) -> list[Table]:
    """Build Tables 6, 7 and 8 with our score beside each of the paper's, empty if not measured at full width."""
    return [
        (title, PAPER_HEADER, [_compare(row, ours) for row in paper if row["table"] == number])
        for number, title in TITLES.items()
    ]


def _compare(paper_row: dict[str, str], ours: Sequence[dict[str, str]]) -> list[str]:
    same = [
        row
        for row in ours
        if paper_row["net"]
        and row["data"] in _SETUPS
        and float(row["width"]) == 1
        and row["is_side_chosen"] == "False"
        and row["epochs"] != "0"
        and row["input_size"] == str(REFERENCE_SIDE)
        and all(row[name] == value for name, value in _SETUPS[row["data"]].items())
        and int(row["test_images"]) >= _LEAST_TEST_IMAGES[row["data"]]
        and is_sharp(row, int(row["side"]))
        and all(row[name] == paper_row[name] for name in _IDENTITY)
    ]
    score = get_score(same[-1]) if same else None
    difference = "" if score is None else f"{score - float(paper_row['score']):+.2f}"
    return [
        paper_row["row"], paper_row["data"], paper_row["score"], "" if score is None else f"{score:.2f}", difference,
    ]  # fmt: skip


def find_paper_row(row: Mapping[str, Any], paper: Sequence[dict[str, str]]) -> dict[str, str] | None:
    """Return the paper's row of this data, layer, view, side and network, of any width and training; or None.

    The side of a network that was trained on crops of another size than 224 is taken in proportion. A side that was
    chosen has none.
    """
    if str(row["is_side_chosen"]) == "True" or not is_sharp(row, int(row["side"])):
        return None
    side = round(int(row["side"]) * REFERENCE_SIDE / int(row["input_size"]))
    place = {**{name: row[name] for name in ("data", "net", "pooling", "layer", "view")}, "side": str(side)}
    same = [each for each in paper if each["score"] and all(each[name] == place[name] for name in place)]
    return same[0] if same else None


def describe_row(row: Mapping[str, Any], paper: Sequence[dict[str, str]]) -> list[str]:
    """Return the cells of a row of results, with the paper's beside it."""

    def show(name: str) -> str:
        return "" if row[name] in (None, "") else f"{float(row[name]):.2f}"

    side = f"{row['side']} (chosen)" if str(row["is_side_chosen"]) == "True" else row["side"]
    metrics = ("accuracy", "accuracy_std", "accuracy_of_images", "map_11", "map_exact", "validation")
    paper_row = find_paper_row(row, paper)
    return [row["layer"], row["view"], side, row["C"], *map(show, metrics), paper_row["score"] if paper_row else ""]


def build_measured_tables(paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]]) -> list[Table]:
    """Build a table of our scores for each data set: a line for each layer, a column for each view and side.

    The paper's scores of the same layer and view stand at the end of the line.
    """
    tables: list[Table] = []
    for data in dict.fromkeys(name_data(row) for row in ours):
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        for row in (row for row in ours if name_data(row) == data):
            net = {**row, "sizes": "untrained" if row["epochs"] == "0" else row["sizes"]}
            line = (*(net[name] for name in _LINE), name_cost(row), row["layer"])
            # Rows of other settings, such as those of several seeds, have lines of their own too.
            cells = lines.setdefault((*line, *get_setting(row)), {})
            cells[_name_view(row)] = _show_score(row)
            paper_row = find_paper_row(row, paper)
            if paper_row:
                cells[f"paper, {_name_view(paper_row)}"] = paper_row["score"]
        found = dict.fromkeys(name for cells in lines.values() for name in cells)
        columns = sorted(found, key=_order)
        shown = len(LINE_HEADER)
        rows = [[*line[:shown], *(cells.get(name, "") for name in columns)] for line, cells in lines.items()]
        title = f"{data}: {_name_metric(data, ours)} in %, mean ± deviation over draws"
        tables.append((title, (*LINE_HEADER, *columns), rows))
    return tables


def _name_view(row: Mapping[str, str]) -> str:
    return f"{row['view']} {'chosen' if row.get('is_side_chosen') == 'True' else row['side']}"


def _order(column: str) -> tuple[bool, str, int, str]:
    """Order columns: ours before the paper's, by view, by side."""
    view, side = column.split()[-2:]
    return column.startswith("paper"), view, len(side), side


def _show_score(row: Mapping[str, str]) -> str:
    return f"{get_score(row):.2f}" + (f" ± {float(row['accuracy_std']):.2f}" if row["accuracy_std"] else "")


def _name_metric(data: str, ours: Sequence[Mapping[str, str]]) -> str:
    row = next(row for row in ours if name_data(row) == data)
    return "mean average precision of 11 points" if row["accuracy"] == "" else "accuracy, mean over classes,"


def build_transfer_tables(folder: str | Path) -> list[Table]:
    """Build all tables of transfer from the files of a folder; those without a row of ours are left out.

    Raises:
        UserError: if the folder has no paper.csv, or a file has other columns.
    """
    paper, ours = read_paper(folder), read_transfer_results(folder)
    return [*build_paper_tables(paper, ours), *build_measured_tables(paper, ours), *build_claims_tables(ours)]


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    example = "python -m spp_cls.transfer.tables format=markdown"
    options = parse_keys(Options, arguments, "python -m spp_cls.transfer.tables [key=value ...]", example)
    print("\n\n".join(format_as(table, options.format) for table in build_transfer_tables(options.results)))


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
