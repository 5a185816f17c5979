"""What people add without touching the package: each from a module of their own, named on the command line."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spp_cls.evaluation import PROTOCOLS
from tests.conftest import Command, Tool, error_of, write_checkpoint

# What a user writes beside the package. CONTRIBUTING.md points here.
MODULE = '''
"""Parts of my own."""

import json
from pathlib import Path

import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import Logger
from torch import nn

from spp_cls import Backbone, register_backbone


class SignSGD(torch.optim.Optimizer):
    """Steps of one length, along the sign of the gradient."""

    def __init__(self, params, lr: float = 0.001, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])
        return loss


def halve(every: int = 1):
    """Halve the rate every so many epochs."""
    return lambda progress: 0.5 ** (int(progress.epoch) // every)


def focal(power: float = 2.0):
    """Cross entropy that hardly counts images that are right already."""

    def compute(logits, targets):
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return ((1 - (-losses).exp()) ** power * losses).mean()

    return compute


def black_squares(side: int = 3):
    """A black square in the corner of the centre crop."""

    def augment(pixels, crop, random):
        top, left = (pixels.shape[0] - crop) // 2, (pixels.shape[1] - crop) // 2
        pixels = pixels[top : top + crop, left : left + crop].copy()
        pixels[:side, :side] = 0
        return pixels

    return augment


class JsonLogger(Logger):
    """A line a call."""

    def __init__(self, path: str):
        super().__init__()
        self.path = Path(path)

    name = version = "json"

    def log_metrics(self, metrics, step=None):
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\\n")

    def log_hyperparams(self, params, *args, **kwargs):
        pass


@register_backbone("my_net")
class MyNet(Backbone):
    """Two strided convolutions with batch norm."""

    def __init__(self, in_chans, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_chans, 8, 5, stride=4, padding=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
        )

    def forward(self, images):
        return self.layers(images)
'''

TINY = (
    "data=imagefolder", "data.root=images", "data.batch_size=8", "data.num_workers=0", "model.input_size=64",
    "model.hidden=[16,16]",
    "name=mine", "trainer.max_epochs=2", "sizes=single",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _my_parts(tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)


def metrics_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs/mine/csv/metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["val/top1_error"]]


def test_an_optimizer(tmp_path: Path, command: Command) -> None:
    before = write_checkpoint(tmp_path / "start.ckpt", class_names=("blue", "green", "red"))
    options = ("optimizer=custom", "optimizer._target_=my_parts.SignSGD", "optimizer.lr=0.25", "trainer.max_epochs=1")
    started = ("init_from=start.ckpt", "trainer.limit_train_batches=1", "trainer.gradient_clip_val=null")
    result = command("train.py", *TINY, *options, *started)
    assert result.returncode == 0, result.stderr
    weights = torch.load(tmp_path / "runs/mine/last.ckpt", weights_only=True)["state_dict"]
    # One step: each weight moves by the rate, each bias by twice the rate, or not at all where the gradient is 0.
    for name, old in before.state_dict().items():
        moved = (weights[f"net.{name}"] - old).abs()
        length = 0.5 if name.endswith("bias") else 0.25
        assert torch.all((moved == 0) | torch.isclose(moved, torch.tensor(length), atol=1e-6)), name
        assert moved.max() > 0, name


def test_a_schedule(tmp_path: Path, command: Command) -> None:
    options = ("schedule=custom", "schedule._target_=my_parts.halve", "schedule.every=2", "trainer.max_epochs=5")
    result = command("train.py", *TINY, *options, "logger=csv", "optimizer.lr=0.001")
    assert result.returncode == 0, result.stderr
    rates = [float(row["learning_rate"]) for row in metrics_of(tmp_path)]
    assert rates == pytest.approx([0.001, 0.001, 0.0005, 0.0005, 0.00025])


def test_a_loss(tmp_path: Path, command: Command) -> None:
    losses = []
    for power in (0, 4):
        options = ("loss=custom", "loss._target_=my_parts.focal", f"loss.power={power}", "trainer.max_epochs=1")
        result = command("train.py", *TINY, *options, "logger=csv", "optimizer.lr=1e-9", "overwrite=true")
        assert result.returncode == 0, result.stderr
        losses.append(float(metrics_of(tmp_path)[0]["train/loss"]))
    # Three classes, nothing learned: the logarithm of 3, and two thirds to the fourth power of it.
    assert losses == pytest.approx([np.log(3), (2 / 3) ** 4 * np.log(3)], rel=0.5)
    assert losses[1] < losses[0] / 2


def test_an_augmentation(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from spp_cls.data import ImageNetDataModule

    seen = []

    def record(self: ImageNetDataModule, batch: tuple, index: int) -> tuple:
        if self.trainer.training:
            seen.append(batch.images.clone())
        return finish(self, batch, index)

    finish = ImageNetDataModule.on_after_batch_transfer
    monkeypatch.setattr(ImageNetDataModule, "on_after_batch_transfer", record)
    options = ("augmentation=custom", "augmentation._target_=my_parts.black_squares", "augmentation.side=5")
    result = command("train.py", *TINY, *options)
    assert result.returncode == 0, result.stderr
    images = torch.cat(seen)
    assert images.shape == (48, 3, 64, 64)
    assert images[:, :, :5, :5].max() == 0
    assert images[:, :, 6:, 6:].float().mean() > 50


def test_a_logger_beside_another(tmp_path: Path, command: Command) -> None:
    options = ("logger=[csv,custom]", "logger.custom._target_=my_parts.JsonLogger", "logger.custom.path=log.jsonl")
    result = command("train.py", *TINY, *options)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    errors = [line["val/top1_error"] for line in lines if "val/top1_error" in line]
    assert errors == pytest.approx([float(row["val/top1_error"]) for row in metrics_of(tmp_path)])
    assert len(errors) == 2


def test_a_backbone_through_every_protocol(tmp_path: Path, command: Command, tool: Tool) -> None:
    mine = ("plugins=[my_parts]", "model.name=my_net", "model.levels=[3,1]", "model.hidden=[16]", "optimizer.lr=0.001")
    result = command("train.py", *TINY, *mine)
    assert result.returncode == 0, result.stderr
    tested = ("ckpt=runs/mine/last.ckpt", "data=imagefolder", "data.root=images", "data.num_workers=0", "protocol=all")
    result = command("eval.py", *tested, "plugins=[my_parts]", "predictions=predictions.csv")
    assert result.returncode == 0, result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines() if "map9" in line and "{" not in line] == [
        "map96", "map98",
    ]  # fmt: skip
    exported = tool(
        "spp_cls.export", "runs/mine/last.ckpt", "format=[safetensors,torch]", "plugins=[my_parts]", "out=out"
    )
    assert exported.returncode == 0, exported.stderr
    for net in ("runs/mine/last.ckpt", "out", "out/model.pt2"):
        predicted = tool("spp_cls.predict", net, "images/val/red/0.jpg", "plugins=[my_parts]", "format=json")
        assert json.loads(predicted.stdout)["protocol"] == "full1", predicted.stderr
    with (tmp_path / "predictions.csv").open(newline="") as file:
        scores = [sum(float(row[f"score{i}"]) for i in (1, 2, 3)) for row in csv.DictReader(file)]
    assert len(scores) == len(PROTOCOLS) * 9
    assert np.allclose(scores, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["optimizer._target_=my_parts.SignSDG"], "optimizer._target_=my_parts.SignSDG cannot be imported"),
        (["optimizer._target_=no_parts.SGD"], "optimizer._target_=no_parts.SGD cannot be imported"),
        (["optimizer.momentun=0.5"], "did you mean momentum?"),
        (["optimizer._target_=my_parts.SignSGD"], "my_parts.SignSGD has no parameter momentum"),
        (["optimizer.momentum=-1"], "optimizer: Invalid momentum value: -1"),
        (["optimizer.momentum=fast"], "optimizer.momentum is"),
        (["schedule=plateau", "schedule.epochs=[3]"], "has no parameter epochs"),
        (["schedule=milestones", "schedule.epochs=[9,3]"], "schedule.epochs is a list in ascending order"),
        (["loss.label_smoothing=1"], "loss.label_smoothing is a number from 0 below 1, not 1"),
        (["augmentation.pca_std=-1"], "pca_std"),
        (["augmentation=mix", "data.batch_size=9"], "odd number; set data.batch_size to a multiple of 2"),
        (["optimizer=adamw", "optimizer.momentum=0.9"], "torch.optim.AdamW has no parameter momentum"),
        (["logger.tensorboard.foldr=x"], "did you mean folder?"),
        (["plugins=[no_parts]"], "plugins: no_parts cannot be imported"),
        (["model.name=your_net"], "there is no network 'your_net'"),
    ],
)
def test_errors_are_one_line_before_anything_is_written(
    options: list[str], message: str, tmp_path: Path, command: Command
) -> None:
    assert message in error_of(command("train.py", *TINY, *options))
    assert not (tmp_path / "runs").exists()
