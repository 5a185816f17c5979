"""What a step sees under strong and mix: functions of (seed, epoch, image), and on batches of (seed, epoch, step).

The same for any number of workers, of processes, and of batches whose gradients are accumulated, and after a resume.
"""

import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import spp_cls
from spp_cls.data import ImageNetDataModule
from spp_cls.data.loading.batch import Batch
from spp_cls.data.transforms.augmentation import Augmentation
from spp_cls.data.transforms.standard import MixAugmentation, StrongAugmentation
from spp_cls.training import LitClassifier
from tests.training.run.recorded_train import digest_batch
from tests.training.test_schedules import StopHereError


class Record(pl.Callback):
    """Keep what each batch holds; save and stop after a number of steps."""

    def __init__(self, stop: int | None = None) -> None:
        self.batches: list[list[str]] = []
        self.stop = stop
        self.mixed = 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, index: int) -> None:
        self.batches.append(digest_batch(batch))
        self.mixed += batch.targets is not None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.stop is not None and trainer.global_step == self.stop:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stop.ckpt")
            raise StopHereError


def fit(
    root: Path, folder: Path, augmentation: Augmentation, workers: int = 0, parts: int = 1, stop: int | None = None,
    resume: bool = False,
) -> Record:  # fmt: skip
    data = ImageNetDataModule(
        "imagefolder", str(root), 8, workers, crop=48, sizes=[48, 40], augmentation=augmentation, seed=4
    )
    record = Record(stop)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", default_root_dir=folder, logger=False, callbacks=[record],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, limit_val_batches=0, accumulate_grad_batches=parts,
    )  # fmt: skip
    module = LitClassifier(spp_cls.build_net("zf5_tiny", num_classes=3, input_size=48))
    try:
        trainer.fit(module, data, ckpt_path=folder / "stop.ckpt" if resume else None, weights_only=True)
    except StopHereError:
        assert stop is not None
    return record


AUGMENTATIONS = {"strong": StrongAugmentation(), "mix": MixAugmentation(mixup_alpha=1.0, mix=0.6)}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_batches_are_the_same_however_they_are_made(
    name: str, workers: int, shared_image_folder: Path, tmp_path: Path
) -> None:
    augmentation = AUGMENTATIONS[name]
    whole = fit(shared_image_folder, tmp_path, augmentation)
    # Three steps an epoch, three epochs; another image each time, but for two of which the operations left one colour.
    assert len(whole.batches) == 9
    assert len({image for batch in whole.batches for image in batch}) == 71
    assert whole.mixed in (range(1, 9) if name == "mix" else [0])
    assert fit(shared_image_folder, tmp_path, augmentation, workers).batches == whole.batches
    # Stopped in an epoch, after step 4 of 9.
    stopped = fit(shared_image_folder, tmp_path, augmentation, workers, stop=4).batches
    assert stopped + fit(shared_image_folder, tmp_path, augmentation, workers, resume=True).batches == whole.batches
    # Chunks of four and of two images, as two or four processes have them.
    for parts in (2, 4):
        found = fit(shared_image_folder, tmp_path, augmentation, parts=parts).batches
        joined = [list(chain(*found[step : step + parts])) for step in range(0, len(found), parts)]
        assert joined == whole.batches


def test_the_digest_sees_images_labels_and_targets() -> None:
    empty = torch.zeros(2)
    batch = Batch(torch.rand(2, 3, 4, 4), torch.tensor([0, 1]), torch.arange(2), empty, empty, [])
    targets = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    changed = [
        batch._replace(images=batch.images + 1),
        batch._replace(labels=batch.labels.flip(0)),
        batch._replace(targets=targets),
        batch._replace(targets=targets.flip(0)),
    ]
    digests = [digest_batch(each)[0] for each in (batch, *changed)]
    assert len(set(digests)) == 5
    assert digest_batch(batch)[1] == digest_batch(batch._replace(labels=torch.tensor([9, 1])))[1]
    assert len(digests[0]) == len(hashlib.sha256().hexdigest())
