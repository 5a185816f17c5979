"""Test images in the sizes and crops that views need, in batches of one shape."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spp_cls.cli.errors import UserError
from spp_cls.data.loading.dataset import read_image
from spp_cls.data.loading.loader import raise_worker_errors
from spp_cls.data.sources import ImageSource
from spp_cls.data.transforms.crops import Position, compute_resized_shape, crop_at, resize, warp
from spp_cls.data.transforms.decode import Pixels
from spp_cls.evaluation.protocols import REFERENCE_SIDE, View

# Pixels of one pass through a network, where nothing else is said: the memory of a small GPU, and a busy one.
MAX_PIXELS = 8_000_000

# Headers that a worker reads before it answers.
_HEADERS_OF_BATCH = 64


class Cut(NamedTuple):
    """What a view is computed from: an image resized to `min_side`, or a crop of it at a position.

    A warped cut is the image resized to min_side x min_side, whatever its shape.
    """

    min_side: int
    position: Position | None
    is_warped: bool = False


class ViewBatch(NamedTuple):
    """N test images: each cut as uint8 N x 3 x h x w, their labels, and their indices in the source."""

    images: dict[Cut, Tensor]
    labels: Tensor
    indices: Tensor


ViewSample = tuple[dict[Cut, Pixels], int, int]


def get_min_side(view: View, input_size: int) -> int:
    """Return the pixels of the shorter side in a view, for a network trained on crops of `input_size`."""
    return round(view.scale * input_size / REFERENCE_SIDE)


def get_cut(view: View, input_size: int) -> Cut:
    """Return what a view is computed from; its flipped twin has the same.

    Raises:
        UserError: if the view is a window that is larger than the image.
    """
    if view.position is not None and view.scale < REFERENCE_SIDE:
        raise UserError(
            f"a window of {REFERENCE_SIDE} is larger than an image at scale {view.scale}; give {REFERENCE_SIDE} or more"
        )
    return Cut(get_min_side(view, input_size), None if view.on_maps else view.position, view.is_warped)


def get_cuts(views: Collection[View], input_size: int) -> list[Cut]:
    """Return what views are computed from, each once."""
    return sorted({get_cut(view, input_size) for view in views}, key=str)


def cut_image(
    pixels: Pixels, cuts: Collection[Cut], input_size: int, interpolation: str = "bilinear"
) -> dict[Cut, Pixels]:
    """Make the cuts of one decoded image, H x W x 3."""
    resized = {
        side: resize(pixels, side, interpolation) for side in {cut.min_side for cut in cuts if not cut.is_warped}
    }

    def make(cut: Cut) -> Pixels:
        if cut.is_warped:
            return warp(pixels, cut.min_side, interpolation)
        image = resized[cut.min_side]
        return image if cut.position is None else crop_at(image, cut.position, input_size)

    return {cut: make(cut) for cut in cuts}


def cut_images(
    images: Sequence[Pixels], views: Collection[View], input_size: int, interpolation: str = "bilinear"
) -> dict[Cut, Tensor]:
    """Make what `views` of N decoded images of one shape, each H x W x 3, are computed from: uint8 N x 3 x h x w."""
    cuts = get_cuts(views, input_size)
    return _stack([cut_image(pixels, cuts, input_size, interpolation) for pixels in images])


def _stack(samples: Sequence[dict[Cut, Pixels]]) -> dict[Cut, Tensor]:
    return {
        cut: torch.from_numpy(np.stack([sample[cut] for sample in samples])).permute(0, 3, 1, 2) for cut in samples[0]
    }


class ViewedImages(Dataset[ViewSample]):
    """The cuts of each image, which is read and decoded once."""

    def __init__(self, source: ImageSource, cuts: Collection[Cut], input_size: int, interpolation: str) -> None:
        self.source = source
        self.cuts = cuts
        self.input_size = input_size
        self.interpolation = interpolation

    def __getitem__(self, index: int) -> ViewSample:
        pixels = read_image(self.source, index)
        return cut_image(pixels, self.cuts, self.input_size, self.interpolation), int(self.source.labels[index]), index

    def collate(self, samples: Sequence[ViewSample]) -> ViewBatch:
        """Make a batch of images whose cuts have the same shapes.

        Raises:
            UserError: if an image has another size than the source says.
        """
        cuts, labels, indices = zip(*samples, strict=True)
        for sample, index in zip(cuts, indices, strict=True):
            if any(sample[cut].shape != cuts[0][cut].shape for cut in sample):
                raise UserError(
                    f"{self.source.location(index)} or {self.source.location(indices[0])} has another size than its "
                    "data set says; pack it again"
                )
        return ViewBatch(_stack(cuts), torch.tensor(labels), torch.tensor(indices))


class _ImageSizes(Dataset[tuple[int, int]]):
    """The width and height of each image, from its header."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.source.size(index)


def group_by_shape(
    source: ImageSource,
    indices: Sequence[int],
    cuts: Collection[Cut],
    input_size: int,
    max_pixels: int,
    num_workers: int = 0,
    timeout: float = 0,
) -> list[list[int]]:
    """Group images whose cuts have the same shapes into batches; no cut of a batch has over `max_pixels`.

    A single image may have more. Sizes are read from the headers alone, and only if whole images are needed.

    Raises:
        UserError: if workers take longer than `timeout` seconds (0: any time) for the headers of a batch.
    """
    sides = [cut.min_side for cut in cuts if cut.position is None and not cut.is_warped]
    squares = [cut.min_side**2 for cut in cuts if cut.is_warped]
    groups: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    if sides:
        # In processes, as a thread that hangs in a read cannot be ended.
        loader = DataLoader(
            _ImageSizes(source),
            batch_size=_HEADERS_OF_BATCH,
            sampler=indices,
            collate_fn=list,
            num_workers=num_workers,
            timeout=timeout if num_workers else 0,
        )
        sizes = chain.from_iterable(raise_worker_errors(iter(loader), source.root, timeout))
        for index, (width, height) in zip(indices, sizes, strict=True):
            groups[tuple(compute_resized_shape(width, height, side) for side in sides)].append(index)
    else:
        groups[()] = list(indices)
    batches = []
    for shapes, members in groups.items():
        largest = max([*(width * height for width, height in shapes), *squares], default=input_size * input_size)
        count = max(1, max_pixels // largest)
        batches += [members[start : start + count] for start in range(0, len(members), count)]
    return batches


def load_cuts(
    source: ImageSource,
    indices: Sequence[int],
    cuts: Collection[Cut],
    input_size: int,
    interpolation: str,
    max_pixels: int,
    num_workers: int,
    timeout: float = 0,
) -> Iterator[ViewBatch]:
    """Read the images of `indices` once each and make their cuts, in batches of one shape; crops are of `input_size`.

    Raises:
        UndecodableImageError: if an image is damaged.
        UserError: if workers take longer than `timeout` seconds (0: any time) for a batch.
    """
    images = ViewedImages(source, cuts, input_size, interpolation)
    loader = DataLoader(
        images,
        batch_sampler=group_by_shape(source, indices, cuts, input_size, max_pixels, num_workers, timeout),
        collate_fn=images.collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        timeout=timeout if num_workers else 0,
    )
    return raise_worker_errors(iter(loader), source.root, timeout)
