"""Samples, batches of them, and what the device does to a batch."""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from spp_cls.data.transforms.augmentation import Augmentation
from spp_cls.data.transforms.decode import Pixels
from spp_cls.models.net import ImageSize, get_shape


class Sample(NamedTuple):
    """One image from a worker.

    `pixels` are H x W x 3; `flip` and `colour_shift` (added to red, green and blue) are left to the device. `replaced`
    has a message for each image that could not be decoded and that this one replaces.
    """

    pixels: Pixels
    label: int
    image_index: int
    flip: bool = False
    colour_shift: NDArray[np.float32] = np.zeros(3, np.float32)
    replaced: tuple[str, ...] = ()


class Batch(NamedTuple):
    """N samples. `images` are N x 3 x H x W: uint8 from the workers, float after finish_on_device.

    Where images were mixed, `targets` are N x classes shares, and `labels` those of the larger share.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    flips: Tensor
    colour_shifts: Tensor
    replaced: list[str]
    targets: Tensor | None = None


def collate(samples: Iterable[Sample], count: int) -> Batch:
    """Make a batch of `count` samples of one shape; its images are channels_last, as the pixels are.

    Samples are taken one at a time, and the pixels of each are copied at once to their place in the batch: in a worker
    process, the memory that it shares with the main process.
    """
    rest = iter(samples)
    first = next(rest)
    images = _allocate_shared((count, *first.pixels.shape))
    pixels = images.numpy()
    parameters = []
    for number, sample in enumerate(chain([first], rest)):
        pixels[number] = sample.pixels
        parameters.append(sample[1:])
    return make_batch(images, parameters)


def make_batch(pixels: Tensor, parameters: Iterable[tuple[Any, ...]]) -> Batch:
    """Make a batch of N x H x W x 3 pixels and what the N samples hold beside them, on the device of the pixels."""
    *columns, replaced = zip(*parameters, strict=True)
    labels, indices, flips, colour_shifts = (
        _copy_unless_there(torch.from_numpy(np.array(column)), pixels.device) for column in columns
    )
    messages = [message for several in replaced for message in several]
    return Batch(pixels.permute(0, 3, 1, 2), labels, indices, flips, colour_shifts, messages)


def _copy_unless_there(values: Tensor, device: torch.device) -> Tensor:
    # From pinned memory, as a GPU would first finish its queue for another copy.
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _allocate_shared(shape: tuple[int, ...]) -> Tensor:
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As torch's own collate function does; a tensor in other memory would be copied once more on its way.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


@cache
def _copy_to_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Cached, as each copy to a GPU waits until the GPU has finished its queue; for autograd too, whoever asks first.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], colour_shift: Tensor | None = None
) -> Tensor:
    """Turn N x C x H x W pixels of 0..255 into the float32 input of a network: (pixels + colour shift - mean) / std.

    `colour_shift` has N x C values.
    """
    values = images.float() - _copy_to_device(tuple(mean), images.device)
    if colour_shift is not None:
        values = values + colour_shift[:, :, None, None]
    # The paper's std of 1 costs nothing.
    return values if set(std) == {1.0} else values / _copy_to_device(tuple(std), images.device)


def finish_on_device(batch: Batch, mean: Sequence[float], std: Sequence[float], size: ImageSize) -> Batch:
    """Flip, shift colours, normalise and resize to `size`, on the device of the batch.

    Images of 180 pixels are those of 224 resized, not smaller crops: section 2.3 of the paper.
    """
    images = torch.where(batch.flips.view(-1, 1, 1, 1), batch.images.flip(-1), batch.images)
    images = normalize(images, mean, std, batch.colour_shifts)
    shape = get_shape(size)
    if images.shape[-2:] != shape:
        images = F.interpolate(images, shape, mode="bilinear", antialias=True)
    return batch._replace(images=images)


def mix_batch(batch: Batch, augmentation: Augmentation, random: np.random.Generator, num_classes: int) -> Batch:
    """Mix a finished batch in pairs of neighbours: images 0 and 1 with each other, 2 and 3 and so on.

    The order of an epoch is random, and so are the pairs. No pair crosses two processes, as their chunks are even.
    """
    images, share = augmentation.mix_pairs(batch.images, _swap_neighbours(batch.images), random)
    if share == 1:
        return batch._replace(images=images)
    other_labels = _swap_neighbours(batch.labels)
    own, other = (F.one_hot(labels, num_classes).float() for labels in (batch.labels, other_labels))
    labels = batch.labels if share >= 0.5 else other_labels
    return batch._replace(images=images, labels=labels, targets=own * share + other * (1 - share))


def _swap_neighbours(values: Tensor) -> Tensor:
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
