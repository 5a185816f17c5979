"""docs/running.md: its commands, on small data and CPUs; and several runs by one command."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from spp_cls.cli.sweep import ResultsTable
from tests.conftest import REPOSITORY, Command, error_of

TEXT = (REPOSITORY / "docs/running.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]

# For a run of seconds on the test's own images. Of several devices: test_processes.py; of SLURM: test_slurm.py.
SMALL = (
    "data=imagefolder", "data.root=images", "data.batch_size=8", "data.num_workers=0", "model=zf5_tiny",
    "model.input_size=64", "model.hidden=[16,16]", "trainer.max_epochs=1", "trainer.accelerator=cpu",
)  # fmt: skip


def test_there_are_commands_of_each_kind() -> None:
    assert len(COMMANDS) == 8
    for word in ("torchrun", "--multirun", "devices=8", "--nnodes", "hydra/launcher=slurm"):
        assert any(word in line for line in COMMANDS)


@pytest.mark.parametrize("line", [line for line in COMMANDS if "devices" not in line])
def test_commands_of_one_process(line: str, image_folder: Path, tmp_path: Path, command: Command) -> None:
    python, script, *arguments = shlex.split(line)
    assert (python, script) == ("python", "train.py")
    result = command(script, *arguments, *SMALL)
    assert result.returncode == 0, result.stderr
    if "--multirun" in arguments:
        assert [path.name for path in sorted((tmp_path / "runs/trial").iterdir())] == ["seed=0", "seed=1"]
        (table,) = (tmp_path / "multirun").rglob("results.csv")
        with table.open() as file:
            rows = list(csv.DictReader(file))
        assert [row["run_folder"] for row in rows] == ["runs/trial/seed=0", "runs/trial/seed=1"]
        assert all(f"{float(row['top1_error']):.2f}" in result.stdout.split("lowest top-1")[1] for row in rows)


def test_a_table_of_a_folder_that_was_used_before_has_its_own_runs(tmp_path: Path) -> None:
    runs = {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(tmp_path)}, "overrides": {"task": ["a=1"]}}
    (tmp_path / "summary.json").write_text("{}")

    def sweep(count: int) -> list[str]:
        table = ResultsTable()
        table.on_multirun_start(OmegaConf.create({"hydra": runs}))
        for number in range(count):
            job = JobReturn(status=JobStatus.COMPLETED)
            job.return_value = {"run_folder": f"runs/{number}"}
            table.on_job_end(OmegaConf.create({"hydra": {**runs, "job": {"num": number}}}), job)
        table.on_multirun_end(OmegaConf.create({"hydra": runs}))
        with (tmp_path / "results.csv").open() as file:
            return [row["run_folder"] for row in csv.DictReader(file)]

    assert sweep(11) == [f"runs/{number}" for number in range(11)]
    assert sweep(2) == ["runs/0", "runs/1"]


def test_several_devices_and_several_runs_are_refused(image_folder: Path, tmp_path: Path, command: Command) -> None:
    line = error_of(command("train.py", "--multirun", *SMALL, "seed=0,1", "trainer.devices=2"))
    assert "set trainer.devices=1" in line
    assert "hydra/launcher=slurm" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=0,1", "data.rooot=x"], "error: there is no key data.rooot; did you mean data.root?"),
        (["optimizer.lr=0.1,fast"], "error: optimizer.lr is a number or Tensor, not 'fast'"),
        (["seed=range(2)", "model=zf5_tiny,zf6"], "error: In 'train': Could not find 'model/zf6'"),
        (["seed=0,1", "name=["], "error: "),
        (["hydra/launcher=slurm", "trainer.devices=auto"], "error: a job of SLURM has one task a device; set trainer"),
    ],
)
def test_a_mistake_in_any_of_several_runs_is_found_before_the_first(
    overrides: list[str], message: str, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    assert error_of(command("train.py", "--multirun", *SMALL, *overrides)).startswith(message)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_does_not_end_the_others(image_folder: Path, tmp_path: Path, command: Command) -> None:
    result = command("train.py", "--multirun", *SMALL, "data.root=images,nowhere", "name=trial")
    assert result.returncode == 1
    assert "error: there is no folder nowhere; set data.root to the data set's folder" in result.stderr.splitlines()
    (table,) = (tmp_path / "multirun").rglob("results.csv")
    with table.open() as file:
        good, bad = csv.DictReader(file)
    assert (good["run_folder"], good["error"], good["epochs"]) == ("runs/trial/data.root=images", "", "1")
    assert (bad["run_folder"], bad["top1_error"]) == ("runs/trial/data.root=nowhere", "")
    assert bad["error"].startswith("there is no folder nowhere")
    assert "there is no folder nowhere" in result.stdout.split("lowest top-1")[1]
