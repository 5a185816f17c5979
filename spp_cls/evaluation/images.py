"""Test images in the sizes and crops that a set of views needs, batched by shape."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spp_cls.data.crops import Position, crop_at, resize, resized_shape
from spp_cls.data.dataset import read_image
from spp_cls.data.decode import Pixels
from spp_cls.data.loader import told
from spp_cls.data.sources import ImageSource
from spp_cls.evaluation.views import REFERENCE, View


class Cut(NamedTuple):
    """What is taken of an image: all of it (position None) or a crop, after a resize to `min_side` pixels."""

    min_side: int
    position: Position | None


class ViewBatch(NamedTuple):
    """N test images: each cut as uint8 N x 3 x h x w, and their labels and places in the source."""

    images: dict[Cut, Tensor]
    labels: Tensor
    indices: Tensor


ViewSample = tuple[dict[Cut, Pixels], int, int]


def min_side(view: View, input_size: int) -> int:
    """Pixels that the shorter side has in a view, for a network trained on crops of `input_size`."""
    return round(view.scale * input_size / REFERENCE)


def cut_of(view: View, input_size: int) -> Cut:
    """Return what a view is computed from; its flipped twin has the same."""
    return Cut(min_side(view, input_size), None if view.on_maps else view.position)


class ViewedImages(Dataset[ViewSample]):
    """The cuts of each image, which is read and decoded once."""

    def __init__(self, files: ImageSource, cuts: Collection[Cut], window: int) -> None:
        self.files = files
        self.cuts = sorted(cuts, key=str)
        self.window = window

    def __getitem__(self, index: int) -> ViewSample:
        pixels = read_image(self.files, index)
        resized = {side: resize(pixels, side) for side in {cut.min_side for cut in self.cuts}}
        cuts = {
            cut: resized[cut.min_side]
            if cut.position is None
            else crop_at(resized[cut.min_side], cut.position, self.window)
            for cut in self.cuts
        }
        return cuts, int(self.files.labels[index]), index


def _collate(samples: Sequence[ViewSample]) -> ViewBatch:
    images = {
        cut: torch.from_numpy(np.stack([sample[0][cut] for sample in samples])).permute(0, 3, 1, 2)
        for cut in samples[0][0]
    }
    labels, indices = (torch.tensor([sample[part] for sample in samples]) for part in (1, 2))
    return ViewBatch(images, labels, indices)


def batches_by_shape(
    files: ImageSource, indices: Sequence[int], cuts: Collection[Cut], window: int, max_pixels: int
) -> list[list[int]]:
    """Group images whose cuts have the same shapes, so many together that no cut of a batch has over `max_pixels`.

    A single image may have more. Sizes are read from the headers alone, and only if whole images are needed.
    """
    whole = [cut.min_side for cut in cuts if cut.position is None]
    groups: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    if whole:
        with ThreadPoolExecutor() as pool:
            sizes = pool.map(files.size, indices)
            for index, (width, height) in zip(indices, sizes, strict=True):
                groups[tuple(resized_shape(width, height, side) for side in whole)].append(index)
    else:
        groups[()] = list(indices)
    batches = []
    for shapes, members in groups.items():
        largest = max([width * height for width, height in shapes], default=window * window)
        count = max(1, max_pixels // largest)
        batches += [members[start : start + count] for start in range(0, len(members), count)]
    return batches


def view_batches(
    files: ImageSource,
    indices: Sequence[int],
    cuts: Collection[Cut],
    window: int,
    max_pixels: int,
    num_workers: int,
) -> Iterator[ViewBatch]:
    """Read the images of `indices` once each, in batches of one shape.

    Raises:
        UndecodableImageError: an image is damaged.
    """
    batches = batches_by_shape(files, indices, cuts, window, max_pixels)
    dataset = ViewedImages(files, cuts, window)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    return told(iter(loader), files.root)
