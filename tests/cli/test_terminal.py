"""Tables as text."""

import csv

import pytest

from spp_cls import UserError
from spp_cls.cli.terminal import format_as, format_table


def test_columns_of_numbers_stand_to_the_right_and_names_stay_as_they_are() -> None:
    table = format_table(("class", "error", "images"), [("1e3", 34.981, 5), ("rose", 9.1, 12)])
    assert [line.split() for line in table.splitlines()] == [
        ["class", "error", "images"],
        ["-------", "-------", "--------"],
        ["1e3", "34.98", "5"],
        ["rose", "9.10", "12"],
    ]
    rows = table.splitlines()[2:]
    assert [row.index(name) for row, name in zip(rows, ("1e3", "rose"), strict=True)] == [0, 0]
    assert len({len(row) for row in rows}) == 1
    assert format_table(("a", "b"), []).splitlines()[0].split() == ["a", "b"]


def test_forms() -> None:
    table = ("T", ("net", "error", "difference"), [["zf5", "34.98", "+0.26"], ["overfeat7", "9.10", ""]])
    assert format_as(table, "terminal").startswith("T\nnet ")
    lines = format_as(table, "markdown").splitlines()
    assert lines[0] == "**T**"
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["net", "error", "difference"]
    # Markdown's signs of a column to the left, and of columns to the right.
    assert [(cell[0], cell[-1]) for cell in lines[3].split("|")[1:-1]] == [(":", "-"), ("-", ":"), ("-", ":")]
    assert [cell.strip() for cell in lines[5].split("|")[1:-1]] == ["overfeat7", "9.10", ""]
    assert list(csv.reader(format_as(table, "csv").splitlines()[1:]))[2] == ["overfeat7", "9.10", ""]
    with pytest.raises(UserError, match="terminal, markdown or csv"):
        format_as(table, "html")
