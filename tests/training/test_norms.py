"""Norms in training: running statistics in averages, checkpoints and new runs, and statistics over processes."""

import copy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from spp_cls import build_net, load_net
from spp_cls.data import ImageNetDataModule
from spp_cls.models.checkpoint import load_checkpoint
from spp_cls.training import LitClassifier, SyncBatchNorms, WeightAverage
from spp_cls.training.acceleration import warm_up
from spp_cls.training.fine_tuning import init_from
from tests.conftest import write_image_folder
from tests.server import Server

TIMM = {"name": "timm/resnet10t", "num_classes": 3, "levels": (2, 1), "input_size": 64}


def copy_buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def save_trained(path: Path, **options: object) -> Path:
    """Write a checkpoint whose running statistics are not those of a new network."""
    net = build_net(**{**TIMM, **options})
    net.train()(torch.randn(4, 3, 64, 64))
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(LitClassifier(net))
    trainer.save_checkpoint(path, weights_only=True)
    return path


def test_warming_up_leaves_the_statistics_alone() -> None:
    net = build_net(**TIMM)
    net(torch.randn(4, 3, 64, 64))
    before = copy_buffers(net)
    assert before["backbone.model.bn1.running_mean"].abs().max() > 0
    warm_up(net, [64, 48], 2)
    after = copy_buffers(net)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert net.training


def test_statistics_go_with_their_layers_into_a_new_run(tmp_path: Path) -> None:
    path = save_trained(tmp_path / "a.ckpt")
    loaded = load_net(path)
    net = build_net(**{**TIMM, "levels": (3, 1), "num_classes": 4, "name": "timm/resnet10t.c3_in1k"})
    line = init_from(net, path)
    assert line.endswith("layers of backbone; new: head.classifier (4 classes, 3 there)")
    backbone, theirs = net.backbone.state_dict(), loaded.backbone.state_dict()
    assert theirs["model.bn1.running_var"].std() > 0
    assert all(torch.equal(backbone[name], theirs[name]) for name in theirs)


def test_the_average_takes_running_statistics_but_counts_are_the_networks(tmp_path: Path) -> None:
    net = build_net("timm/resnetblur18", num_classes=3, levels=(1,), input_size=32)
    config = net.config
    data = ImageNetDataModule(
        "imagefolder", str(write_image_folder(tmp_path)), batch_size=8, num_workers=0, crop=32, mean=config.mean,
        std=config.std, interpolation=config.interpolation,
    )  # fmt: skip
    average = WeightAverage(decay=0.75)
    seen: list[dict[str, Tensor]] = []

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: LitClassifier, *_: object) -> None:
            seen.append(copy_buffers(pl_module.net))

    trainer = pl.Trainer(
        max_epochs=1, callbacks=[Record(), average], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, num_sanity_val_steps=0, use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(LitClassifier(net), data)
    assert len(seen) == 3
    found = copy_buffers(average._average_model.module.net)
    name = "backbone.model.layer1.0.bn1.running_var"
    first, second, third = (each[name] for each in seen)
    # Two roundings a step.
    torch.testing.assert_close(found[name], 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third, rtol=1e-6, atol=0)
    assert found["backbone.model.bn1.num_batches_tracked"] == 3
    blur = [key for key in found if key.endswith("filt")]
    assert blur
    assert all(torch.equal(found[key], seen[0][key]) for key in blur)


def test_synchronised_norms_keep_activations_names_and_values() -> None:
    net = timm.create_model("repvgg_a0").eval()
    act = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)).eval()
    images = torch.randn(2, 3, 32, 32)
    for module in (net, act):
        with torch.no_grad():
            before, names = module(images), list(module.state_dict())
            synced = SyncBatchNorms().apply(module)
            assert torch.equal(synced(images), before)
        assert list(synced.state_dict()) == names
        assert not any(type(layer) in (nn.BatchNorm2d, BatchNormAct2d) for layer in synced.modules())
    assert act(images).min() == 0


def test_synchronised_norms_in_mixed_precision() -> None:
    norms = nn.BatchNorm2d(4), BatchNormAct2d(4)
    synced = SyncBatchNorms().apply(copy.deepcopy(nn.ModuleList(norms)))
    images = (100 + torch.randn(8, 4, 12, 10)).bfloat16()
    for norm, ours in zip(norms, synced, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            expected, found = norm(images), ours(images)
        found.sum().backward()
        # One rounding of 8 bits, of statistics that differ by roundings of 24.
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-3)
        assert found.dtype == torch.bfloat16
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


