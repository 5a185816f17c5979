"""The paper's Tables 6 to 8 with our results beside them: python -m spp_cls.transfer.tables [key=value ...]."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from spp_cls.cli.arguments import parse_keys, run_tool
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import Table, format_as
from spp_cls.evaluation.protocols import REFERENCE_SIDE
from spp_cls.evaluation.tables import read_paper
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
NET_HEADER = ("data", "net", "width", "trained on sizes", "epochs", "draws")

# A row of ours measures what a row of the paper does if these agree.
_IDENTITY = ("data", "net", "pooling", "levels", "sizes", "layer", "view", "side")


class Claim(NamedTuple):
    """What the paper says of one layer or view against another, on some data set or any."""

    text: str
    column: Literal["layer", "view"]
    better: str
    worse: str
    data: str | None = None


CLAIMS = (
    Claim("full views beat crops", "view", "full", "crop"),
    Claim("full views beat warped ones", "view", "full", "warp"),
    Claim("all levels beat the 6 x 6 level", "layer", "pool", "level:6"),
    Claim("the SPP layer beats the first hidden layer", "layer", "pool", "hidden1", "caltech101"),
    Claim("the first hidden layer beats the second", "layer", "hidden1", "hidden2", "caltech101"),
    Claim("the second hidden layer beats the first", "layer", "hidden2", "hidden1", "voc2007"),
)
CLAIM_HEADER = ("claim", "net", "epochs", "layer, view, side", "mean difference", "draws that agree", "verdict")


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
        and float(row["width"]) == 1
        and row["is_side_chosen"] == "False"
        and row["epochs"] != "0"
        and all(row[name] == paper_row[name] for name in _IDENTITY)
    ]
    score = get_score(same[-1]) if same else None
    difference = "" if score is None else f"{score - float(paper_row['score']):+.2f}"
    return [
        paper_row["row"], paper_row["data"], paper_row["score"], "" if score is None else f"{score:.2f}", difference,
    ]  # fmt: skip


def find_paper_score(row: Mapping[str, Any], paper: Sequence[dict[str, str]]) -> str:
    """Return what the paper has for this data, layer, view, side and network, of any width and training; or nothing.

    The side of a network that was trained on crops of another size than 224 is taken in proportion.
    """
    side = round(int(row["side"]) * REFERENCE_SIDE / int(row["input_size"]))
    place = {**{name: row[name] for name in ("data", "net", "pooling", "layer", "view")}, "side": str(side)}
    same = [each for each in paper if each["score"] and all(each[name] == place[name] for name in place)]
    return same[0]["score"] if same else ""


def describe_row(row: Mapping[str, Any], results: str | Path) -> list[str]:
    """Return the cells of a row of results, the paper's beside it if `results` has its paper.csv."""
    paper = read_paper(results) if (Path(results) / "paper.csv").is_file() else []
    return _list_cells(row, paper)


def _list_cells(row: Mapping[str, Any], paper: Sequence[dict[str, str]]) -> list[str]:
    def show(name: str) -> str:
        return "" if row[name] in (None, "") else f"{float(row[name]):.2f}"

    is_chosen = str(row["is_side_chosen"]) == "True"
    side = f"{row['side']} (chosen)" if is_chosen else row["side"]
    metrics = ("accuracy", "accuracy_std", "accuracy_of_images", "map_11", "map_exact", "validation")
    found = "" if is_chosen else find_paper_score(row, paper)
    return [row["layer"], row["view"], side, row["C"], *map(show, metrics), found]


def build_measured_table(paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]]) -> Table:
    """Build the table of all our results, with the paper's score of the same layer and view beside each."""
    rows = [[*_list_net_cells(row), *_list_cells(row, paper)] for row in ours]
    return "Measured with this code, accuracy and average precision in %", (*NET_HEADER, *RESULT_HEADER), rows


def _list_net_cells(row: Mapping[str, str]) -> list[str]:
    return [row["data"], _name_net(row), row["width"], row["sizes"], row["epochs"], row["draws"]]


def _name_net(row: Mapping[str, str]) -> str:
    return row["net"] if row["pooling"] == "spp" else f"{row['net']} ({row['pooling']})"


def build_claims_table(ours: Sequence[dict[str, str]]) -> Table:
    """Build the table of the paper's claims, each tested on every pair of our rows that differ in nothing else.

    A claim is confirmed where each draw agrees with it, refuted where none does, and else, or with a single draw, not
    resolved: the draws share images, so that the deviation of their mean would promise too much.
    """
    rows: list[list[str]] = []
    for claim in CLAIMS:
        others = {"layer", "view"} - {claim.column}
        names = ("network_sha256", "data", "svm", "side", *others)
        fixed = [row for row in ours if row["is_side_chosen"] == "False" and claim.data in (None, row["data"])]
        worse = {tuple(row[name] for name in names): row for row in fixed if row[claim.column] == claim.worse}
        better = {tuple(row[name] for name in names): row for row in fixed if row[claim.column] == claim.better}
        for same, row in better.items():
            if same in worse:
                (other,) = others
                place = ", ".join((row["data"], row[other], row["side"]))
                rows.append([claim.text, _name_net(row), row["epochs"], place, *_judge(row, worse[same])])
    return "The paper's claims", CLAIM_HEADER, rows


def _judge(better: Mapping[str, str], worse: Mapping[str, str]) -> list[str]:
    one, other = ([float(value) for value in row["by_draw"].split()] for row in (better, worse))
    if len(one) != len(other):
        return ["", "", "not resolved: other draws"]
    differences = np.subtract(one, other)
    agreeing = int((differences > 0).sum())
    verdict = "not resolved"
    if len(one) > 1:
        opposite = int((differences < 0).sum())
        verdict = {agreeing: "confirmed", opposite: "refuted"}.get(len(one), verdict)
    return [f"{differences.mean():+.2f}", f"{agreeing} of {len(one)}", verdict]


def build_transfer_tables(folder: str | Path) -> list[Table]:
    """Build all tables of transfer from the files of a folder; those without a row of ours are left out.

    Raises:
        UserError: if the folder has no paper.csv, or a file has other columns.
    """
    paper, ours = read_paper(folder), read_transfer_results(folder)
    tables = build_paper_tables(paper, ours)
    return [*tables, *(each for each in (build_measured_table(paper, ours), build_claims_table(ours)) if each[2])]


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    example = "python -m spp_cls.transfer.tables format=markdown"
    options = parse_keys(Options, arguments, "python -m spp_cls.transfer.tables [key=value ...]", example)
    print("\n\n".join(format_as(table, options.format) for table in build_transfer_tables(options.results)))


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
