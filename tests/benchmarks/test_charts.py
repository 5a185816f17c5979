"""The charts of the documents, and the collection of learning curves."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.test_claims import rows
from tests.conftest import REPOSITORY, Command, Tool, error_of


@pytest.fixture
def charts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("charts")


def test_errors_are_points_with_their_spread(charts: ModuleType) -> None:
    found = rows("spp", "single", "crop1", [30.0, 32.0]) + rows("none", "single", "crop1", [33.0])
    (panel,) = charts.draw_errors(found).axes
    points = {container.get_label(): container for container in panel.containers}
    line, _, (bar,) = points["SPP, single-size"].lines
    (mean,) = line.get_ydata()
    low, high = bar.get_segments()[0][:, 1]
    # Standard deviation of 30 and 32: the square root of 2.
    assert (mean, low, high) == (31.0, pytest.approx(31 - 2**0.5), pytest.approx(31 + 2**0.5))
    assert points["no SPP"].lines[0].get_ydata()[0] == 33.0


def test_curves_are_means_over_seeds(charts: ModuleType) -> None:
    given = {"net": "zf5", "pooling": "spp", "sizes": "alternate"}
    found = [
        {**given, "seed": str(seed), "epoch": str(epoch), "val_top1_error": str(error)}
        for seed, errors in enumerate([(50, 40), (60, 30)])
        for epoch, error in enumerate(errors)
    ]
    (panel,) = charts.draw_curves(found).axes
    (line,) = panel.lines
    assert (line.get_label(), list(line.get_ydata())) == ("SPP, multi-size", [55.0, 35.0])


def test_speed_is_drawn_from_the_files(charts: ModuleType) -> None:
    axes = charts.draw_speed(REPOSITORY / "results").axes[0]
    assert axes.get_yticklabels()[0].get_text() == "training step, ZF-5 / plain PyTorch"
    steps = json.loads((REPOSITORY / "results/train_step.json").read_text())["steps"]
    zf5 = {"net": "zf5", "size": 224, "precision": "32-true"}
    (seconds,) = (step["seconds"] for step in steps if zf5.items() <= step.items())
    assert axes.lines[0].get_xdata()[0] == seconds["plain"] / seconds["ours"]


def test_several_networks_have_a_panel_each_with_one_scale(charts: ModuleType) -> None:
    found = [
        row
        for net, error in (("overfeat7", 25.0), ("zf5", 30.0))
        for row in rows("spp", "single", "map10", [error, error + 2], net=net)
    ]
    panels = charts.draw_errors(found).axes
    assert [panel.get_title() for panel in panels] == ["ZF-5", "Overfeat-7"]
    assert [panel.containers[0].lines[0].get_ydata()[0] for panel in panels] == [31.0, 26.0]
    assert panels[0].get_ylim() == panels[1].get_ylim()


def test_the_same_results_give_the_same_files(
    charts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for name in ("once", "again"):
        monkeypatch.setattr(charts, "IMAGES", tmp_path / name)
        charts.main([])
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert files[0] == files[1]
    assert {"speed.svg", "errors.svg", "curves.svg"} == set(files[0])


def test_the_charts_of_the_documents_are_of_the_results_that_are_there(charts: ModuleType) -> None:
    drawn = {path.stem: path.read_text() for path in (REPOSITORY / "docs/images").glob("*.svg")}
    assert set(drawn) == set(charts.SOURCES)
    for name, text in drawn.items():
        assert charts.identify_sources(name) in text, "draw it again: python benchmarks/charts.py"


def test_collected_curves_are_those_of_the_runs(
    image_folder: Path, tmp_path: Path, command: Command, tool: Tool, charts: ModuleType
) -> None:
    assert "there is no run with csv/metrics.csv below runs" in error_of(tool("curves", "runs=runs", "out=a.csv"))
    keys = ("data=imagefolder", "data.root=images", "data.batch_size=8", "data.num_workers=0", "model=zf5_tiny")
    small = (
        "model.input_size=64",
        "model.hidden=[16,16]",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "seed=3",
        "logger=[csv]",
    )
    trained = command("train.py", *keys, *small, "name=a")
    assert trained.returncode == 0, trained.stderr
    assert tool("curves", "runs=runs", "out=a.csv").returncode == 0
    first, second = charts._read(tmp_path / "a.csv")
    assert (first["net"], first["seed"], first["epoch"], second["epoch"]) == ("zf5", "3", "0", "1")
    lowest = min(float(row["val_top1_error"]) for row in (first, second))
    assert f"Lowest validation top-1 error: {lowest:.2f} %" in trained.stdout
