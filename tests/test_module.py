"""The training module: groups, rates, checkpoints, what it logs."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

import spp_cls
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.module import LitClassifier, filter_picture


class Watch(Callback):
    """Keep the image size, the places of the images and the rates of every training batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, tuple[int, ...], tuple[float, ...]]] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        rates = tuple(group["lr"] for group in trainer.optimizers[0].param_groups)
        self.seen.append((trainer.current_epoch, batch.images.shape[-1], tuple(batch.indices.tolist()), rates))


def fit(root: Path, folder: Path, epochs: int, workers: int, resume: bool = False, **options) -> Watch:
    data = ImageNetDataModule("imagefolder", str(root), 8, workers, crop=64, sizes="alternate", seed=1)
    net = spp_cls.build_net("zf5_tiny", num_classes=3, init="kaiming", input_size=64, class_names=data.class_names)
    watch = Watch()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        callbacks=[watch, ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    ckpt = folder / "last.ckpt" if resume else None
    trainer.fit(LitClassifier(net, **options), data, ckpt_path=ckpt, weights_only=True)
    return watch


@pytest.mark.parametrize("workers", [0, 2])
def test_sizes_order_and_rates_are_the_same_after_a_resume(
    workers: int, shared_image_folder: Path, tmp_path: Path
) -> None:
    options = {"schedule": "plateau", "patience": 0, "learning_rate": 1e-3}
    whole = fit(shared_image_folder, tmp_path / "whole", 4, workers, **options).seen
    assert [(epoch, size) for epoch, size, _, _ in whole[::3]] == [(0, 64), (1, 51), (2, 64), (3, 51)]
    assert len(whole) == 12
    for epoch in range(4):
        assert {size for e, size, _, _ in whole if e == epoch} == {(64, 51)[epoch % 2]}
    for stop in (1, 2, 3):
        folder = tmp_path / f"stopped{stop}"
        seen = fit(shared_image_folder, folder, stop, workers, **options).seen
        seen += fit(shared_image_folder, folder, 4, workers, resume=True, **options).seen
        assert [entry[:3] for entry in seen] == [entry[:3] for entry in whole]
        errors = torch.load(folder / "last.ckpt", weights_only=True)["validation_errors"]
        module = LitClassifier(spp_cls.build_net("zf5_tiny"), **options)
        module.validation_errors = errors
        for epoch, _, _, rates in seen:
            assert rates == (module.rate_of_epoch(epoch), 2 * module.rate_of_epoch(epoch))


def test_what_is_logged(shared_image_folder: Path, tmp_path: Path) -> None:
    fit(shared_image_folder, tmp_path, 2, 0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "top1_error", "top5_error"):
        assert [event.value for event in events.Scalars(f"train/{name}")][-1] >= 0
        assert len(events.Scalars(f"val/{name}")) == 2
    assert [event.value for event in events.Scalars("image_size")] == [64, 51]
    assert [event.value for event in events.Scalars("learning_rate")] == pytest.approx([0.01, 0.01])
    assert all(event.value > 0 for event in events.Scalars("images_per_second"))
    assert [event.step for event in events.Images("conv1/filters")] == [0, 1]


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    net = spp_cls.build_net("zf5_tiny", num_classes=3)
    module = LitClassifier(net, learning_rate=0.1, momentum=0, weight_decay=0.5)
    optimizer = module.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["rate_factor"]
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    F.cross_entropy(net(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        rate, decay = (0.2, 0.0) if name.endswith("bias") else (0.1, 0.5)
        expected = before[name] - rate * (parameter.grad + decay * before[name])
        torch.testing.assert_close(parameter.detach(), expected)


def test_a_checkpoint_alone_rebuilds_the_net(shared_image_folder: Path, tmp_path: Path) -> None:
    fit(shared_image_folder, tmp_path, 1, 0)
    net = spp_cls.load_net(tmp_path / "last.ckpt")
    assert net.recipe.class_names == ("blue", "green", "red")
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, weights[f"net.{name}"])
    assert not net.training
    assert net(torch.zeros(1, 3, 70, 90)).shape == (1, 3)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None, {"state_dict": {}}, nn.Linear(2, 2)])
def test_what_is_no_checkpoint_is_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match="there is no checkpoint" if content is None else "is not a checkpoint"):
        spp_cls.load_net(path)


def test_a_pickle_that_runs_code_does_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": {}, "net_recipe": Harmful()}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        spp_cls.load_net(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


def test_filter_picture() -> None:
    picture = filter_picture(spp_cls.build_net("zf5_tiny"))
    # 24 filters of 7 x 7, twelve a row, one pixel between.
    assert picture.shape == (3, 2 * 8 + 1, 12 * 8 + 1)
    assert (picture.min(), picture.max()) == (0, 1)


def test_other_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="plateau or milestones"):
        LitClassifier(spp_cls.build_net("zf5_tiny"), schedule="cosine")  # type: ignore[arg-type]
