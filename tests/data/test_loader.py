"""Batches: the same from any source and number of workers, also after a stop; failures of workers in one line."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

import spp_cls
from spp_cls.data import ImageNetDataModule
from spp_cls.data.loading.batch import Batch
from spp_cls.data.loading.loader import BatchLoader
from spp_cls.data.loading.sampler import ShardSampler, TrainingSampler
from spp_cls.data.loading.workers import count_cpus, count_workers
from spp_cls.data.sources import open_source
from spp_cls.data.sources.packing import PackSettings, pack
from spp_cls.training.module import LitClassifier
from tests.conftest import load_epochs


def data_of(root: Path, kind: str = "imagefolder", workers: int = 0, **options: Any) -> ImageNetDataModule:
    return ImageNetDataModule(kind, str(root), batch_size=6, num_workers=workers, crop=112, seed=3, **options)


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))


@pytest.fixture(scope="session")
def packed(shared_image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    splits = {split: open_source("imagefolder", shared_image_folder, split) for split in ("train", "val")}  # type: ignore[arg-type]
    pack(splits, out, PackSettings(), 1, "stop")
    return out


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_do_not_depend_on_workers_or_on_packing(shared_image_folder: Path, packed: Path, workers: int) -> None:
    alone = load_epochs(data_of(shared_image_folder))
    assert len(alone) == 8
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in alone)
    assert_equal(alone, load_epochs(data_of(shared_image_folder, workers=workers)))
    assert_equal(alone, load_epochs(data_of(packed, "packed", workers)))


def test_two_processes_share_the_same_batches(shared_image_folder: Path) -> None:
    def by_index(some: list[Batch]) -> list[dict[int, bytes]]:
        return [
            {
                int(i): image.numpy().tobytes() + bytes([flip])
                for i, image, flip in zip(b.indices, b.images, b.flips, strict=True)
            }
            for b in some
        ]

    whole = by_index(load_epochs(data_of(shared_image_folder), epochs=1))
    chunks = []
    for rank in range(2):
        data = data_of(shared_image_folder)
        loader = data.train_dataloader()
        sampler = TrainingSampler(24, 6, 3, rank, 2)
        chunks.append(by_index(list(BatchLoader(loader.dataset, 3, sampler, True, 0, 0, "here"))))
    assert [first | second for first, second in zip(*chunks, strict=True)] == whole


def test_images_on_the_device_give_the_same_batches(image_folder: Path) -> None:
    (image_folder / "train/red/0.jpg").write_bytes(b"no image")
    damaged = image_folder / "train/green/1.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    ours, theirs = data_of(image_folder, cache="device"), data_of(image_folder)
    assert_equal(load_epochs(ours), load_epochs(theirs))
    assert sorted({m for b in load_epochs(ours) for m in b.replaced}) == sorted(
        {m for b in load_epochs(theirs) for m in b.replaced}
    )
    assert ours.train_dataloader().num_workers == 0


class MachineGoneError(Exception):
    """Stands for a machine that goes away."""


class Seen(pl.Callback):
    """Notes what the network was trained on, and stops in the middle of a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[int, list[int]]] = []
        self.stop_at = stop_at

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, index: int) -> None:
        if trainer.global_step == self.stop_at:
            raise MachineGoneError
        self.steps.append((trainer.current_epoch, batch.indices.tolist()))


