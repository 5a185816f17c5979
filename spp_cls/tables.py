"""The paper's tables with our figures beside them: python -m spp_cls.tables [key=value ...]."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spp_cls.errors import UserError, one_line
from spp_cls.models.net import build_net
from spp_cls.models.specs import SPECS
from spp_cls.options import options
from spp_cls.rows import read_csv
from spp_cls.speed_tables import data_tables, layer_tables, testing_tables, training_tables
from spp_cls.text_tables import Table, as_text

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

# A row of ours is the paper's if all of these agree and it was measured on all of ImageNet's validation images.
_IDENTITY = ("net", "pooling", "levels", "sizes", "protocol")
_IMAGENET_VAL = "50000"

DEFAULTS: dict[str, Any] = {"results": "results", "format": "terminal", "chart": None, "readme": None}


def read_results(folder: str | Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Read the paper's rows, and ours from all other CSV files of the folder.

    Raises:
        UserError: the folder has no paper.csv, or a file with other columns.
    """
    folder = Path(folder)
    if not (folder / "paper.csv").is_file():
        raise UserError(f"there is no paper.csv in {folder}; give the folder of results as results=PATH")
    with (folder / "paper.csv").open(newline="") as file:
        paper = list(csv.DictReader(file))
    ours = [row for path in sorted(folder.glob("*.csv")) if path.name != "paper.csv" for row in read_csv(path)]
    return paper, ours


def paper_tables(paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]]) -> list[Table]:
    """Return Tables 2, 3 and 4 with our figure and the difference beside each of the paper's, empty where none is."""
    return [
        (title, HEADER, [_beside(row, our_row(row, ours)) for row in paper if row["table"] == number])
        for number, title in TITLES.items()
    ]


def our_row(paper_row: dict[str, str], ours: Sequence[dict[str, str]]) -> dict[str, str] | None:
    """Return our last row that measures what a row of the paper does."""
    same = [
        row
        for row in ours
        if paper_row["net"]
        and (row["data"], row["images"]) == ("imagenet", _IMAGENET_VAL)
        and all(row[key] == paper_row[key] for key in _IDENTITY)
    ]
    return same[-1] if same else None


def _beside(paper_row: dict[str, str], own: dict[str, str] | None) -> list[str]:
    cells = [paper_row["row"], paper_row["views"]]
    for error in ("top1_error", "top5_error"):
        figure = paper_row[error]
        measured = f"{float(own[error]):.2f}" if own else ""
        difference = f"{float(own[error]) - float(figure):+.2f}" if own and figure else ""
        cells += [figure, measured, difference]
    return cells


def measured_table(ours: Sequence[dict[str, str]]) -> Table:
    """Return all rows that we measured on other data than ImageNet, which the paper has no figures for."""
    rows = [
        [
            *(row[key] for key in ("data", "net", "pooling", "sizes", "epochs", "protocol", "views")),
            *(f"{float(row[key]):.2f}" for key in ("top1_error", "top5_error")),
            row["images"],
            f"{float(row['agreement_with_crop10']):.2f}" if row["agreement_with_crop10"] else "",
        ]
        for row in ours
        if row["data"] != "imagenet"
    ]
    return "Measured with this code on other data", MEASURED_HEADER, rows


def networks_table() -> Table:
    """Return geometry, widths and parameter counts of the networks, as built with 1000 classes."""
    header = (
        "net", "stride", "map at 224", "map at 180", "smallest image", "fc6 inputs", "parameters", "without SPP",
    )  # fmt: skip
    rows = []
    for name in SPECS:
        # Shapes alone; no weights are drawn.
        with torch.device("meta"):
            net, baseline = build_net(name), build_net(name, "none")
        counts = (sum(parameter.numel() for parameter in each.parameters()) for each in (net, baseline))
        trunk = net.backbone
        figures = (trunk.stride, trunk.map_size(224), trunk.map_size(180), trunk.smallest_input)
        inputs = net.num_features * net.pool.bins
        rows.append([name, *map(str, figures), *(f"{figure:,}" for figure in (inputs, *counts))])
    return "With SPP of 50 bins and 1000 classes", header, rows


def with_parts(readme: str, results: str | Path) -> str:
    """Put tables made from a folder of results in their places in a README, between the marks there.

    Raises:
        UserError: the README has no marks for any of them.
    """
    paper, ours = read_results(results)
    parts: dict[str, Sequence[Table]] = {
        "networks": [networks_table()],
        "results": [*paper_tables(paper, ours), measured_table(ours)],
        "speed of data": data_tables(results),
        "speed of testing": testing_tables(results),
        "speed of training": training_tables(results),
        "speed of layers": layer_tables(results),
    }
    filled = 0
    for name, tables in parts.items():
        begin, end = f"<!-- {name}: written by python -m spp_cls.tables -->", f"<!-- end of {name} -->"
        if begin in readme and end in readme:
            before, after = readme.split(begin, maxsplit=1)[0], readme.split(end, maxsplit=1)[1]
            readme = before + "\n\n".join([begin, *(as_text(table, "markdown") for table in tables), end]) + after
            filled += 1
    if not filled:
        raise UserError(f"there is no place for a table; put lines such as {begin} and {end} there")
    return readme


def draw_chart(paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]], path: str | Path) -> None:
    """Draw the top-1 errors of the paper and ours as a PNG: ImageNet by row, other data by protocol.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("drawing a chart needs matplotlib; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(14, 7), layout="constrained")
    left, right = figure.subplots(1, 2)
    compared = [row for row in paper if row["net"] and row["top1_error"]][::-1]
    places = range(len(compared))
    errors = [float(row["top1_error"]) for row in compared]
    left.barh([y + 0.2 for y in places], errors, 0.4, color="C0", label="paper")
    found = [(y, own) for y in places if (own := our_row(compared[y], ours))]
    errors = [float(own["top1_error"]) for _, own in found]
    left.barh([y - 0.2 for y, _ in found], errors, 0.4, color="C1", label="ours")
    left.set_yticks(list(places), [row["row"] for row in compared])
    left.set(title="ImageNet 2012 validation", xlabel="top-1 error, %")
    left.legend()
    others = [row for row in ours if row["data"] != "imagenet"][::-1]
    names = [f"{row['data']}, {row['net']}, {row['protocol']}" for row in others]
    right.barh(names, [float(row["top1_error"]) for row in others], color="C1")
    right.set(title="Other data, ours", xlabel="top-1 error, %")
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str]) -> None:
    """Print the tables; with chart=PATH draw them too, with readme=PATH put them into a README."""
    given = options(DEFAULTS, arguments)
    paper, ours = read_results(given["results"])
    tables = [*paper_tables(paper, ours), measured_table(ours)]
    print("\n\n".join(as_text(table, given["format"]) for table in tables))
    if given["chart"]:
        draw_chart(paper, ours, given["chart"])
    if given["readme"]:
        readme = Path(given["readme"])
        readme.write_text(with_parts(readme.read_text(), given["results"]))


if __name__ == "__main__":
    one_line(lambda: main(sys.argv[1:]))
