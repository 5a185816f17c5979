"""Whole runs on the device: killed and resumed, by torchrun, without a compiler; then tested, exported and used."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

import spp_cls
from spp_cls.data.sources import open_source
from spp_cls.evaluation import PROTOCOLS, evaluate
from spp_cls.models.checkpoint import load_checkpoint
from tests.conftest import REPOSITORY, Command, Tool, write_image_folder
from tests.server import Server
from tests.training.run.test_resume import STEP, Runs, assert_same

pytestmark = pytest.mark.gpu

# Three steps an epoch of 24 images.
RUN = (
    "experiment=paper", "data=imagefolder", "data.batch_size=8", "data.num_workers=0", "model=zf5_tiny",
    "model.input_size=64", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "optimizer.lr=1e-3",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(device: torch.device, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(write_image_folder(tmp_path_factory.mktemp("runs") / "images", train=14, val=6), server)


@pytest.mark.parametrize(
    ("precision", "data"),
    [
        ("32-true", ("data.num_workers=2",)),
        ("16-mixed", ("data.cache=device", "data.num_workers=0", "ema_decay=0.9")),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(
    accelerator: str, precision: str, data: tuple[str, ...], runs: Runs, tmp_path: Path
) -> None:
    if accelerator == "cpu" and precision == "16-mixed":
        pytest.skip("Lightning trains in float16 on a GPU alone; tests/training/run/test_resume.py has more on a CPU")
    keys = (
        f"trainer.accelerator={accelerator}", f"trainer.precision={precision}", "plugins=[tests.gpu.deterministic]",
        "compile=false", "sizes=alternate", "trainer.max_epochs=2",
        # The fastest algorithm of a convolution would be another one in the next run.
        "trainer.benchmark=false", *data,
    )  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert runs(whole, *keys) == 0, (whole / "output").read_text()
    # In the second epoch; every second step is saved.
    assert runs(killed, *keys, strikes=[(STEP, 8, signal.SIGKILL)]) == -signal.SIGKILL
    assert load_checkpoint(killed / "run/last.ckpt")["global_step"] == 6
    assert runs(killed, *keys) == 0, (killed / "output").read_text()
    assert_same(killed, whole)


def start(folder: Path, *words: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_processes_of_torchrun_train_as_one(
    device: torch.device, accelerator: str, shared_image_folder: Path, tmp_path: Path, command: Command
) -> None:
    # NCCL with a process for each GPU, even if that is one.
    if device.type == "cpu":
        pytest.skip("CUDA alone has NCCL; tests/training/run/test_processes.py has gloo and torchrun on a CPU")
    processes = torch.cuda.device_count()
    if 8 % processes:
        pytest.skip(f"a batch of 8 does not divide by {processes} GPUs")
    keys = (
        *RUN, f"data.root={shared_image_folder}", f"trainer.accelerator={accelerator}", "model.drop_rate=0",
        "tf32=false", "compile=false",
    )  # fmt: skip
    one = command("train.py", *keys, "name=one")
    assert one.returncode == 0, one.stderr
    several = (f"trainer.devices={processes}", "trainer.strategy=ddp", "name=several")
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    start(tmp_path, *torchrun, str(REPOSITORY / "train.py"), *keys, *several)
    a, b = (load_checkpoint(tmp_path / f"runs/{name}/last.ckpt") for name in ("one", "several"))
    assert a["global_step"] == b["global_step"] == 6
    for name, weight in a["state_dict"].items():
        # A mean of means is a sum in another order: 1e-7 of a gradient, over six steps.
        torch.testing.assert_close(b["state_dict"][name], weight, rtol=1e-4, atol=1e-5)
    assert sum(each["seen"] for each in b["train_counts"]) == sum(each["seen"] for each in a["train_counts"]) == 24
    assert b["validation_errors"] == a["validation_errors"]


def test_without_a_compiler_a_run_says_so_and_goes_on(
    device: torch.device, shared_image_folder: Path, tmp_path: Path
) -> None:
    if device.type == "cpu":
        pytest.skip("a CPU is not compiled for by default; tests/training/test_acceleration.py has this case for it")
    # Images for containers often have no C compiler, which Triton needs.
    nothing = {
        "CC": "/no/such/compiler", "TRITON_CACHE_DIR": f"{tmp_path}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/inductor",
    }  # fmt: skip
    printed = start(tmp_path, str(REPOSITORY / "train.py"), *RUN, f"data.root={shared_image_folder}",
                    "trainer.accelerator=gpu", "name=run", **nothing)  # fmt: skip
    assert "no compiler works here" in printed
    assert load_checkpoint(tmp_path / "runs/run/last.ckpt")["global_step"] == 6


def test_from_training_to_prediction(
    accelerator: str, shared_image_folder: Path, tmp_path: Path, command: Command, tool: Tool
) -> None:
    keys = (f"data.root={shared_image_folder}", f"trainer.accelerator={accelerator}")
    trained = command("train.py", *RUN, *keys, "compile=false", "name=run", "data.cache=device", "model.init=kaiming",
                      "model.std=[57.6,57.6,57.6]")  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    best = "runs/run/best.ckpt"

    def test_on(where: str, file: str) -> list[dict[str, Any]]:
        result = command("eval.py", f"ckpt={best}", "protocol=[crop1,full1]", "data=imagefolder", keys[0],
                         f"trainer.accelerator={where}", f"predictions={file}")  # fmt: skip
        assert result.returncode == 0, result.stderr
        rows: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])["rows"]
        return rows

    here, there = test_on(accelerator, "here.csv"), test_on("cpu", "there.csv")
    assert [row["protocol"] for row in here] == ["crop1", "full1"]
    assert [row["top1_error"] for row in here] == [row["top1_error"] for row in there]

    exported = tool("spp_cls.export", best, "format=[safetensors,torch]", "out=exported")
    assert exported.returncode == 0, exported.stderr
    image = str(next((shared_image_folder / "val").rglob("*.jpg")))
    answers = []
    for net in (best, "exported", "exported/model.pt2"):
        printed = tool("spp_cls.predict", net, image, "format=json", "protocol=full1").stdout
        classes = json.loads(printed.splitlines()[-1])["classes"]
        answers.append({each["class"]: each["score"] for each in classes})
    assert all(answer == pytest.approx(answers[0], abs=1e-4) for answer in answers)
    (row,) = [line for line in (tmp_path / "here.csv").read_text().splitlines() if line.startswith("full1,") and
              re.search(rf"{Path(image).parent.name}/{Path(image).name}", line)]  # fmt: skip
    # Predicted on a CPU as tested on the device.
    assert float(row.split(",")[-3]) == pytest.approx(max(answers[0].values()), abs=1e-3)


@pytest.mark.parametrize("max_pixels", [20_000, 8_000_000])
def test_the_evaluator_scores_as_on_the_cpu(
    device: torch.device, accelerator: str, shared_image_folder: Path, max_pixels: int
) -> None:
    source = open_source("imagefolder", shared_image_folder, "val")
    options = {"num_classes": 3, "init": "kaiming", "std": (57.6,) * 3, "input_size": 64}
    net = spp_cls.build_net("zf5_tiny", **options).to(memory_format=torch.channels_last).eval()
    theirs = evaluate(net, source, list(PROTOCOLS), progress=False)
    fabric = Fabric(accelerator=accelerator, devices=1)
    ours = evaluate(fabric.to_device(net), source, list(PROTOCOLS), fabric, max_pixels, progress=False)  # type: ignore[arg-type]
    for name, found in ours.items():
        scores, expected = (torch.zeros(9, 3).scatter(1, each.classes, each.scores) for each in (found, theirs[name]))
        # Scores are up to 1; convolutions of float32 in another order.
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
