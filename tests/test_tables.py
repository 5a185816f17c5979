"""The paper's tables, with ours beside them."""

import csv
from dataclasses import fields
from pathlib import Path

import pytest

from spp_cls.errors import UserError
from spp_cls.options import options
from spp_cls.rows import Row, append_csv, read_csv
from spp_cls.tables import (
    draw_chart,
    main,
    measured_table,
    paper_tables,
    read_results,
    with_parts,
)
from spp_cls.text_tables import as_text
from tests.conftest import REPOSITORY
from tests.test_command import KINDS, TABLE_2

RESULTS = REPOSITORY / "results"


def row(**values: object) -> Row:
    """An invented row, for tests alone."""
    numbers = {field.name: 0 for field in fields(Row)}
    given = {"net": "zf5", "pooling": "spp", "levels": "6 3 2 1", "sizes": "alternate", "protocol": "crop10"}
    return Row(**{**numbers, **given, "data": "imagenet", "images": 50_000, **values})  # type: ignore[arg-type]


def test_the_papers_figures() -> None:
    paper, _ = read_results(RESULTS)
    by_cell = {(r["net"], r["pooling"], r["sizes"]): r for r in paper if r["table"] == "2"}
    assert len(by_cell) == 12
    for net, figures in TABLE_2.items():
        for (pooling, sizes), figure in zip(KINDS.values(), figures, strict=True):
            found = by_cell[net, pooling, sizes]
            assert f"{found['top1_error']} {found['top5_error']}" == figure
    # Table 3 as the paper prints it: 1 crop and 1 full of each network.
    table_3 = [r["top1_error"] for r in paper if r["table"] == "3"]
    assert table_3 == ["38.01", "37.55", "37.57", "37.07", "33.18", "32.72", "32.57", "31.25"]
    (best,) = [r for r in paper if r["protocol"] == "map98"]
    assert (best["views"], best["top1_error"], best["top5_error"]) == ("98", "27.86", "9.14")


def test_only_the_same_measurement_stands_beside_the_papers(tmp_path: Path) -> None:
    (tmp_path / "paper.csv").write_bytes((RESULTS / "paper.csv").read_bytes())
    others = [
        row(data="imagenette"),
        row(images=3925),
        row(sizes="single", protocol="map10"),
        row(levels="4 3 2 1"),
    ]
    append_csv(others, tmp_path / "ours.csv")
    paper, ours = read_results(tmp_path)
    assert len(ours) == 4
    for _, _, rows in paper_tables(paper, ours):
        assert all(cells[3] == cells[4] == cells[6] == cells[7] == "" for cells in rows)
    append_csv([row(top1_error=34.2, top5_error=13.9)], tmp_path / "ours.csv")
    paper, ours = read_results(tmp_path)
    rows = [cells for _, _, table in paper_tables(paper, ours) for cells in table if cells[3]]
    assert rows == [["ZF-5 (c) SPP multi-size", "10", "34.60", "34.20", "-0.40", "13.64", "13.90", "+0.26"]]
    assert [cells[0] for cells in measured_table(ours)[2]] == ["imagenette"]


def test_forms() -> None:
    table = ("T", ("net", "error"), [["zf5", "34.98"], ["overfeat7", "9.10"]])
    assert as_text(table, "terminal") == "T\nnet        error\n---------  -----\nzf5        34.98\noverfeat7   9.10"
    assert as_text(table, "markdown").endswith("| net | error |\n| --- | ---: |\n| zf5 | 34.98 |\n| overfeat7 | 9.10 |")
    assert list(csv.reader(as_text(table, "csv").splitlines()[1:]))[2] == ["overfeat7", "9.10"]
    with pytest.raises(UserError, match="terminal, markdown or csv"):
        as_text(table, "html")


def test_the_readme_shows_the_results() -> None:
    for path in ("README.md", "benchmarks/README.md"):
        readme = (REPOSITORY / path).read_text()
        assert with_parts(readme, RESULTS) == readme


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    draw_chart(*read_results(RESULTS), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ours.csv").write_text("protocol,error\ncrop1,3\n")
    with pytest.raises(UserError, match="other columns"):
        append_csv([row()], tmp_path / "ours.csv")
    with pytest.raises(UserError, match="other columns"):
        read_csv(tmp_path / "ours.csv")
    assert (tmp_path / "ours.csv").read_text() == "protocol,error\ncrop1,3\n"


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"there is no paper\.csv"):
        main([f"results={tmp_path}"])
    with pytest.raises(UserError, match="from=x is none of the keys"):
        options({"out": None}, ["from=x"])
    main(["format=csv"])
    assert "Convnet*-5 (a) no SPP,10,34.93" in capsys.readouterr().out
