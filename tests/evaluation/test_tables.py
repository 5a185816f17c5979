"""The paper's tables, with our results beside them."""

from dataclasses import fields
from pathlib import Path

import pytest

from spp_cls.cli.errors import UserError
from spp_cls.evaluation.rows import Row, append_csv, read_csv
from spp_cls.evaluation.tables import (
    build_measured_table,
    build_paper_tables,
    draw_chart,
    read_results,
)
from tests.cli.test_command import KINDS, TABLE_2
from tests.conftest import REPOSITORY, Tool, error_of, write_image_folder

RESULTS = REPOSITORY / "results"


def row(**values: object) -> Row:
    """An invented row, for tests alone."""
    numbers = {field.name: 0 for field in fields(Row)}
    given = {
        "stored_side": None,
        "networks": 1,
        "width": "1",
        "input_size": 224,
        "net": "zf5",
        "pooling": "spp",
        "levels": "6 3 2 1",
        "sizes": "alternate",
        "protocol": "crop10",
    }
    return Row(**{**numbers, **given, "data": "imagenet", "images": 50_000, **values})  # type: ignore[arg-type]


def test_the_papers_errors() -> None:
    paper, _ = read_results(RESULTS)
    by_cell = {(r["net"], r["pooling"], r["sizes"]): r for r in paper if r["table"] == "2"}
    assert len(by_cell) == 12
    for net, errors in TABLE_2.items():
        for (pooling, sizes), error in zip(KINDS.values(), errors, strict=True):
            found = by_cell[net, pooling, sizes]
            assert f"{found['top1_error']} {found['top5_error']}" == error
    # Table 3 as the paper prints it: 1 crop and 1 full of each network.
    table_3 = [r["top1_error"] for r in paper if r["table"] == "3"]
    assert table_3 == ["38.01", "37.55", "37.57", "37.07", "33.18", "32.72", "32.57", "31.25"]
    (best,) = [r for r in paper if r["protocol"] == "map98"]
    assert (best["views"], best["top1_error"], best["top5_error"]) == ("98", "27.86", "9.14")


def test_only_the_same_measurement_stands_beside_the_papers(tmp_path: Path) -> None:
    (tmp_path / "paper.csv").write_bytes((RESULTS / "paper.csv").read_bytes())
    others = [
        row(data="imagenette"),
        row(images=3925, data_digest="part"),
        row(sizes="single", protocol="map10"),
        row(levels="4 3 2 1"),
        row(networks=3),
        row(width="0.5"),
        row(input_size=112),
    ]
    append_csv(others, tmp_path / "ours.csv")
    paper, ours = read_results(tmp_path)
    assert len(ours) == 7
    for _, _, rows in build_paper_tables(paper, ours):
        assert all(cells[3] == cells[4] == cells[6] == cells[7] == "" for cells in rows)
    append_csv([row(top1_error=34.2, top5_error=13.9)], tmp_path / "ours.csv")
    paper, ours = read_results(tmp_path)
    rows = [cells for _, _, table in build_paper_tables(paper, ours) for cells in table if cells[3]]
    assert rows == [["ZF-5 (c) SPP multi-size", "10", "34.60", "34.20", "-0.40", "13.64", "13.90", "+0.26"]]
    # What no cell of the paper takes is listed, of ImageNet too; an ensemble says that it is one.
    listed = [cells[:4] for cells in build_measured_table(paper, ours)[2]]
    assert listed == [
        ["imagenette", "1", "zf5", "1"], ["imagenet", "1", "zf5", "1"], ["imagenet", "1", "zf5", "1"],
        ["imagenet", "1", "zf5", "1"], ["imagenet", "3", "zf5", "1"], ["imagenet", "1", "zf5", "0.5"],
        ["imagenet", "1", "zf5", "1"],
    ]  # fmt: skip