# Each process takes its half of a batch through the same layers as one process takes the whole through.
HALVES = """
import os
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from spp_cls.training.norms import SyncBatchNorms, average_buffers

rank, folder = int(os.environ["LOCAL_RANK"]), "."
torch.distributed.init_process_group("gloo", init_method=f"file://{os.getcwd()}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
norms = nn.BatchNorm2d(4), BatchNormAct2d(5, momentum=None)
layers = nn.Sequential(nn.Conv2d(3, 4, 3), norms[0], nn.Conv2d(4, 5, 3), norms[1]).double()
images, weights = torch.randn(6, 3, 12, 10).double(), torch.randn(6, 5, 8, 6).double()
synced = SyncBatchNorms().apply(layers)
part = slice(0, 3) if rank == 0 else slice(3, 6)
for _ in range(2):
    out = synced(images[part])
(out * weights[part]).sum().backward()
gradients = [p.grad.clone() for p in synced.parameters()]
for gradient in gradients:
    torch.distributed.all_reduce(gradient)
own = nn.BatchNorm2d(2)
own.running_mean.fill_(rank)
own.running_var.fill_(0.1)
average_buffers(own)
result = {"out": out.detach(), "gradients": gradients, "buffers": dict(synced.named_buffers()), "own": own.state_dict()}
torch.save(result, f"{folder}/{rank}.pt")
"""


@pytest.mark.slow
def test_two_halves_of_a_batch_are_normalised_as_the_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "halves.py").write_text(HALVES)
    result = server.run(tmp_path, str(tmp_path / "halves.py"), processes=2)
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), BatchNormAct2d(5, momentum=None)
    ).double()
    images, weights = torch.randn(6, 3, 12, 10).double(), torch.randn(6, 5, 8, 6).double()
    for _ in range(2):
        out = layers(images)
    (out * weights).sum().backward()
    # The rounding of sums in another order, as float64.
    torch.testing.assert_close(torch.cat([first["out"], second["out"]]), out.detach(), rtol=1e-9, atol=1e-9)
    for found, parameter in zip(first["gradients"], layers.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-8, atol=1e-8)
    for name, buffer in layers.named_buffers():
        torch.testing.assert_close(first["buffers"][name], buffer, rtol=1e-9, atol=1e-9)
        assert torch.equal(first["buffers"][name], second["buffers"][name])
    assert first["own"]["running_mean"].tolist() == second["own"]["running_mean"].tolist() == [0.5, 0.5]
    # Equal values stay as they are, to the bit.
    assert torch.equal(first["own"]["running_var"], torch.full((2,), 0.1))


# Nine images to validate: one process has three batches of two, the other two.
RUN = (
    "data=imagefolder", "data.root=images", "data.batch_size=4", "data.num_workers=0", "model=timm", "experiment=paper",
    "model.name=timm/resnet10t", "model.levels=[2,1]", "model.input_size=64", "trainer.max_epochs=1", "sizes=single",
    "trainer.accelerator=cpu", "optimizer.lr=1e-3", "logger=csv", "trainer.limit_train_batches=2",
)  # fmt: skip


@pytest.mark.slow
def test_two_processes_with_batch_norm(server: Server, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images", train=6, val=3)

    def train(name: str, *overrides: str, processes: int = 1) -> dict:
        keys = (f"trainer.devices={processes}", f"name={name}")
        result = server.run(tmp_path, "train.py", *RUN, *keys, *overrides, processes=processes)
        assert result.returncode == 0, result.stderr
        return load_checkpoint(tmp_path / f"runs/{name}/last.ckpt")

    one = train("one")
    two = train("two", "trainer.sync_batchnorm=true", processes=2)
    for key, value in one["state_dict"].items():
        # Two steps of float32 sums in another order. Gradients of the first layers are small differences of large
        # sums, as the images are smooth; float64 agrees to 1e-9 in the test above.
        torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-3, atol=1e-4)
    assert two["validation_errors"] == one["validation_errors"]
    # Each process with statistics of its own: validation, which is longer in one, does not change them.
    alone = train("alone", processes=2)
    short = train("short", "trainer.limit_val_batches=1", processes=2)
    assert all(torch.equal(short["state_dict"][key], value) for key, value in alone["state_dict"].items())
    assert not torch.equal(
        alone["state_dict"]["net.backbone.model.bn1.running_mean"],
        one["state_dict"]["net.backbone.model.bn1.running_mean"],
    )
