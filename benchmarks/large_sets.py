"""Start-up, memory and listing of very large generated data sets, for benchmarks/loader.py."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from spp_cls.data.loading.dataset import TrainingCrops
from spp_cls.data.loading.loader import BatchLoader
from spp_cls.data.loading.sampler import TrainingSampler
from spp_cls.data.sources import open_source
from spp_cls.data.transforms.augmentation import PaperAugmentation


class SmallImages:
    """Generated images of 8 x 8 pixels, for sets of very many."""

    root = Path("generated")
    class_names = tuple(f"class{number:03d}" for number in range(1000))

    def __init__(self, length: int) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
        self.data = [simplejpeg.encode_jpeg(pixels) for pixels in noise]
        self.labels = np.arange(length, dtype=np.int64) % 1000

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Name of an image."""
        return f"{self.class_names[index % 1000]}/image_{index:07d}.JPEG"

    def location(self, index: int) -> str:
        """Return the name of an image."""
        return self.name(index)

    def read(self, index: int) -> bytes:
        """Bytes of an image."""
        return self.data[index % len(self.data)]

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image."""
        return 8, 8


def resident() -> float:
    """Return the resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


def start_up(root: Path, batch: int, crop: int) -> dict[str, Any]:
    """Time the first batch of a packed set in this process, and its memory then and after each of 20 short epochs."""
    before, start = resident(), time.perf_counter()
    images = open_source("packed", root, "train")
    sampler = TrainingSampler(len(images), batch, seed=0)
    dataset = TrainingCrops(images, crop, PaperAugmentation(), seed=0)
    loader = BatchLoader(dataset, batch, sampler, True, 2, timeout=600, root=root)
    next(iter(loader))
    seconds = time.perf_counter() - start
    first = resident() - before
    after = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for _, number in zip(loader, range(20), strict=False):
            assert number < 20
        after.append(resident() - before)
    return {"seconds": seconds, "megabytes": first, "megabytes_after_epochs": after}


def listing(folder: Path, names: int) -> dict[str, float]:
    """Time the listing of an image folder: the first time, from the list that was kept, and after a change."""
    classes = 1000
    for number in range(classes):
        inside = folder / f"train/n{number:08d}"
        inside.mkdir(parents=True)
        for image in range(names // classes):
            (inside / f"n{number:08d}_{image}.JPEG").touch()
    # What has just changed is not kept.
    time.sleep(3)
    seconds = {}
    for case in ("first", "kept", "after a change"):
        if case == "after a change":
            (folder / "train/n00000000/new.JPEG").touch()
        start = time.perf_counter()
        assert len(open_source("imagefolder", folder, "train")) == names + (case == "after a change")
        seconds[case] = time.perf_counter() - start
    return seconds
