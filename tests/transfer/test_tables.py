"""The paper's Tables 6 to 8, our rows beside them, and the verdicts on its claims."""

import os
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from spp_cls.cli.errors import UserError
from spp_cls.data.sources.files import ImageFiles
from spp_cls.evaluation.tables import read_paper, read_results
from spp_cls.transfer.claims import build_claims_tables
from spp_cls.transfer.datasets import Split, TransferData, make_targets
from spp_cls.transfer.experiment import DrawResult, measure
from spp_cls.transfer.features.layers import Feature
from spp_cls.transfer.rows import TransferRow, append_rows, write_predictions
from spp_cls.transfer.tables import build_measured_tables, build_paper_tables, read_transfer_results
from tests.conftest import REPOSITORY, Tool, error_of

RESULTS = REPOSITORY / "results"

# Tables 6 and 7 as the paper prints them, without what it leaves out.
TABLE_6 = {
    ("zf5", "none", "crop", "224"): "59.96 66.34 69.14 74.86 75.90",
    ("zf5", "spp", "crop", "224"): "57.28 65.43 68.76 75.55 76.45",
    ("zf5", "spp", "full", "224"): "70.82 77.32 78.39",
    ("zf5", "spp", "full", "392"): "71.67 78.78 80.10",
    ("overfeat7", "spp", "full", "364"): "76.09 81.58 82.44",
}
TABLE_7 = {
    ("zf5", "none", "crop", "224"): "80.12 84.40 87.98 87.86 85.30",
    ("zf5", "spp", "crop", "224"): "81.03 83.76 87.60 89.47 88.54 86.10",
    ("zf5", "spp", "full", "224"): "89.46 91.44 89.50 87.08",
    ("overfeat7", "spp", "full", "224"): "91.46 93.42 91.83 90.00",
    ("zf5", "spp", "warp", "224"): "89.91",
}


HINTS = get_type_hints(TransferRow)


def make_row(**values: Any) -> TransferRow:
    """An invented row, for tests alone."""
    empty = {name: {int: 0, float: 0.0, str: ""}.get(hint) for name, hint in HINTS.items()}
    given = {
        "net": "zf5",
        "pooling": "spp",
        "levels": "6 3 2 1",
        "sizes": "alternate",
        "width": 1.0,
        "epochs": 70,
        "input_size": 224,
    }
    place = {"data": "caltech101", "layer": "pool", "view": "full", "side": "224", "is_side_chosen": False}
    place |= {"draws": 10, "train_images": 3060, "test_images": 2995}
    if values.get("data") == "voc2007":
        place |= {"draws": 1, "train_images": 5011, "test_images": 4952}
    return TransferRow(**{**empty, **given, **place, "accuracy": 91.0, "by_draw": "90.0 92.0", **values})  # type: ignore[arg-type]


def write_results(folder: Path, *rows: TransferRow) -> Path:
    (folder / "paper.csv").write_bytes((RESULTS / "paper.csv").read_bytes())
    append_rows(rows, folder / "transfer.csv")
    return folder


@pytest.mark.parametrize(("number", "expected"), [("6", TABLE_6), ("7", TABLE_7)])
def test_the_papers_scores(number: str, expected: dict[tuple[str, ...], str]) -> None:
    found: dict[tuple[str, ...], list[str]] = {}
    for row in read_paper(RESULTS):
        if row["table"] == number:
            assert row["data"] == {"6": "voc2007", "7": "caltech101"}[number]
            found.setdefault((row["net"], row["pooling"], row["view"], row["side"]), []).append(row["score"])
    assert {place: " ".join(scores) for place, scores in found.items()} == expected


