"""The tables of the documents, made from results/ and the networks: python benchmarks/tables.py."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from backbones import build_table as build_backbones_table
from report.gpu import build_gpu_tables
from report.mini import (
    build_hours_table,
    build_mini_caltech_tables,
    build_mini_tables,
    build_mini_timm_tables,
    build_shapes_table,
    build_summary,
)
from report.speed import (
    build_data_tables,
    build_layer_tables,
    build_testing_tables,
    build_timm_tables,
    build_training_tables,
    build_transfer_tables,
    read_json,
)

from spp_cls import UserError, build_net
from spp_cls.cli.arguments import NoOptions, parse_keys, run_tool
from spp_cls.cli.files import replace_atomically
from spp_cls.cli.terminal import Table, format_as
from spp_cls.evaluation.rows import read_csv
from spp_cls.evaluation.tables import build_measured_table, build_paper_tables, read_results
from spp_cls.models.specs import PRESETS, SPECS
from spp_cls.transfer.claims import build_claims_tables
from spp_cls.transfer.tables import build_measured_tables, read_transfer_results
from spp_cls.transfer.tables import build_paper_tables as build_paper_transfer_tables

_USAGE = """python benchmarks/tables.py

Writes the tables of results/ and of the networks into the documents."""

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = tuple(
    REPOSITORY / name
    for name in ("README.md", "docs/networks.md", "docs/backbones.md", "docs/results.md", "benchmarks/README.md")
)


def build_tables(results: Path) -> dict[str, Sequence[Table]]:
    """Build all tables, by the names of their places in the documents."""
    paper, ours = read_results(results)
    # What is in the tables of the small trainings is not listed again.
    others = read_csv(results / "measured.csv")
    transfer = read_transfer_results(results)
    return {
        "networks": [build_networks_table()],
        "backbones": [build_backbones_table(found)] if (found := read_json(results, "backbones")) else [],
        "paper": [*build_paper_tables(paper, ours), *build_paper_transfer_tables(paper, transfer)],
        "others": [build_measured_table(paper, others)],
        "mini": build_mini_tables(results, paper),
        "mini caltech": build_mini_caltech_tables(results),
        "mini timm": build_mini_timm_tables(results),
        "hours": build_hours_table(results),
        "shapes": build_shapes_table(results),
        "summary": build_summary(results),
        "speed of data": build_data_tables(results),
        "speed of testing": build_testing_tables(results),
        "speed of training": build_training_tables(results),
        "speed of timm's networks": build_timm_tables(results),
        "speed of layers": build_layer_tables(results),
        "speed on a GPU": build_gpu_tables(results / "gpu"),
        "speed of transfer": build_transfer_tables(results),
        "transfer": [*build_measured_tables(paper, transfer), *build_claims_tables(transfer)],
    }


def build_networks_table() -> Table:
    """Build the table of geometry, widths and parameter counts of the networks, with 1000 classes."""
    header = (
        "net", "stride", "map at 224", "map at 180", "smallest image", "fc6 inputs", "parameters", "without SPP",
    )  # fmt: skip
    rows = []
    for name in (*SPECS, *PRESETS):
        # Shapes alone; no weights are drawn.
        with torch.device("meta"):
            net, baseline = build_net(name), build_net(name, "none")
        counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (net, baseline)]
        geometry = net.backbone
        sizes = (geometry.stride, geometry.map_size(224), geometry.map_size(180), geometry.smallest_input)
        inputs = net.num_features * net.pool.bins
        rows.append([name, *sizes, *(f"{number:,}" for number in (inputs, *counts))])
    return "With SPP of 50 bins and 1000 classes", header, rows


def fill_tables(text: str, tables: Mapping[str, Sequence[Table]]) -> str:
    """Put tables in their places in a document, between the marks there.

    Raises:
        UserError: if the document has no marks of a table.
    """
    filled = 0
    for name, members in tables.items():
        begin, end = f"<!-- {name}: written by python benchmarks/tables.py -->", f"<!-- end of {name} -->"
        if begin in text and end in text:
            shown = [format_as(table, "markdown") for table in members] or ["Not measured yet."]
            before, after = text.split(begin, maxsplit=1)[0], text.split(end, maxsplit=1)[1]
            text = before + "\n\n".join([begin, *shown, end]) + after
            filled += 1
    if not filled:
        raise UserError(f"there is no place for a table; put lines such as {begin} and {end} there")
    return text


def main(arguments: Sequence[str]) -> None:
    """Write the tables into the documents."""
    parse_keys(NoOptions, arguments, _USAGE, "python benchmarks/tables.py")
    tables = build_tables(REPOSITORY / "results")
    for path in DOCUMENTS:
        text = fill_tables(path.read_text(), tables)
        with replace_atomically(path) as unfinished:
            unfinished.write_text(text)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
