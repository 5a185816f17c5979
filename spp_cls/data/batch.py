"""Samples as the workers make them, batches of them, and what the device does to a batch."""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from spp_cls.data.decode import Pixels


class Sample(NamedTuple):
    """One image from a worker.

    `pixels` are H x W x 3; `flip` and `colour` (added to red, green and blue) are left for the device to apply.
    `replaced` tells of each image that could not be decoded and that this one stands in for.
    """

    pixels: Pixels
    label: int
    image_index: int
    flip: bool = False
    colour: NDArray[np.float32] = np.zeros(3, np.float32)
    replaced: tuple[str, ...] = ()


class Batch(NamedTuple):
    """N samples. `images` are N x 3 x H x W, uint8 from the workers and float once the device has had them."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    flips: Tensor
    colours: Tensor
    replaced: list[str]


def collate(samples: Iterable[Sample], count: int) -> Batch:
    """Put `count` samples of one shape into a batch; its images are channels_last, as the pixels were.

    Samples are taken one at a time, and the pixels of each go at once to where the batch stays: in a worker process
    the memory that it shares with the main process.
    """
    rest = iter(samples)
    first = next(rest)
    images = _shared_bytes((count, *first.pixels.shape))
    pixels = images.numpy()
    labels, indices, flips, colours = [], [], [], []
    replaced: list[str] = []
    for number, sample in enumerate(chain([first], rest)):
        pixels[number] = sample.pixels
        labels.append(sample.label)
        indices.append(sample.image_index)
        flips.append(sample.flip)
        colours.append(sample.colour)
        replaced += sample.replaced
    return Batch(
        images.permute(0, 3, 1, 2),
        torch.tensor(labels),
        torch.tensor(indices),
        torch.tensor(flips),
        torch.from_numpy(np.stack(colours)),
        replaced,
    )


def _shared_bytes(shape: tuple[int, ...]) -> Tensor:
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As torch's own collate function does; a tensor that is not shared would be copied once more on its way.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


@cache
def _mean_on(device: torch.device, mean: tuple[float, ...]) -> Tensor:
    # Copied to a GPU once: each copy waits until the GPU has done all that it was given.
    return torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def minus_mean(images: Tensor, mean: Sequence[float]) -> Tensor:
    """Turn N x 3 x H x W pixels of 0..255 into the float32 input of a network."""
    return images.float() - _mean_on(images.device, tuple(mean))


def finish_on_device(batch: Batch, mean: Sequence[float], size: int) -> Batch:
    """Flip, alter colours, subtract the mean and resize to size x size pixels, on the device of the batch.

    The images of 180 are those of 224 resized, not smaller crops: section 2.3 of the paper.
    """
    images = torch.where(batch.flips.view(-1, 1, 1, 1), batch.images.flip(-1), batch.images)
    images = minus_mean(images, mean) + batch.colours.view(-1, 3, 1, 1)
    if images.shape[-1] != size:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return batch._replace(images=images)