def test_only_the_same_measurement_stands_beside_the_papers(tmp_path: Path) -> None:
    others = [
        make_row(width=0.25), make_row(sizes="single"), make_row(epochs=0), make_row(is_side_chosen=True),
        make_row(side="225"), make_row(data="voc2007", accuracy=None, map_11=50.0), make_row(input_size=112),
        make_row(draws=1), make_row(train_images=510), make_row(test_images=102), make_row(stored_side=223),
        make_row(data="voc2007", layer="hidden2", accuracy=None, map_11=50.0, train_images=100),
    ]  # fmt: skip
    folder = write_results(tmp_path, *others)
    paper, ours = read_paper(folder), read_transfer_results(folder)
    assert not any(cells[3] for _, _, rows in build_paper_tables(paper, ours) for cells in rows)
    append_rows(
        [make_row(), make_row(data="voc2007", layer="hidden2", accuracy=None, map_11=78.0)], tmp_path / "transfer2.csv"
    )
    tables = build_paper_tables(paper, read_transfer_results(folder))
    rows = [cells for _, _, table in tables for cells in table if cells[3]]
    assert rows == [
        ["(c) SPP ZF-5, full 224: fc7", "voc2007", "78.39", "78.00", "-0.39"],
        ["(c) SPP ZF-5, full 224: SPP pool5", "caltech101", "91.44", "91.00", "-0.44"],
    ]
    # Rows of eval.py are not looked for in these files.
    assert read_results(folder)[1] == []


def test_narrow_networks_have_the_papers_score_in_a_table_of_their_own(tmp_path: Path) -> None:
    folder = write_results(
        tmp_path,
        make_row(width=0.5, input_size=112, side="112", accuracy=40.0),
        make_row(width=0.5, input_size=112, side="128", accuracy=41.0, accuracy_std=0.5),
        make_row(width=0.5, input_size=112, side="128", accuracy=42.0, is_side_chosen=True, validation=1.0),
        make_row(width=0.5, input_size=112, side="112", view="warp", accuracy=43.0),
        make_row(net="mine", accuracy=44.0),
        make_row(data="voc2007", layer="hidden2", side="392", accuracy=None, map_11=50.0),
    )
    tables = build_measured_tables(read_paper(folder), read_transfer_results(folder))
    net = ["spp", "0.5", "alternate", "70", "10"]
    # Half the side for a network of half the crops.
    assert [(title.split(":")[0], header[6:], rows) for title, header, rows in tables] == [
        (
            "caltech101",
            (
                "C",
                "layer",
                "full 112",
                "full 128",
                "full 224",
                "full chosen",
                "warp 112",
                "paper, full 224",
                "paper, warp 224",
            ),
            [
                ["zf5", *net, "", "pool", "40.00", "41.00 ± 0.50", "", "", "43.00", "91.44", "89.91"],
                ["zf5", *net, "chosen", "pool", "", "", "", "42.00", "", "", ""],
                ["mine", "spp", "1.0", "alternate", "70", "10", "", "pool", "", "", "44.00", "", "", "", ""],
            ],
        ),
        (
            "voc2007",
            ("C", "layer", "full 392", "paper, full 392"),
            [["zf5", "spp", "1.0", "alternate", "70", "1", "", "hidden2", "50.00", "80.10"]],
        ),
    ]


def test_seeds_and_solvers_have_lines_of_their_own(tmp_path: Path) -> None:
    rows = [
        make_row(network_sha256=digest, svm=svm, accuracy=accuracy)
        for digest, svm, accuracy in (("a", "libsvm", 40.0), ("b", "libsvm", 41.0), ("b", "liblinear", 42.0))
    ]
    folder = write_results(tmp_path, *rows)
    ((_, header, lines),) = build_measured_tables(read_paper(folder), read_transfer_results(folder))
    assert [line[header.index("full 224")] for line in lines] == ["40.00", "41.00", "42.00"]
    assert all(len(line) == len(header) for line in lines)


def test_widths_have_columns_of_their_own(tmp_path: Path) -> None:
    values = [{"width": width, "view": view} for width in (1.0, 0.25) for view in ("full", "crop")]
    folder = write_results(tmp_path, *(make_row(**each) for each in values))
    ((_, header, _),) = build_claims_tables(read_transfer_results(folder))
    assert header[1:] == ("zf5, alternate", "zf5 x 0.25, alternate")


