"""Batches on their way to the device: the same as on the CPU, without the program waiting for the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback

import spp_cls
from spp_cls.data import ImageNetDataModule
from spp_cls.data.loading.batch import Batch, finish_on_device
from spp_cls.data.loading.loader import BatchLoader
from spp_cls.data.loading.sampler import ShardSampler
from tests.data.test_loader import Trouble
from tests.gpu.conftest import place_on
from tests.gpu.test_network import fit

pytestmark = pytest.mark.gpu


def open_data(root: Path, workers: int = 0, **options: Any) -> ImageNetDataModule:
    return ImageNetDataModule("imagefolder", str(root), 6, workers, crop=112, sizes=[112, 90], seed=3, **options)


def collect(data: ImageNetDataModule, device: torch.device) -> list[Batch]:
    """Take the batches of two epochs, copied while the device is behind the program by tens of milliseconds."""
    loader = data.train_dataloader()
    found = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            assert batch.images.device == device
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            if device.type == "cuda":
                # Were the memory of a batch used again too early, the copies below would be of a later one.
                torch.cuda._sleep(50_000_000)
            found.append(Batch(*(part.clone() for part in batch[:5]), batch.replaced))
    return found


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) == 8
    for a, b in zip(ours, theirs, strict=True):
        assert a.replaced == b.replaced
        for name, x, y in zip(Batch._fields, a[:5], b[:5], strict=False):
            assert torch.equal(x.cpu(), y), name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["none", "device"])
def test_batches_are_those_of_the_cpu(device: torch.device, image_folder: Path, workers: int, cache: str) -> None:
    (image_folder / "train/red/0.jpg").write_bytes(b"no image")
    data = place_on(open_data(image_folder, workers, cache=cache), device)
    loader = data.train_dataloader()
    assert loader.pin_memory == (device.type == "cuda" and cache == "none")
    assert_same(collect(data, device), collect(open_data(image_folder), torch.device("cpu")))


def test_validation_batches_are_those_of_the_cpu(device: torch.device, shared_image_folder: Path) -> None:
    ours = list(place_on(open_data(shared_image_folder, 1), device).val_dataloader())
    theirs = list(open_data(shared_image_folder).val_dataloader())
    assert len(ours) == len(theirs) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert a.images.device == device
        assert torch.equal(a.images.cpu(), b.images)
        assert torch.equal(a.labels.cpu(), b.labels)


@pytest.mark.parametrize("size", [112, 90])
def test_flips_colours_and_sizes(device: torch.device, shared_image_folder: Path, size: int) -> None:
    batch = next(iter(open_data(shared_image_folder).train_dataloader()))
    assert 0 < batch.flips.sum() < len(batch.flips)
    mean, std = (123.675, 116.28, 103.53), (57.6, 57.6, 57.6)
    placed = Batch(*(part.to(device) for part in batch[:5]), batch.replaced)
    ours, theirs = (finish_on_device(each, mean, std, size).images for each in (placed, batch))
    assert ours.shape == (6, 3, size, size)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    # Values are up to 2.3; resizing sums a dozen products in float32.
    torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-5)


def test_a_dead_worker_ends_in_one_line(device: torch.device) -> None:
    # On a GPU batches go through a thread that pins their memory.
    loader = BatchLoader(
        Trouble("dies"), 2, ShardSampler(4), False, num_workers=1, timeout=5, root="/far/away", device=device
    )
    with pytest.raises(spp_cls.UserError, match="a worker process died"):
        list(loader)


class ForbidWaiting(Callback):
    """Raise an error where steps of an epoch wait for the GPU, after the first one."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, index: int) -> None:
        if index == 1:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, index: int) -> None:
        self.steps += 1
        if index == trainer.num_training_batches - 1:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("cache", ["none", "device"])
def test_steps_do_not_wait_for_the_device(
    device: torch.device, accelerator: str, shared_image_folder: Path, cache: str
) -> None:
    if device.type == "cpu":
        pytest.skip("CUDA alone tells of waiting; tests/training/test_acceleration.py counts it on a CPU")
    watch = ForbidWaiting()
    try:
        fit(shared_image_folder, accelerator, watch, cache=cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.steps == 6
