"""What benchmarks/tables.py writes into the documents."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from spp_cls import UserError
from tests.benchmarks.test_cells import write_results
from tests.benchmarks.test_claims import rows
from tests.conftest import REPOSITORY


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which imports the scripts beside it."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("tables")


def test_the_readmes_are_what_the_program_writes(tables: ModuleType) -> None:
    found = tables.build_tables(REPOSITORY / "results")
    for path in tables.DOCUMENTS:
        assert tables.fill_tables(path.read_text(), found) == path.read_text(), "run python benchmarks/tables.py"
    text = "".join(path.read_text() for path in tables.DOCUMENTS)
    assert all(f"<!-- {name}: written by" in text for name in found)


def test_the_networks(tables: ModuleType) -> None:
    _, header, rows = tables.build_networks_table()
    zf5 = dict(zip(header, rows[0], strict=True))
    # Table 1: 13 x 13 cells of 256 channels, in 50 bins.
    assert (zf5["net"], zf5["map at 224"], zf5["map at 180"], zf5["fc6 inputs"]) == ("zf5", 13, 10, "12,800")


def test_ratios_are_those_of_the_file(tables: ModuleType, tmp_path: Path) -> None:
    seconds = {"plain": 4.0, "ours": 2.0, "ours compiled": 1.0, "ceiling": 1.5, "ceiling compiled": 1.0}
    step = {"net": "zf5", "size": 224, "batch": 32, "precision": "32-true", "seconds": seconds}
    run = {"hardware": "x", "torch": "2", "command": "c", "steps": [step]}
    (tmp_path / "train_step.json").write_text(json.dumps(run))
    ((title, _, rows),) = tables.build_training_tables(tmp_path)
    assert title == "Time of a training step (x, torch 2: c)"
    assert rows == [["zf5", "224", "32", "32-true", "2.00", "4.00", "0.75", "0.50", ""]]
    assert tables.build_layer_tables(tmp_path) == []


def test_a_readme_without_marks(tables: ModuleType) -> None:
    with pytest.raises(UserError, match="there is no place for a table"):
        tables.fill_tables("# A project", {"networks": []})


def test_tables_of_a_gpu_are_those_of_its_files(tables: ModuleType, tmp_path: Path) -> None:
    assert tables.build_gpu_tables(tmp_path) == []
    run = {"hardware": "a GPU", "torch": "2", "command": "c", "driver": "1", "cuda": "13", "cudnn": 9}
    rates = {"plain": 1000.4, "ours": 2500.0}
    step = {"net": "zf5", "size": 224, "batch": 128, "precision": "bf16-mixed", "images_per_second": rates}
    step |= {"seconds": {"plain": 0.5, "ours": 0.2}, "share_of_peak": 0.314}
    parts = [{"part": "tests", "status": "passed", "seconds": 61.7}]
    for name, values in (
        ("train_step", {"steps": [step]}),
        ("summary", {"size": "full", "parts": parts}),
        ("feed", {"cpus": 16, "crop": 112, "images_per_second": {"16 workers": 12345.6}}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(run | values))
    found = {title: rows for title, _, rows in tables.build_gpu_tables(tmp_path)}
    assert list(found.values()) == [
        [["tests", "passed", "62"]],
        [["zf5", "224", "128", "bf16-mixed", "1,000", "2,500", "", "", "", "31 %"]],
        [["16 workers", "12,346"]],
        # Ratios, as on a CPU; two versions were not measured.
        [["zf5", "224", "128", "bf16-mixed", "2.50", "", "", "", ""]],
    ]
    assert next(iter(found)) == "Parts of the kit, size full, driver 1, CUDA 13, cuDNN 9 (a GPU, torch 2: c)"


def test_trainings_of_a_gpu_that_were_cut_off_say_so(tables: ModuleType, tmp_path: Path) -> None:
    trainings = [
        {"command": f"python train.py experiment=mini/{cell} run_folder=x", "status": status}
        for cell, status in (("zf5_nospp", "passed"), ("zf5_spp_singlesize", "cut off"))
    ]
    run = {"hardware": "a GPU", "torch": "2", "command": "c", "size": "full"}
    parts = [{"part": "mini", "status": "cut off", "seconds": 540, "commands": trainings}]
    (tmp_path / "summary.json").write_text(json.dumps({**run, "parts": parts}))
    cells = {"checkpoint": "runs/gpu/zf5_spp_singlesize/best.ckpt", "top5_error": "5"}
    # Tested, trained on and tested again.
    found = rows("spp", "single", "crop1", [40.0], **cells) + rows("spp", "single", "crop1", [30.0], **cells)
    found += rows("none", "single", "crop1", [35.0], **{**cells, "checkpoint": "runs/gpu/zf5_nospp/best.ckpt"})
    write_results(tmp_path, found)
    _, (_, header, lines) = tables.build_gpu_tables(tmp_path)
    shown = [dict(zip(header, line, strict=True)) for line in lines]
    assert [(line["training"], line["top-1 error %"]) for line in shown] == [("cut off", "30.00"), ("passed", "35.00")]


@pytest.mark.parametrize(("hardware", "rates"), [("2 CPU cores, x", []), ("1 x NVIDIA X", ["16.0", "8.0"])])
def test_rates_are_those_of_gpus_alone(hardware: str, rates: list[str], tables: ModuleType, tmp_path: Path) -> None:
    settings = {"net": "resnet18", "size": 224, "batch": 32, "precision": "32-true", "compile": False}
    seconds = {"bare": 1.9, "avg": 2.0, "spp": 4.0}
    run = {"hardware": hardware, "torch": "2", "command": "c", **settings, "seconds": seconds}
    (tmp_path / "timm_step.json").write_text(json.dumps(run))
    ((_, header, rows),) = tables.build_timm_tables(tmp_path)
    assert [row[6] for row in rows] == ["95.0 %", "47.5 %"]
    assert [row[header.index("images/s")] for row in rows if "images/s" in header] == rates
