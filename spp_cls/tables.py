"""The paper's tables with our figures beside them: python -m spp_cls.tables [key=value ...]."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spp_cls.command import one_line, options
from spp_cls.errors import UserError
from spp_cls.models.net import build_net
from spp_cls.models.specs import SPECS
from spp_cls.rows import read_csv

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

Table = tuple[str, Sequence[str], list[list[str]]]


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


def as_text(table: Table, form: str) -> str:
    """Lay a table out for the terminal, or as markdown or csv.

    Raises:
        UserError: another form.
    """
    title, header, rows = table
    if form == "terminal":
        return f"{title}\n{terminal_table(header, rows)}"
    if form == "markdown":
        lines = [header, ["---" if column == 0 else "---:" for column in range(len(header))], *rows]
        return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if form == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
        return f"# {title}\n{buffer.getvalue()}".rstrip()
    raise UserError(f"format is terminal, markdown or csv, not {form!r}")


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay rows out in columns; those of numbers stand to the right."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [all(_is_number(row[column]) for row in cells[1:]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("+-").replace(".", "", 1).isdigit()


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


def speed_tables(folder: str | Path) -> list[Table]:
    """Return what the benchmarks measured, as their JSON files in a folder say; none without the files."""
    tables: list[Table] = []
    loader = Path(folder) / "loader.json"
    if loader.is_file():
        found = json.loads(loader.read_text())
        rates = found["one_core"]["images_per_second"]
        ours = [name for name in rates if name.startswith("ours")]
        header = ("images a second, one core", *(f"{name} / this" for name in ours))
        rows = [[f"{name}: {rate:,.0f}", *(f"{rates[own] / rate:.2f}" for own in ours)] for name, rate in rates.items()]
        tables.append((f"Photographs as shipped, to crops of 224 ({_machine(found)})", header, rows))
    multiview, memory = Path(folder) / "multiview.json", Path(folder) / "peak_memory.json"
    if multiview.is_file():
        found = json.loads(multiview.read_text())
        header = (
            "net",
            "windows",
            "crops / maps, time",
            "crops / maps, multiply-adds",
            "pool_windows, share of a scale",
        )
        rows = []
        for net in (name for name in found if name in SPECS):
            share = f"{100 * found[net]['pool_windows']['share']:.1f} %"
            for kind, figures in found[net].items():
                if "ratio" in figures:
                    count = figures.get("views") or figures["windows"]
                    ratios = [f"{figures[key]:.2f}" for key in ("ratio", "ratio_of_multiply_adds")]
                    rows.append([net, f"{count} ({kind.replace('_', ' ')})", *ratios, share])
        tables.append((f"Testing on crops against feature maps ({_machine(found)})", header, rows))
    if memory.is_file():
        found = json.loads(memory.read_text())
        rows = [[name, f"{size:,}"] for name, size in found["mib"].items()]
        title = f"Peak memory of map98, ZF-5, images up to 4000 x 3000 ({_machine(found)})"
        tables.append((title, ("", "MiB"), rows))
    return tables


def _machine(found: dict[str, Any]) -> str:
    return f"{found['hardware']}, torch {found['torch']}: {found['command']}"


def with_parts(
    readme: str, paper: Sequence[dict[str, str]], ours: Sequence[dict[str, str]], speed: Sequence[Table]
) -> str:
    """Put the tables in their places in a README, between the marks there.

    Raises:
        UserError: the README has no marks for them.
    """
    parts: dict[str, Sequence[Table]] = {
        "networks": [networks_table()],
        "results": [*paper_tables(paper, ours), measured_table(ours)],
        "speed": speed,
    }
    for name, tables in parts.items():
        begin = f"<!-- {name}: written by python -m spp_cls.tables readme=README.md -->"
        end = f"<!-- end of {name} -->"
        if begin not in readme or end not in readme:
            raise UserError(f"the README has no place for the {name}; put the lines {begin} and {end} there")
        before, after = readme.split(begin, maxsplit=1)[0], readme.split(end, maxsplit=1)[1]
        readme = before + "\n\n".join([begin, *(as_text(table, "markdown") for table in tables), end]) + after
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
        readme.write_text(with_parts(readme.read_text(), paper, ours, speed_tables(given["results"])))


if __name__ == "__main__":
    one_line(lambda: main(sys.argv[1:]))
