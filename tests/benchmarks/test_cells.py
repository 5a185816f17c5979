"""The tables of small trainings, on invented rows."""

import csv
import hashlib
import importlib
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from spp_cls.cli.errors import UserError
from spp_cls.evaluation.rows import Row
from tests.benchmarks.test_claims import rows
from tests.conftest import REPOSITORY


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("report.cells")


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("report.mini")


def write_results(folder: Path, found: list[dict[str, str]]) -> None:
    columns = [field.name for field in fields(Row)]
    with (folder / "mini.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="0")
        writer.writeheader()
        writer.writerows(found)


def write_curves(folder: Path, runs: dict[tuple[str, int], list[tuple[float, float]]]) -> None:
    (folder / "curves").mkdir()
    lines = [
        f"zf5,spp,{sizes},{seed},{error},{seconds}\n"
        for (sizes, seed), epochs in runs.items()
        for error, seconds in epochs
    ]
    text = "net,pooling,sizes,seed,val_top1_error,seconds\n" + "".join(lines)
    (folder / "curves/mini.csv").write_text(text)


def test_cells_stand_beside_the_papers(cells: ModuleType) -> None:
    paper = [
        {"table": "2", "row": "ZF-5 (a)", "net": "zf5", "pooling": "none", "sizes": "single", "top1_error": "35.99"},
        {"table": "2", "row": "ZF-5 (b)", "net": "zf5", "pooling": "spp", "sizes": "single", "top1_error": "34.98"},
    ]
    found = rows("none", "single", "crop10", [30.0, 32.0, 34.0])
    found += rows("spp", "single", "crop10", [29.0, 31.0, 32.4])
    _, _, (first, second) = cells.build_cells_table(found, paper, "title")
    assert first == ["ZF-5 (a)", "32.00 ± 2.00", 3, "", "", "35.99", ""]
    # Differences of -1, -1 and -1.6: a half width of 4.3027 * 0.3464 / sqrt(3).
    assert second == ["ZF-5 (b)", "30.80 ± 1.71", 3, "-1.20 [-2.06, -0.34]", "confirmed", "34.98", "-1.01"]


def test_two_results_for_one_cell_are_refused(cells: ModuleType) -> None:
    paper = [{"table": "2", "row": "", "net": "zf5", "pooling": "none", "sizes": "single", "top1_error": "35.99"}]
    found = rows("none", "single", "crop10", [30.0]) + rows("none", "single", "crop10", [9.0], precision="bf16-mixed")
    with pytest.raises(
        UserError, match="zf5 none single has results that differ in more than their seed; leave out the rows"
    ):
        cells.build_cells_table(found, paper, "title")


def test_protocols_side_by_side(cells: ModuleType) -> None:
    found = rows("spp", "single", "crop1", [40.0, 42.0]) + rows("spp", "single", "full1", [39.0])
    title, header, lines = cells.build_protocols_table(found, "title")
    # Of a share of 121 / 300: 100 * sqrt(0.4033 * 0.5967 / 3925) = 0.783.
    assert title == "title (3,925 images: standard error of one result 0.8)"
    assert header[-2:] == ("crop1", "full1")
    # The number of seeds differs, so these are two lines.
    assert [line[-3:] for line in lines] == [["2", "41.00 ± 1.41", ""], ["1", "", "39.00"]]


def test_an_ensemble_beside_its_networks(cells: ModuleType) -> None:
    digests = {"a": "0a", "b": "0b"}
    zf5, overfeat7 = (
        rows("spp", "single", "crop10", [error], net=net, checkpoint=path, checkpoint_sha256=digests[path])[0]
        for net, path, error in (("zf5", "a", 30.0), ("overfeat7", "b", 37.0))
    )
    joined = {"networks": "2", "net": "zf5 + overfeat7", "checkpoint": "a + b"}
    joined["checkpoint_sha256"] = hashlib.sha256(b"0a0b").hexdigest()  # as eval.py joins them
    (ensemble,) = rows("spp", "single", "crop10", [29.0], **joined)
    _, _, (line,) = cells.build_ensembles_table([zf5, overfeat7, ensemble], "title")
    assert line == ["zf5 + overfeat7", "spp", "single", "0", "crop10", "29.00", "30.00 37.00", "4.50"]
    # Of networks that were not tested like this, or have gone on since, its own error alone.
    for others in ([zf5], [zf5, {**overfeat7, "checkpoint_sha256": "0c"}], [zf5, {**overfeat7, "protocol": "full1"}]):
        _, _, (line,) = cells.build_ensembles_table([*others, ensemble], "title")
        assert line[-3:] == ["29.00", "", ""]
    # An ensemble is no run of its own in the other tables.
    assert len(cells.build_protocols_table([zf5, overfeat7, ensemble], "title")[2]) == 2


def test_rows_of_other_networks_are_no_cells(mini: ModuleType, tmp_path: Path) -> None:
    found = [
        *rows("spp", "alternate", "crop1", [32.0]),
        *rows("spp", "single", "crop1", [31.0]),
        *rows("spp", "single", "crop1", [20.0], width="1"),
        *rows("spp", "single", "crop1", [21.0], input_size="224"),
        *rows("spp", "single", "crop1", [22.0], levels="4 3 2 1"),
        *rows("spp", "single", "warp1", [23.0]),
        *rows("spp", "single", "crop1", [24.0], net="timm/resnet10t"),
        *rows("none", "single", "crop1", [33.0], levels="6"),
    ]
    write_results(tmp_path, found)
    # In the paper's order.
    assert [row["top1_error"] for row in mini.read_imagenette(tmp_path)] == ["33.0", "31.0", "32.0"]


def test_a_run_that_was_tested_again_counts_once(mini: ModuleType, tmp_path: Path) -> None:
    early = rows("spp", "single", "full1", [70.0], checkpoint_sha256="of an earlier epoch")
    late = rows("spp", "single", "full1", [39.0, 40.1])
    crop1 = rows("spp", "single", "crop1", [40.0])
    write_results(tmp_path, [*early, *crop1, *late])
    # The place of a row is that of the first test of its run.
    assert [row["top1_error"] for row in mini.read_imagenette(tmp_path)] == ["39.0", "40.0", "40.1"]


def test_hours_are_those_of_the_median_epoch_and_test(mini: ModuleType, tmp_path: Path) -> None:
    # The second run stood still in its second epoch, and so did the third test. Protocols of one test share its time.
    write_curves(tmp_path, {("single", 0): [(0, 1800)] * 2, ("single", 1): [(0, 3600), (0, 90000), (0, 3600)]})
    found = [
        {**row, "checkpoint_sha256": str(number), "seconds": seconds}
        for number, seconds in enumerate(("360", "360", "9999"))
        for protocol in ("crop1", "crop10")
        for row in rows("spp", "single", protocol, [30.0])
    ]
    found += rows("spp", "single", "full1", [30.0], seconds="720")
    write_results(tmp_path, found)
    ((_, _, lines),) = mini.build_hours_table(tmp_path)
    assert lines == [["Imagenette", "zf5", 2, "4.0", 4, "0.5"], ["all", "", "", "4.0", "", "0.5"]]


def test_best_and_last_epochs(mini: ModuleType, tmp_path: Path) -> None:
    write_results(tmp_path, rows("spp", "single", "crop10", [30.0]))
    epochs = {("alternate", 0): [50, 30, 34], ("alternate", 1): [50, 33, 32], ("single", 0): [40, 31]}
    write_curves(tmp_path, {run: [(error, 1) for error in errors] for run, errors in epochs.items()})
    *_, (_, _, lines) = mini.build_mini_tables(tmp_path, [])
    assert lines == [
        ["spp", "single", 1, "31.00", "31.00", "0.00"],
        ["spp", "alternate", 2, "31.00", "33.00", "2.00"],
    ]
