"""Runs on SLURM, and on several nodes of torchrun, as docs/running.md says; nodes are processes of this machine."""

import csv
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spp_cls.data.loading.workers import count_cpus, count_workers
from spp_cls.models.checkpoint import load_checkpoint
from tests.conftest import REPOSITORY, write_image_folder
from tests.docs.test_running_docs import COMMANDS, SMALL, TEXT
from tests.training.run import fake_slurm

(SCRIPT,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
# Twelve steps of two images a process in each of two epochs.
RUN = (
    *SMALL, "data.batch_size=2", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "checkpoint.every_steps=1",
    "optimizer.lr=1e-4",
)  # fmt: skip


def small(line: str, nodes: int = 1, tasks: int = 1) -> str:
    """Take train.py from here, and two devices instead of 8 on 4 nodes."""
    line = re.sub(r"(nodes=)4", rf"\g<1>{nodes}", line)
    line = re.sub(r"(devices=|per-node=)8", rf"\g<1>{tasks}", line)
    return re.sub(r"\btrain\.py\b", str(REPOSITORY / "train.py"), line)


def files_of_run(folder: Path, name: str) -> tuple[int, int]:
    """Return the step of a run's last checkpoint, and how many event files it has."""
    run = folder / "runs" / name
    return load_checkpoint(run / "last.ckpt")["global_step"], len(list((run / "tensorboard").glob("events*")))


@pytest.mark.parametrize(
    ("tasks", "cpus", "expected"),
    [("1", "1", count_cpus()), ("8", "1", 1), ("8", "1000", count_cpus()), (None, None, count_cpus())],
)
def test_workers_of_a_task(tasks: str | None, cpus: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("SLURM_NTASKS", tasks), ("SLURM_CPUS_PER_TASK", cpus)):
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key, raising=False)
    assert count_workers("auto") == expected


@pytest.mark.slow
def test_a_batch_script_of_two_nodes(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images")
    lines = [small(line, nodes=2) for line in SCRIPT.splitlines()]
    assert lines[-1].startswith("srun python ")
    lines[-1] = shlex.join([*lines[-1].replace("python", sys.executable, 1).split(), *RUN])
    (tmp_path / "train.sh").write_text("\n".join(lines).replace("--cpus-per-task=8", "--cpus-per-task=1"))
    environment = fake_slurm.install(tmp_path / "slurm")
    submitted = subprocess.run(
        ["sbatch", "train.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    (job,) = re.findall(r"Submitted batch job (\d+)", submitted.stdout)
    wait_for(lambda: (tmp_path / f"slurm/{job}.state").read_text() != "RUNNING")
    output = (tmp_path / f"slurm-{job}.out").read_text()
    assert (tmp_path / f"slurm/{job}.state").read_text() == "COMPLETED", output
    assert files_of_run(tmp_path, "zf5_spp_multisize") == (24, 1)
    assert output.count("images to train on") == output.count("Lowest validation top-1 error") == 1


@pytest.mark.slow
def test_a_job_of_submitit_goes_on_after_its_time_limit(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images")
    (line,) = [line for line in COMMANDS if "hydra/launcher=slurm" in line]
    program, *arguments = shlex.split(small(line, tasks=2))
    assert program == "python"
    # With workers, which SLURM ends with their task.
    cpus = ("data.num_workers=1", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1")
    waiting = subprocess.Popen(
        [sys.executable, *arguments, *RUN, *cpus, "overwrite=true"],
        cwd=tmp_path, env=fake_slurm.install(tmp_path / "slurm"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    last = tmp_path / "runs/zf5_spp_multisize/last.ckpt"
    wait_for(lambda: last.exists() or waiting.poll() is not None)
    (tasks,) = (tmp_path / "slurm").glob("*.tasks")
    first = tasks.read_text()
    for task in first.split():
        os.kill(int(task), signal.SIGUSR2)
    printed, errors = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, errors
    assert tasks.read_text() != first
    (log,) = (tmp_path / "multirun").rglob("*_0_log.out")
    before, after = log.read_text().split("Stopped by SIGUSR2 after step ")
    assert int(after.split()[0]) < 24
    # Submitted again by a process that left all of the run before.
    assert "Requeued job" in after.split("Starting with")[0]
    assert "Job completed" not in after.split("Starting with")[0]
    assert "Lowest validation top-1 error" in after
    assert "Lowest validation top-1 error" not in before
    assert files_of_run(tmp_path, "zf5_spp_multisize")[0] == 24
    (table,) = (tmp_path / "multirun").rglob("results.csv")
    with table.open() as file:
        (row,) = csv.DictReader(file)
    assert row["run_folder"] == "runs/zf5_spp_multisize"
    assert f"{float(row['top1_error']):.2f}" in printed


@pytest.mark.slow
def test_two_nodes_of_torchrun(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images")
    (line,) = [line for line in COMMANDS if "--nnodes" in line]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    program, *arguments = shlex.split(small(line, nodes=2).replace("FIRST_NODE:29500", address))
    assert program == "torchrun"
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *arguments, *RUN],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    printed, errors = zip(*[node.communicate(timeout=300) for node in nodes], strict=True)
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert files_of_run(tmp_path, "zf5_spp_multisize") == (24, 1)
    assert "".join(printed).count("Lowest validation top-1 error") == 1


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
