"""Images kept decoded on a device: what a source may say wrongly, and failures of the workers that decode."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from spp_cls import UserError
from spp_cls.data import ImageNetDataModule
from spp_cls.data.loading.device_images import DeviceImages
from spp_cls.data.sources import open_source
from spp_cls.data.sources.files import ImageFiles
from spp_cls.data.transforms.decode import UndecodableImageError
from tests.conftest import load_epochs

CPU = torch.device("cpu")


class OddFiles(ImageFiles):
    """Image files that say or do something wrong."""

    trouble = ""

    def size(self, index: int) -> tuple[int, int]:
        if self.trouble == "header" and index == 1:
            raise UndecodableImageError("no header")
        return (40, 40) if self.trouble == "size" else super().size(index)

    def read(self, index: int) -> bytes:
        if get_worker_info() and self.trouble == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if get_worker_info() and self.trouble == "hangs":
            # Three times its limit; what is left of it is waited for at the end of the test.
            time.sleep(3)
        return super().read(index)


def open_odd(root: Path, split: str) -> Any:
    files = open_source("imagefolder", root, split)  # type: ignore[arg-type]
    assert isinstance(files, ImageFiles)
    return OddFiles(files.root, files.names, files.labels, files.class_names)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("dies", r"a worker process died \(Killed\); .*smaller data\.num_workers"),
        ("hangs", r"no batch came for 1 seconds: reading .*train hangs; .*data\.timeout"),
    ],
)
def test_failures_of_workers_end_in_one_line(
    shared_image_folder: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, message: str
) -> None:
    monkeypatch.setattr(OddFiles, "trouble", trouble)
    # Long enough for a dead worker to be found dead.
    data = ImageNetDataModule(
        f"{__name__}.open_odd", str(shared_image_folder), 6, 1, crop=56, cache="device",
        timeout=1 if trouble == "hangs" else 5,
    )  # fmt: skip
    with pytest.raises(UserError, match=message) as error:
        load_epochs(data, 1)
    assert "\n" not in str(error.value)


def test_a_source_that_says_a_wrong_size(shared_image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OddFiles, "trouble", "size")
    with pytest.raises(
        UserError, match=r"0\.jpg is 80 x 64 pixels at min side 64, more than the size\(\) of its source"
    ):
        DeviceImages(open_odd(shared_image_folder, "train"), 64, CPU, 0)


def test_an_image_of_an_absurd_shape_takes_no_memory(image_folder: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(image_folder / "train/blue/0.jpg")
    images = DeviceImages(open_source("imagefolder", image_folder, "train"), 64, CPU, 0)
    with pytest.raises(UndecodableImageError, match=r"0\.jpg: 60000 x 1 pixels, over 256 times longer than wide"):
        images.image(0)
    # At min side 64 it would have 3,840,000 x 64 pixels; the others have a few thousand each.
    assert images.pixels.numel() < 10_000_000


def test_an_image_whose_header_alone_is_damaged_is_left_out(
    shared_image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DeviceImages(open_source("imagefolder", shared_image_folder, "train"), 64, CPU, 0)
    monkeypatch.setattr(OddFiles, "trouble", "header")
    images = DeviceImages(open_odd(shared_image_folder, "train"), 64, CPU, 0)
    for index in {*range(24)} - {1}:
        assert torch.equal(images.image(index), whole.image(index))
    with pytest.raises(UndecodableImageError, match=r"1\.jpg: its header is damaged"):
        images.image(1)
