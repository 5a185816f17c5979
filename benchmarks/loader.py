"""The speed of the data path: python benchmarks/loader.py data.root=FOLDER [key=value ...].

    data.root       an image folder of photographs as shipped, such as a sample of ImageNet; its train split is read
    repeats=7       turns of each side, whose medians count
    entries=1000000 images of the generated packed set on which start-up and growth are measured
    epochs=20       of it, cut short, over which growth is measured
    out=FILE.json   where to write the figures

All sides read the same files, make the same kind of uint8 crops (min side 256, one of five windows of 224, batches of
64) and take turns in one run. Flip and colour are left to the device by ours, and out of the others. One core: all
in one process on one thread. Two cores: two workers of each DataLoader. The ceiling is bare decoding of the same
bytes, held in memory, by the fastest decoder.
"""

import io
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import timm.data
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2_functional

from spp_cls.command import one_line, options
from spp_cls.data.crops import FIVE, corner_of
from spp_cls.data.dataset import TrainingCrops
from spp_cls.data.decode import decode
from spp_cls.data.loader import BatchLoader
from spp_cls.data.pack import Settings, pack, required, whole_number
from spp_cls.data.sampler import TrainingSampler
from spp_cls.data.sources import ImageFiles, ImageSource, open_source
from spp_cls.rows import hardware

BATCH = 64
MIN_SIDE, CROP = 256, 224
# Each turn goes so many times through the images.
PASSES = 4

Turn = Callable[[], Any]


def interleaved(turns: dict[str, Turn], repeats: int) -> dict[str, float]:
    """Return the median seconds of each turn; they alternate, after one round that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(repeats + 1):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def decoders(images: list[bytes], repeats: int) -> dict[str, float]:
    """Measure each decoder that is installed, images a second on one core."""
    each: dict[str, Callable[[bytes], Any]] = {
        "simplejpeg": simplejpeg.decode_jpeg,
        "torchvision": lambda data: decode_jpeg(_as_tensor(data), ImageReadMode.RGB),
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        "decode.py": lambda data: decode(data, ""),
    }
    try:
        from torchcodec.decoders import decode_image

        each["torchcodec"] = lambda data: decode_image(_as_tensor(data))
    except ModuleNotFoundError:
        pass

    def turn(one: Callable[[bytes], Any]) -> Turn:
        return lambda: [one(data) for data in images]

    seconds = interleaved({name: turn(one) for name, one in each.items()}, repeats)
    return {name: len(images) / value for name, value in seconds.items()}


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(data, dtype=torch.uint8)


def five_crop(image: Image.Image) -> Image.Image:
    """Cut one of the five windows out of a resized image, as ours draws them."""
    left, top = corner_of(random.choice(FIVE), *image.size, CROP)
    return v2_functional.crop(image, top, left, CROP, CROP)


def ours(images: ImageSource, num_workers: int) -> Turn:
    """Go through training batches as the data module makes them."""
    dataset = TrainingCrops(images, CROP, seed=0, colour_deviation=0.1)
    sampler = TrainingSampler(len(images), BATCH, seed=0)
    return _turn(BatchLoader(dataset, BATCH, sampler, True, num_workers, timeout=600, place=images.root))


def torchvision_files(folder: Path, num_workers: int) -> Turn:
    """ImageFolder, Pillow and v2 transforms."""
    transform = v2.Compose([v2.Resize(MIN_SIDE), five_crop, v2.PILToTensor()])
    dataset = ImageFolder(folder, transform)
    dataset.samples *= PASSES
    keep = num_workers > 0
    return _turn(DataLoader(dataset, BATCH, shuffle=True, num_workers=num_workers, persistent_workers=keep))


def timm_files(folder: Path, num_workers: int) -> Turn:
    """timm's create_loader; its transforms, collation and workers, without the normalisation that follows."""
    dataset = timm.data.create_dataset("", root=str(folder))
    dataset.reader.samples *= PASSES
    loader = timm.data.create_loader(
        dataset, CROP, BATCH, is_training=True, num_workers=num_workers, device=torch.device("cpu")
    )
    dataset.transform = v2.Compose([v2.Resize(MIN_SIDE), five_crop, timm.data.transforms.ToNumpy()])
    return _turn(loader.loader)


def _turn(loader: Iterable[Any]) -> Turn:
    def turn() -> None:
        for batch in loader:
            images = batch[0]
            assert images.dtype == torch.uint8
            assert images.shape[1:] == (3, CROP, CROP)

    return turn


def repeated(images: ImageFiles, times: int) -> ImageFiles:
    """Return a source that has each image so many times."""
    return ImageFiles(images.root, np.tile(images.names, times), np.tile(images.labels, times), images.class_names)
