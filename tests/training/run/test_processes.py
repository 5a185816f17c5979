"""Several processes train as one does; the whole way from training to prediction through the command lines."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
import torch

from spp_cls.models.checkpoint import load_checkpoint
from tests.conftest import REPOSITORY, Result, write_image_folder
from tests.docs.test_running_docs import COMMANDS
from tests.server import Server

pytestmark = pytest.mark.slow

# Of the guide to running: started by Lightning, and by torchrun.
PYTHON, TORCHRUN = (
    line for line in COMMANDS if "devices" in line and "--nnodes" not in line and "hydra/launcher" not in line
)
# Five steps an epoch, twenty in all.
RUN = (
    "data=imagefolder", "data.root=images", "data.batch_size=12", "data.num_workers=0", "model=zf5_tiny",
    "model.input_size=64",
    "model.hidden=[16,16]", "model.drop_rate=0", "trainer.max_epochs=4", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1", "optimizer.lr=1e-3", "schedule.patience=0",
)  # fmt: skip


class Training:
    """Starts train.py, which writes down its images, as several processes."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server

    def __call__(self, name: str, processes: int, strike: str = "0:0", *keys: str) -> Result:
        """Train in processes forked for it, which are numbered as Lightning numbers those that it starts."""
        line = re.sub(r"devices=8", f"devices={processes}", PYTHON)
        program, *words = self._complete(line, name, keys)
        assert program == "python"
        return self.server.run(self.folder, *words, environment=self._prepare(name, strike), processes=processes)

    def launch(self, name: str, processes: int, line: str) -> Result:
        """Train as a line of the guide says, by Lightning or by torchrun."""
        program, *words = self._complete(re.sub(r"(devices|per-node)=8", rf"\1={processes}", line), name, ())
        module = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[program]
        return subprocess.run(
            [sys.executable, *module, *words], cwd=self.folder, capture_output=True, text=True, timeout=300,
            check=False, env=os.environ | self._prepare(name, "0:0"),
        )  # fmt: skip

    def _prepare(self, name: str, strike: str) -> dict[str, str]:
        record = self.folder / f"record-{name}"
        record.mkdir(exist_ok=True)
        return {"RECORD": str(record), "STRIKE": strike, "OMP_NUM_THREADS": "1"}

    def _complete(self, line: str, name: str, keys: Sequence[str]) -> list[str]:
        script = str(REPOSITORY / "tests/training/run/recorded_train.py")
        words = [script if word == "train.py" else word for word in shlex.split(line)]
        return [*words, *RUN, *keys, f"name={name}"]


def images_of_steps(folder: Path, name: str, batch: int = 12) -> list[set[int]]:
    """The images of all processes, step by step."""
    shares = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / f"record-{name}").glob("*.jsonl"))
    ]
    steps = [[i for share in shares for i in share[step]] for step in range(len(shares[0]))]
    assert all(len(images) == len(set(images)) == batch for images in steps)
    return [set(images) for images in steps]


def inputs_of_steps(folder: Path, name: str) -> list[list[str]]:
    """What the network sees in each step: digests of the images with labels and targets, in the order of the ranks."""
    shares = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / f"record-{name}").glob("*.digests"))
    ]
    return [list(chain(*parts)) for parts in zip(*shares, strict=True)]


def assert_as_one(folder: Path, name: str) -> None:
    one, several = (load_checkpoint(folder / f"runs/{each}/last.ckpt") for each in ("one", name))
    assert several["global_step"] == one["global_step"] == 20
    for key, weight in one["state_dict"].items():
        # A mean of means is a sum in another order: 1e-7 of a gradient, over twenty steps.
        torch.testing.assert_close(several["state_dict"][key], weight, rtol=1e-4, atol=1e-5)
    assert several["validation_errors"] == one["validation_errors"]


