"""The training module with its callbacks: rates, checkpoints, what is logged."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import spp_cls
from spp_cls import UserError
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.training import LitClassifier, Plateau, create_callbacks


class Watch(Callback):
    """Keep the image size, the indices of the images and the rates of every training batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, tuple[int, ...], tuple[float, ...]]] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        rates = tuple(group["lr"] for group in trainer.optimizers[0].param_groups)
        self.seen.append((trainer.current_epoch, batch.images.shape[-1], tuple(batch.indices.tolist()), rates))


def fit(root: Path, folder: Path, epochs: int, workers: int, resume: bool = False) -> Watch:
    data = ImageNetDataModule("imagefolder", str(root), 8, workers, crop=64, sizes="alternate", seed=1)
    net = spp_cls.build_net("zf5_tiny", num_classes=3, init="kaiming", input_size=64, class_names=data.class_names)
    watch = Watch()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        callbacks=[
            *create_callbacks(Plateau(patience=0)),
            watch,
            ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True),
        ],
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    ckpt = folder / "last.ckpt" if resume else None
    module = LitClassifier(net, partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=5e-4))
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return watch


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_sizes_order_and_rates_are_the_same_after_a_resume(
    workers: int, shared_image_folder: Path, tmp_path: Path
) -> None:
    whole = fit(shared_image_folder, tmp_path / "whole", 4, workers).seen
    assert [(epoch, size) for epoch, size, _, _ in whole[::3]] == [(0, 64), (1, 51), (2, 64), (3, 51)]
    assert len(whole) == 12
    for epoch in range(4):
        assert {size for e, size, _, _ in whole if e == epoch} == {(64, 51)[epoch % 2]}
    for stop in (1, 2, 3):
        folder = tmp_path / f"stopped{stop}"
        seen = fit(shared_image_folder, folder, stop, workers).seen
        seen += fit(shared_image_folder, folder, 4, workers, resume=True).seen
        assert [entry[:3] for entry in seen] == [entry[:3] for entry in whole]
        errors = torch.load(folder / "last.ckpt", weights_only=True)["validation_errors"]
        assert len(errors) == 4
        for epoch, _, _, rates in seen:
            # Patience 0: every epoch without a new lowest error divides, twice at most.
            drops = min(2, sum(errors[i] >= min(errors[:i]) for i in range(1, epoch)))
            assert rates == pytest.approx((1e-3 / 10**drops, 2e-3 / 10**drops), rel=1e-15)


def test_what_is_logged(shared_image_folder: Path, tmp_path: Path) -> None:
    fit(shared_image_folder, tmp_path, 2, 0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "top1_error", "top5_error"):
        assert [event.value for event in events.Scalars(f"train/{name}")][-1] >= 0
        assert len(events.Scalars(f"val/{name}")) == 2
    assert [event.value for event in events.Scalars("image_size")] == [64, 51]
    assert [event.value for event in events.Scalars("learning_rate")] == pytest.approx([0.001, 0.001])
    assert all(event.value > 0 for event in events.Scalars("images_per_second"))
    assert [event.step for event in events.Images("first_conv/filters")] == [0, 1]


def test_a_checkpoint_alone_rebuilds_the_net(shared_image_folder: Path, tmp_path: Path) -> None:
    fit(shared_image_folder, tmp_path, 1, 0)
    net = spp_cls.load_net(tmp_path / "last.ckpt")
    assert net.config.class_names == ("blue", "green", "red")
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, weights[f"net.{name}"])
    assert not net.training
    assert net(torch.zeros(1, 3, 70, 90)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": (57.6,) * 3}, r"the data module has std=\(57\.6, .*\), and the network \(1\.0, 1\.0, 1\.0\); give"),
        ({"crop": 56}, "the data module has crop=56, and the network 64; give the data module the crop of net.config"),
        ({"interpolation": "bicubic"}, "the data module has interpolation=bicubic, and the network bilinear; "),
        ({"in_chans": 1, "mean": (1.0,)}, "the network has 1 input channels, and the data module makes RGB images; "),
        ({}, "the network has 4 classes, and .* has 3; build it with num_classes=3"),
    ],
)
def test_a_data_module_for_another_network(options: Any, message: str, shared_image_folder: Path) -> None:
    grey = options if "in_chans" in options else {}
    data = ImageNetDataModule(
        "imagefolder", str(shared_image_folder), 12, 0, **{"crop": 64, **({} if grey else options)}
    )
    classes = 3 if options else 4
    net = spp_cls.build_net("zf5", width=0.05, hidden=(4,), num_classes=classes, input_size=64, **grey)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         use_distributed_sampler=False, enable_progress_bar=False)  # fmt: skip
    with pytest.raises(UserError, match=message):
        trainer.fit(LitClassifier(net), data)


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

    torch.save({"state_dict": {}, "net_config": Harmful()}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        spp_cls.load_net(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_network_in_evaluation_mode_is_trained_with_dropout(image_folder: Path) -> None:
    data = ImageNetDataModule("imagefolder", str(image_folder), 12, 0, crop=64)
    net = spp_cls.build_net("zf5_tiny", num_classes=3, input_size=64).eval()
    modes = []
    net.head.get_submodule("drop1").register_forward_hook(lambda layer, *_: modes.append(layer.training))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(LitClassifier(net), data)
    assert modes == [True, True, False]