def test_the_seeds_of_a_cell_are_one_result(tmp_path: Path) -> None:
    (tmp_path / "paper.csv").write_bytes((RESULTS / "paper.csv").read_bytes())
    seeds = [row(seed=str(seed), top1_error=error) for seed, error in enumerate((34.0, 35.0, 39.0))]
    half = [row(seed=str(seed), top1_error=50.0, precision="bf16-mixed") for seed in range(2)]
    append_csv([*half, *seeds], tmp_path / "ours.csv")
    paper, ours = read_results(tmp_path)
    (cells,) = [cells for _, _, table in build_paper_tables(paper, ours) for cells in table if cells[3]]
    # The squares of -2, -1 and 3 are 14; the deviation is the square root of 7.
    assert cells[2:5] == ["34.60", "36.00 ± 2.65", "+1.40"]
    # Those in another precision came before, and are listed.
    (listed,) = build_measured_table(paper, ours)[2]
    assert listed[9:12] == ["50.00 ± 0.00", "0.00 ± 0.00", "2"]


def test_other_data_has_one_line_for_all_seeds(tmp_path: Path) -> None:
    # Their best checkpoints are of different epochs.
    runs = [
        row(data="imagenette", seed=seed, top1_error=30.0 + 3 * number, epochs=19 - number)
        for number, seed in enumerate("01")
    ]
    append_csv([*runs, row(data="imagenette", seed="2", net="overfeat7", top1_error=20.0)], tmp_path / "ours.csv")
    _, header, cells = build_measured_table([], read_csv(tmp_path / "ours.csv"))
    first, second = (dict(zip(header, line, strict=True)) for line in cells)
    # The deviation of two values is their difference by the square root of 2.
    assert (first["net"], first["top-1 error"], first["seeds"], first["best epoch"]) == (
        "zf5",
        "31.50 ± 2.12",
        "2",
        "19 18",
    )
    assert (second["net"], second["top-1 error"], second["seeds"]) == ("overfeat7", "20.00", "1")


def test_networks_that_differ_in_parameters_have_lines_of_their_own(tmp_path: Path) -> None:
    wide, narrow = (row(data="imagenette", top1_error=error, parameters=count) for error, count in ((15, 40), (95, 4)))
    append_csv([wide, narrow], tmp_path / "ours.csv")
    _, header, cells = build_measured_table([], read_csv(tmp_path / "ours.csv"))
    assert [line[header.index("top-1 error")] for line in cells] == ["15.00", "95.00"]


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    draw_chart(*read_results(RESULTS), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments", [("spp_cls.evaluation.tables", "chart=no/chart.png"), ("spp_cls.data.show", "out=no/a.png")]
)
def test_a_picture_in_a_folder_that_is_not_there(arguments: tuple[str, str], tmp_path: Path, tool: Tool) -> None:
    write_image_folder(tmp_path / "images", train=1, val=1)
    (tmp_path / "results").symlink_to(RESULTS)
    more = ("data=imagefolder", "data.root=images", "images=2") if "show" in arguments[0] else ()
    key, path = arguments[1].split("=")
    assert error_of(tool(*arguments, *more)) == (
        f"error: cannot write {path}: No such file or directory; choose another file with {key}=PATH"
    )


def test_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ours.csv").write_text("protocol,error\ncrop1,3\n")
    with pytest.raises(UserError, match="other columns"):
        append_csv([row()], tmp_path / "ours.csv")
    with pytest.raises(UserError, match="other columns"):
        read_csv(tmp_path / "ours.csv")
    assert (tmp_path / "ours.csv").read_text() == "protocol,error\ncrop1,3\n"


def test_the_command(tmp_path: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "spp_cls.evaluation.tables"
    result = tool(name, f"results={RESULTS}", "format=csv", "chart=errors.png")
    assert "Convnet*-5 (a) no SPP,10,34.93" in result.stdout
    assert (tmp_path / "errors.png").exists()
    assert "chart" in tool(name, "--help").stdout
    assert "there is no paper.csv" in error_of(tool(name, f"results={tmp_path}"))
    assert "format is terminal or markdown or csv" in error_of(tool(name, "format=html"))
    assert "there is no key from" in error_of(tool(name, "from=x"))
    assert "results is not key=value" in error_of(tool(name, "results"))