@pytest.fixture(scope="module")
def train(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("processes")
    write_image_folder(folder / "images", train=20, val=5)
    return Training(folder, server)


@pytest.fixture(scope="module")
def one(train: Training) -> Path:
    result = train("one", 1)
    assert result.returncode == 0, result.stderr
    assert len(images_of_steps(train.folder, "one")) == 20
    return train.folder


@pytest.mark.parametrize(("line", "processes"), [(PYTHON, 3), (TORCHRUN, 2)])
def test_several_processes_train_as_one(line: str, processes: int, train: Training, one: Path) -> None:
    name = str(processes)
    before = set((one / "runs").iterdir())
    result = train.launch(name, processes, line)
    assert result.returncode == 0, result.stderr
    assert images_of_steps(one, name) == images_of_steps(one, "one")
    assert_as_one(one, name)
    assert set((one / "runs").iterdir()) - before == {one / "runs" / name}
    assert len(list((one / "runs" / name / "tensorboard").glob("events*"))) == 1
    assert result.stdout.count("images to train on") == 1
    assert result.stdout.count("Lowest validation top-1 error") == 1


def test_several_processes_train_as_one_on_whole_images(train: Training, one: Path) -> None:
    for processes in (1, 2, 3):
        keys = ("shape=natural", "data.batch_size=6", "trainer.max_epochs=2", "model.hidden=[]")
        result = train(f"whole-{processes}", processes, "0:0", *keys)
        assert result.returncode == 0, result.stderr
        assert "take a shape beside theirs and 0 are left out" in result.stdout
    alone = images_of_steps(one, "whole-1", 6)
    assert len(alone) == 20
    for number in (2, 3):
        assert images_of_steps(one, f"whole-{number}", 6) == alone
        weights, other = (load_checkpoint(one / f"runs/whole-{n}/last.ckpt")["state_dict"] for n in (1, number))
        for key, weight in weights.items():
            # A mean of means is a sum in another order: 1e-7 of a gradient, over twenty steps.
            torch.testing.assert_close(other[key], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("place", "call", "steps"), [("training_step", 8, 8), ("validation_step", 1, 5)])
def test_a_signal_to_one_of_two_processes_stops_both_and_the_run_goes_on(
    place: str, call: int, steps: int, train: Training, one: Path
) -> None:
    name = f"stopped-{place}"
    result = train(name, 2, f"{call}:{int(signal.SIGTERM)}:{place}")
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert "error" not in result.stderr
    line = f"Stopped by SIGTERM after step {steps} (epoch {(steps - 1) // 5}); runs/{name}/last.ckpt is saved"
    assert line in result.stdout
    assert load_checkpoint(one / f"runs/{name}/last.ckpt")["global_step"] == steps
    result = train(name, 2)
    assert result.returncode == 0, result.stderr
    assert images_of_steps(one, name) == images_of_steps(one, "one")
    assert_as_one(one, name)


@pytest.mark.parametrize("augmentation", ["strong", "mix"])
def test_the_images_and_targets_of_two_processes_are_those_of_one(
    augmentation: str, train: Training, one: Path
) -> None:
    more = (f"augmentation={augmentation}", "optimizer=adamw")
    found = []
    for processes in (1, 2):
        name = f"{augmentation}{processes}"
        result = train(name, processes, "0:0", *more)
        assert result.returncode == 0, result.stderr
        found.append(inputs_of_steps(one, name))
    assert len(found[0]) == 20
    assert found[0] == found[1]
    result = train(f"{augmentation}stopped", 2, f"8:{int(signal.SIGTERM)}", *more)
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    result = train(f"{augmentation}stopped", 2, "0:0", *more)
    assert result.returncode == 0, result.stderr
    assert inputs_of_steps(one, f"{augmentation}stopped") == found[0]


def test_from_training_to_prediction(server: Server, tmp_path: Path) -> None:
    arguments = (
        "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2", "trainer.limit_train_batches=12",
        "trainer.limit_val_batches=2", "checkpoint.every_steps=4", "data.num_workers=1", "name=demo",
    )  # fmt: skip
    last = tmp_path / "runs/demo/last.ckpt"
    training = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not last.exists():
        assert training.poll() is None
        time.sleep(0.05)
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    assert load_checkpoint(last)["global_step"] < 24
    result = server.run(tmp_path, "train.py", *arguments, processes=2)
    assert result.returncode == 0, result.stderr
    assert load_checkpoint(last)["global_step"] == 24
    assert len(load_checkpoint(last)["validation_errors"]) == 2

    best = "runs/demo/best.ckpt"
    # Two images of each of the ten classes; all 500 take minutes.
    for folder in (tmp_path / "data/demo/val").iterdir():
        (tmp_path / "few/val" / folder.name).mkdir(parents=True)
        for path in sorted(folder.glob("*.jpg"))[:2]:
            (tmp_path / "few/val" / folder.name / path.name).symlink_to(path)
    few = ("data=imagefolder", "data.root=few", "data.num_workers=0")
    result = server.run(tmp_path, "eval.py", f"ckpt={best}", "protocol=[map98]", *few)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout.splitlines()[-1])["rows"]
    assert (row["protocol"], row["views"], row["images"]) == ("map98", 98, 20)

    def tool(*words: str) -> str:
        result = server.run(tmp_path, "-m", *words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    tool("spp_cls.export", best, "format=[onnx]", "out=exported")
    image = str(next((tmp_path / "data/demo/val").rglob("*.jpg")))
    answers = [
        re.findall(r'"class": "(\w+)"', tool("spp_cls.predict", net, image, "format=json", "protocol=full1", "top=1"))
        for net in (best, "exported/model.onnx")
    ]
    assert len(answers[0]) == 1
    assert answers[0] == answers[1]
