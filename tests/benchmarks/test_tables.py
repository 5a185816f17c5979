"""What benchmarks/tables.py writes into the documents."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from spp_cls import UserError
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