def fit(root: Path, folder: Path, workers: int, seen: Seen, resume: bool, batch_size: int = 4) -> pl.Trainer:
    torch.manual_seed(0)
    data = ImageNetDataModule(
        "imagefolder", str(root), batch_size=batch_size, num_workers=workers, crop=112, sizes=[112, 90], seed=3
    )
    net = spp_cls.build_net("zf5_tiny", num_classes=3, input_size=112, class_names=data.class_names)
    saved = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[seen, saved], logger=False, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(LitClassifier(net), data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return trainer


@pytest.mark.parametrize(("workers", "stop"), [(0, 8), (2, 9), (0, 6)])
def test_a_run_stopped_in_an_epoch_goes_on_with_the_next_image(
    shared_image_folder: Path, tmp_path: Path, workers: int, stop: int
) -> None:
    # 24 images, six steps an epoch: stopped after eight, nine (in the second epoch) and six (between two) of 18.
    sampler = TrainingSampler(24, 4, seed=3)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = [index for _, index in sampler]
        expected += [(epoch, order[start : start + 4]) for start in range(0, 24, 4)]
    first, second = Seen(stop), Seen()
    with pytest.raises(MachineGoneError):
        fit(shared_image_folder, tmp_path, workers, first, resume=False)
    trainer = fit(shared_image_folder, tmp_path, workers, second, resume=True)
    assert first.steps == expected[:stop]
    assert second.steps == expected[stop:]
    assert trainer.global_step == 18


@pytest.mark.parametrize("consumed", range(0, 30, 6))
def test_the_sampler_goes_on_after_any_batch(consumed: int) -> None:
    whole = TrainingSampler(24, 6, seed=3)
    whole.set_epoch(5)
    resumed = TrainingSampler(24, 6, seed=3)
    resumed.set_epoch(5)
    resumed.resume(5, consumed)
    assert list(resumed) == list(whole)[consumed:]
    assert len(resumed) == 24
    resumed.set_epoch(6)
    assert len(list(resumed)) == 24


class Trouble(Dataset[Any]):
    """Data whose reading fails in some way."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __getitems__(self, indices: list[int]) -> Any:
        if self.kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "bus":
            os.kill(os.getpid(), signal.SIGBUS)
        if self.kind == "hangs":
            # Three times its limit; what is left of it is waited for at the end of the test.
            time.sleep(3)
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dies", r"a worker process died \(Killed\); .*smaller data\.num_workers"),
        ("bus", r"shared memory; enlarge /dev/shm"),
        ("hangs", r"no batch came for 1 seconds: reading /far/away hangs; .*data\.timeout"),
    ],
)
def test_failures_of_workers_end_in_one_line(kind: str, message: str) -> None:
    loader = BatchLoader(Trouble(kind), 2, ShardSampler(4), False, num_workers=1, timeout=1, root="/far/away")
    if kind == "dies":
        # Long enough for it to have died; where the signal of its end was taken by others, so long is waited.
        loader.timeout = 5
    with pytest.raises(spp_cls.UserError, match=message) as error:
        list(loader)
    assert "\n" not in str(error.value)


def test_bugs_stay_bugs() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        list(BatchLoader(Trouble("bug"), 2, ShardSampler(4), False, num_workers=1, timeout=20, root="here"))


def test_the_same_workers_serve_all_epochs_and_sizes(shared_image_folder: Path) -> None:
    loader = data_of(shared_image_folder, workers=2, sizes=[112, 90]).train_dataloader()
    processes = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        assert len(list(loader)) == 4
        processes.append([worker.pid for worker in loader._iterator._workers])  # type: ignore[union-attr]
    assert len(processes[0]) == 2
    assert processes == processes[:1] * 3


def test_number_of_workers() -> None:
    assert count_workers("auto") == count_cpus() == len(os.sched_getaffinity(0))
    assert count_workers("auto", local_world_size=10**6) == 1
    assert count_workers(0) == 0
    for wrong in (-1, 1.5, "many", True):
        with pytest.raises(ValueError, match="num_workers is auto or"):
            count_workers(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "disk"}, r"data\.cache is none or device"),
        ({"timeout": -1}, r"data\.timeout is a number from 0"),
        ({"timeout": "long"}, r"data\.timeout is a number from 0"),
        ({"num_workers": -1}, r"data\.num_workers is a whole number from 0 .*auto"),
        ({"batch_size": "8"}, r"data\.batch_size is a whole number from 1, not '8'"),
        ({"batch_size": 0}, r"data\.batch_size is a whole number from 1, not 0"),
        ({"crop": 0}, r"model\.input_size is a whole number from 1 .*not 0"),
        ({"crop": -5}, r"model\.input_size .*not -5"),
        ({"mean": (1, 2)}, r"model\.mean has 2 values for 3 input channels"),
        ({"mean": 5}, r"model\.mean is a list of numbers, not 5"),
        ({"std": (0, 0, 0)}, r"model\.std is a list of numbers above 0, not \(0, 0, 0\)"),
        ({"interpolation": "foo"}, r"model\.interpolation is bilinear or bicubic, not 'foo'"),
        ({"seed": "1"}, "seed is a whole number from 0, not '1'"),
    ],
)
def test_mistakes(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(spp_cls.UserError, match=message) as error:
        ImageNetDataModule("imagefolder", str(tmp_path), **options)
    assert "\n" not in str(error.value)


def test_fewer_validation_images_than_processes(shared_image_folder: Path) -> None:
    trainers = [
        pl.Trainer(
            accelerator="cpu", devices=devices, strategy="ddp", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )
        for devices in (9, 12)
    ]  # fmt: skip
    ImageNetDataModule("imagefolder", str(shared_image_folder), batch_size=9).check_trainer(trainers[0])
    with pytest.raises(spp_cls.UserError, match="9 validation images do not give one to each of 12 processes; add"):
        ImageNetDataModule("imagefolder", str(shared_image_folder), batch_size=12).check_trainer(trainers[1])


def test_images_that_do_not_fit_on_the_device(shared_image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty

    def empty(shape: Any, **options: Any) -> torch.Tensor:
        if np.prod(shape) > 10**6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ValueError, match=r"24 images at min side 128 take 0\.0 GB, more than cpu has"):
        data_of(shared_image_folder, cache="device").train_dataloader()
