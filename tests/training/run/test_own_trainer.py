"""Module, data module and callbacks with a Trainer of one's own."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import spp_cls
from spp_cls import UserError
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.training import Checkpointing, LitClassifier, Progress, RunFolder, create_callbacks
from spp_cls.training.acceleration import warm_up
from spp_cls.training.losses import check_loss
from spp_cls.training.optimization import PAPER_SGD


def create_trainer(epochs: int = 2, **options: Any) -> pl.Trainer:
    given = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    quiet = {"enable_model_summary": False, "use_distributed_sampler": False}
    return pl.Trainer(**{**given, **quiet, "max_epochs": epochs, **options})


def create_module(**options: Any) -> LitClassifier:
    return LitClassifier(spp_cls.build_net("zf5_tiny", **{"num_classes": 3, "input_size": 64, **options}), PAPER_SGD)


def open_data(root: Path, **options: Any) -> ImageNetDataModule:
    return ImageNetDataModule("imagefolder", str(root), 12, 0, **{"crop": 64, **options})


def test_a_schedule_sees_the_errors_of_its_own_run(shared_image_folder: Path) -> None:
    seen: list[tuple[float, int]] = []

    def watch(progress: Progress) -> float:
        seen.append((progress.epoch, len(progress.errors)))
        return 1.0

    data, module = open_data(shared_image_folder), create_module()
    create_trainer().validate(module, data, verbose=False)
    for _ in range(2):
        seen.clear()
        trainer = create_trainer(3, callbacks=create_callbacks(watch))
        trainer.fit(module, data)
        trainer.validate(module, data, verbose=False)
        # The first call is a trial before the run; an epoch has two steps.
        assert seen[1:] == [(0, 0), (0.5, 0), (1, 1), (1.5, 1), (2, 2), (2.5, 2)]
        assert len(module.validation_errors) == 3
    # Two validations an epoch.
    seen.clear()
    create_trainer(2, callbacks=create_callbacks(watch), val_check_interval=0.5).fit(module, data)
    assert seen[1:] == [(0, 0), (0.5, 1), (1, 2), (1.5, 3)]


@pytest.mark.parametrize("every", [1, 2])
def test_checkpoints_of_a_run_with_sanity_check_and_validations_before_and_after_it(
    every: int, shared_image_folder: Path, tmp_path: Path
) -> None:
    data, module = open_data(shared_image_folder), create_module()
    with RunFolder(tmp_path / "a") as folder:
        checkpointing = Checkpointing(folder)
        trainer = create_trainer(
            4, callbacks=create_callbacks(checkpointing=checkpointing), num_sanity_val_steps=1,
            check_val_every_n_epoch=every, enable_checkpointing=True,
        )  # fmt: skip
        trainer.validate(module, data, verbose=False)
        assert not folder.last.exists()
        trainer.fit(module, data)
        last = folder.last.read_bytes()
        trainer.validate(module, data, verbose=False)
        assert folder.last.read_bytes() == last
        best = torch.load(folder.best, weights_only=True)
    errors = module.validation_errors
    assert len(errors) == 4 // every
    # The best is of an epoch that was validated, and of the first with the lowest error.
    assert best["validation_errors"] == errors[: errors.index(min(errors)) + 1]
    assert best["epoch"] + 1 == len(best["validation_errors"]) * every


@pytest.mark.parametrize(
    "options", [{"val_check_interval": 1}, {"val_check_interval": 3, "check_val_every_n_epoch": None}]
)
def test_validation_inside_an_epoch_has_no_best_checkpoint(
    options: dict[str, Any], shared_image_folder: Path, tmp_path: Path
) -> None:
    with RunFolder(tmp_path / "a") as folder:
        callbacks = create_callbacks(checkpointing=Checkpointing(folder))
        with pytest.raises(UserError, match=r"validate at their end, with val_check_interval=1\.0"):
            create_trainer(callbacks=callbacks, enable_checkpointing=True, **options).fit(
                create_module(), open_data(shared_image_folder)
            )
        assert not folder.last.exists()


@pytest.mark.parametrize(
    ("net", "data", "trainer", "message"),
    [
        ({"class_names": ("rose", "tulip", "daisy")}, {}, {}, r"classes have other names than those of .*; call net\."),
        ({"pooling": "none"}, {"sizes": "alternate"}, {}, "without SPP takes images of 64 x 64 pixels, not 51 x 51"),
        ({}, {"sizes": [64, 12]}, {}, "the smallest side it takes is"),
        ({}, {}, {"strategy": "ddp", "use_distributed_sampler": True}, "give the Trainer use_distributed_sampler=Fal"),
        ({}, {}, {"overfit_batches": 1}, "give the Trainer limit_train_batches instead"),
        ({}, {}, {"precision": "bf16-true"}, "precision=bf16-true does not take; set bf16-mixed"),
    ],
)
def test_what_does_not_fit_is_found_before_the_first_step(
    net: Any, data: Any, trainer: Any, message: str, shared_image_folder: Path
) -> None:
    with pytest.raises(UserError, match=message):
        create_trainer(**trainer).fit(create_module(**net), open_data(shared_image_folder, **data))


def test_a_run_without_validation(shared_image_folder: Path) -> None:
    module = create_module()
    create_trainer(1, limit_val_batches=0.0).fit(module, open_data(shared_image_folder))
    assert module.validation_errors == []


def test_a_loss_with_weights_goes_to_the_device_of_the_run() -> None:
    # The meta device stands in for a GPU: there, too, two devices do not mix.
    loss = nn.CrossEntropyLoss(torch.ones(3))
    check_loss(loss, 3, torch.device("meta"), takes_shares=True)
    assert loss.weight is not None
    assert loss.weight.device.type == "meta"


def test_warming_up_a_backbone_with_a_parameter_that_no_step_uses() -> None:
    net = spp_cls.build_net("zf5_tiny", num_classes=2, input_size=64)
    net.backbone.unused = nn.Parameter(torch.ones(1))
    warm_up(net, [64], 2)
    assert all(parameter.grad is None for parameter in net.parameters())