def test_the_verdicts(tmp_path: Path) -> None:
    folder = write_results(
        tmp_path,
        make_row(by_draw="90.0 92.0 91.0"),
        make_row(view="crop", by_draw="89.0 91.5 90.0"),
        make_row(view="warp", by_draw="90.5 91.0 90.0"),
        make_row(layer="level:6", by_draw="91.0 93.0 92.0"),
        # Of another network: paired with nothing.
        make_row(network_sha256="other", view="crop", by_draw="99.0 99.0 99.0"),
        # Has no SPP layer.
        make_row(pooling="none", by_draw="90.0 92.0 91.0"),
        make_row(pooling="none", layer="hidden1", by_draw="91.0 93.0 92.0"),
        make_row(epochs=0, by_draw="1.0 2.0 3.0"),
        make_row(epochs=0, view="crop", by_draw="2.0 3.0 4.0"),
        make_row(epochs=0, side="256", by_draw="1.0 2.0 3.0"),
        make_row(epochs=0, side="256", view="crop", by_draw="0.5 1.5 1.0"),
    )
    (_, header, rows), (_, layers, best) = build_claims_tables(read_transfer_results(folder))
    assert header[1:] == ("zf5, alternate", "zf5 (none), alternate", "zf5, untrained")
    # The mean over both sides: (-1 + 0.5) / 2, (-1 + 0.5) / 2, (-1 + 2) / 2.
    assert rows == [
        ["full views beat crops", "+0.83, 3 of 3: confirmed", "", "+0.00, 1 of 3: not resolved"],
        ["full views beat warped ones", "+0.50, 2 of 3: not resolved", "", ""],
        ["all levels beat the 6 x 6 level", "-1.00, 0 of 3: refuted", "", ""],
    ]
    assert layers == ("", "pool", "level:6", "hidden1")
    assert best == [["zf5, alternate", 0, 3, ""], ["zf5 (none), alternate", 0, "", 3], ["zf5, untrained", "", "", ""]]


@pytest.mark.parametrize(
    "other",
    [
        {"C": "0.0001"},
        {"validation": 1.0},
        {"costs": "1 10"},
        {"train_images": 510},
        {"test_images": 9},
        {"seed": 1},
        {"precision": "bf16-mixed"},
    ],
)
def test_only_rows_of_one_setting_are_compared(other: dict[str, Any], tmp_path: Path) -> None:
    given = {"C": "1", "train_images": 3060}
    folder = write_results(
        tmp_path,
        make_row(**given, by_draw="60.0 61.0"),
        make_row(**given, layer="hidden1", by_draw="50.0 51.0"),
        make_row(**{**given, **other}, accuracy=10.0, by_draw="10.0 11.0"),
    )
    rows = read_transfer_results(folder)
    (_, _, ((_, verdict),)), (_, layers, ((_, *best),)) = build_claims_tables(rows)
    assert verdict == "+10.00, 2 of 2: confirmed"
    assert (layers, best) == (("", "pool", "hidden1"), [2, 0])
    ((_, header, lines),) = build_measured_tables(read_paper(folder), rows)
    assert [line[header.index("full 224")] for line in lines] == ["91.00", "91.00", "10.00"]


@pytest.mark.parametrize("costs", ["", "0.1 1"])
def test_layers_that_chose_other_costs_are_compared(costs: str, tmp_path: Path) -> None:
    chosen = {"costs": costs, "validation": 50.0}
    rows = [make_row(**chosen, C="1 0.1"), make_row(**chosen, C="0.1", layer="hidden1", by_draw="80.0 82.0")]
    ((_, _, ((_, verdict),)), _) = build_claims_tables(read_transfer_results(write_results(tmp_path, *rows)))
    assert verdict == "+10.00, 2 of 2: confirmed"


