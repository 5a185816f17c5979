"""The kit for a machine with GPUs, on a CPU and at the smallest sizes."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from spp_cls import UserError
from tests.conftest import REPOSITORY, write_image_folder

PARTS = ["tests", "steps", "feed", "lrn", "spp", "multiview", "loader", "mini", "protocols"]


def run_kit(*arguments: str, python: str = sys.executable, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    # As on a machine without a GPU, whatever this one has.
    environment = os.environ | {"PYTHON": python, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(REPOSITORY / "benchmarks/gpu.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize("fork", [False, True])
def test_commands_that_pass_fail_and_take_too_long(fork: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    run_commands = importlib.import_module("kit.commands").run_commands
    endless = "import subprocess, time; print(subprocess.Popen(['sleep', '100']).pid, flush=True)\n"
    programs = {
        "passed": "print('in the log')",
        "failed": "raise SystemExit(3)",
        "cut off": f"{endless}time.sleep(100)",
    }
    commands = []
    for status, program in programs.items():
        (tmp_path / f"{status}.py").write_text(program)
        commands.append(([str(tmp_path / f"{status}.py")], tmp_path / f"{status}.log"))
    deadline = time.monotonic() + 4
    found = run_commands(commands, 2, deadline, {}, fork=fork)
    assert [(each["status"], each.get("exit")) for each in found] == [("passed", 0), ("failed", 3), ("cut off", None)]
    assert (tmp_path / "passed.log").read_text().endswith("in the log\n")
    # What it started is gone too, or waits to be buried; a signal takes its time on a busy machine.
    started = Path("/proc", (tmp_path / "cut off.log").read_text().splitlines()[-1], "stat")
    while started.exists() and started.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline + 30
        time.sleep(0.1)
    (late,) = run_commands([(commands[0][0], tmp_path / "late.log")], 1, time.monotonic(), {}, fork=fork)
    assert late["status"] == "cut off"
    assert not (tmp_path / "late.log").exists()


def test_a_damaged_data_set_ends_its_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    gpu, parts = importlib.import_module("gpu"), importlib.import_module("kit.parts")
    (tmp_path / "manifest.json").write_text("{}")
    kit = parts.Kit("cpu", False, tmp_path, tmp_path, tmp_path, tmp_path, 1, "")
    found = gpu.run_part("loader", parts.PARTS["loader"], kit, time.monotonic())
    assert (found["status"], found["commands"]) == ("failed", [])
    assert str(tmp_path) in found["reason"]


@pytest.mark.slow
def test_every_part_passes_on_a_cpu_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_kit("device=cpu", "size=toy", f"out={out}", f"runs={tmp_path}/runs")
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == dict.fromkeys(PARTS, "passed")
    summary = json.loads((out / "summary.json").read_text())
    assert [part["part"] for part in summary["parts"]] == PARTS
    assert {"torch", "python", "hardware"} <= summary.keys()
    written = {path.name for path in out.iterdir()}
    assert {
        "tests.xml",
        "train_step.json",
        "feed.json",
        "lrn.json",
        "spp.json",
        "multiview.json",
        "loader.json",
    } <= written
    # Two small networks, two protocols.
    assert len((out / "mini.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_parts_that_cannot_run_are_named_and_the_status_says_so(tmp_path: Path) -> None:
    common = (f"out={tmp_path}/out", f"runs={tmp_path}/runs")
    result = run_kit("device=cpu", "parts=feed,protocols,lrn", f"data={tmp_path}/none", "minutes=0.0001", *common)
    assert result.returncode == 1
    assert json.loads(result.stdout.splitlines()[-1]) == {"feed": "skipped", "protocols": "skipped", "lrn": "cut off"}
    assert "python benchmarks/gpu_data.py" in result.stdout


@pytest.mark.slow
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    refused = run_kit(f"out={tmp_path}/out")
    line = "error: there is no NVIDIA GPU here; device=cpu size=toy tries the kit on a CPU\n"
    assert (refused.returncode, refused.stderr) == (1, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("parts=tests,lrm", "there is no part lrm; did you mean lrn"),
        ("devices=cpu", "there is no key devices; did you mean device"),
        ("device=tpu", "device is cuda or cpu, not 'tpu'"),
        ("minutes=0", "minutes is a number above 0"),
    ],
)
def test_mistakes(argument: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    with pytest.raises(UserError, match=message):
        importlib.import_module("gpu").main([argument, f"out={tmp_path}/out"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("python3"), reason="there is no python3")
def test_wheels_are_installed_for_the_run_alone(tmp_path: Path) -> None:
    python = str(shutil.which("python3"))
    has_pip = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
    if has_pip.returncode:
        pytest.skip("python3 has no pip")
    # A package that stands for the kit's libraries and ends it as soon as it is imported.
    with zipfile.ZipFile(tmp_path / "torch-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch.py", "raise SystemExit('from the wheel')")
        wheel.writestr("torch-0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 0\n")
        wheel.writestr("torch-0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("torch-0.dist-info/RECORD", "")
    result = run_kit(f"wheels={tmp_path}", python=python)
    if "lacks" in result.stderr:
        # A bare Python: it has what is in the wheel, and nothing else.
        (lacking,) = re.findall("^error: .* lacks (.*); set PYTHON to one that has all, ", result.stderr)
        assert {"hydra-core", "simplejpeg"} <= set(lacking.split(", ")) - {"torch"} == set(lacking.split(", "))
    else:
        assert result.stderr.endswith("from the wheel\n"), result.stderr


def test_the_data_set_stays_below_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    main = importlib.import_module("gpu_data").main
    root = write_image_folder(tmp_path / "images")
    sizes = []
    for megabytes in (1.0, 0.05):
        out = tmp_path / f"{megabytes}"
        main([f"root={root}", f"out={out}", "min_side=64", f"megabytes={megabytes}"])
        assert "33 images of min side 64, quality" in capsys.readouterr().out
        sizes.append(sum(path.stat().st_size for path in out.glob("*.arrow")))
    assert sizes[1] <= 50_000 < sizes[0]
    with pytest.raises(UserError, match=r"33 images of min side 64 take over 0\.001 MB at any quality"):
        main([f"root={root}", f"out={tmp_path}/none", "min_side=64", "megabytes=0.001"])