def test_rows_without_a_seed_are_read_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "transfer.csv"
    path.write_bytes((RESULTS / "transfer_zf5_nospp-0.csv").read_bytes())
    append_rows([make_row(seed=3, costs="1")], path)
    rows = read_transfer_results(tmp_path)
    assert {(row["seed"], row["costs"]) for row in rows[:-1]} == {("", "")}
    assert (rows[-1]["seed"], rows[-1]["costs"]) == ("3", "1")


def test_one_draw_resolves_nothing(tmp_path: Path) -> None:
    rows = [
        make_row(data="voc2007", accuracy=None, map_11=value, view=view, by_draw=f"{value}")
        for view, value in (("full", 60.0), ("crop", 50.0))
    ]
    ((_, _, ((_, verdict),)),) = build_claims_tables(read_transfer_results(write_results(tmp_path, *rows)))
    assert verdict == "+10.00, 1 of 1: not resolved"


def test_other_draws_are_not_compared(tmp_path: Path) -> None:
    folder = write_results(tmp_path, make_row(), make_row(view="crop", by_draw="89.0"), make_row(layer="hidden1"))
    tables = build_claims_tables(read_transfer_results(folder))
    ((_, header, ((claim, *verdicts),)), _) = tables
    assert (len(header), claim) == (3, "the SPP layer beats the first hidden layer")
    assert verdicts == ["+0.00, 0 of 2: not resolved", ""]


def test_draws_that_are_no_numbers(tmp_path: Path) -> None:
    folder = write_results(tmp_path, make_row(by_draw="90.0 x"))
    with pytest.raises(UserError, match=r"zf5, pool, full 224 is damaged \(by_draw: .*; remove that line"):
        build_claims_tables(read_transfer_results(folder))


def test_the_command(tmp_path: Path, tool: Tool) -> None:
    result = tool("spp_cls.transfer.tables", f"results={RESULTS}", "format=csv")
    assert '"SPP ZF-5, warp 224: SPP pool5",caltech101,89.91' in result.stdout
    assert "there is no paper.csv" in error_of(tool("spp_cls.transfer.tables", "results=."))
    (tmp_path / "paper.csv").write_text("a\n")
    (tmp_path / "transfer.csv").write_text("a\n")
    with pytest.raises(UserError, match=r"has other columns than results of spp_cls.transfer"):
        read_transfer_results(tmp_path)


def test_four_processes_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "transfer.csv"
    path.touch()
    children = []
    for number in range(4):
        if (child := os.fork()) == 0:
            for _ in range(5):
                append_rows([make_row(data=f"data{number}")], path)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    names = [each["data"] for each in read_transfer_results(tmp_path)]
    assert sorted(names) == sorted(f"data{number}" for number in range(4) for _ in range(5))


@pytest.mark.parametrize(("column", "cell"), [("accuracy", "x"), ("is_side_chosen", "maybe"), ("draws", "")])
def test_a_damaged_row_is_named(column: str, cell: str, tmp_path: Path) -> None:
    append_rows([make_row(), make_row(**{column: cell})], tmp_path / "transfer.csv")
    with pytest.raises(UserError, match=rf"result 2 of .*transfer\.csv is damaged \({column}\); remove that line"):
        read_transfer_results(tmp_path)


def test_predictions_of_images_whose_names_are_not_text(tmp_path: Path) -> None:
    names = np.array([b"caf\xe9.jpg", b"tea.jpg"])
    source = ImageFiles(tmp_path, names, np.array([0, 1]), ("a", "b"))
    indices = np.arange(2)
    data = TransferData("mine", source, make_targets(source.labels, 2), (Split(indices, indices, indices, indices),))
    scores = np.array([[1, -1], [0.5, -0.5]], np.float32)
    result = DrawResult(Feature("pool", "full", 224), 0, 1.0, None, measure(data, scores, indices), scores)
    write_predictions(data, [result], tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_bytes() == (
        b"layer,view,side,draw,image,label,class1,class2,score1,score2\r\n"
        b"pool,full,224,0,caf\xe9.jpg,a,a,b,1,-1\r\n"
        b"pool,full,224,0,tea.jpg,b,a,b,0.5,-0.5\r\n"
    )
