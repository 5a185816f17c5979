"""A data set kept decoded in the memory of the device that trains on it, for sets that fit there."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from spp_cls.data.batch import Batch
from spp_cls.data.crops import corner_of, resize, resized_shape
from spp_cls.data.dataset import read_image
from spp_cls.data.decode import Pixels, UndecodableImageError
from spp_cls.data.draws import draws_of_epoch
from spp_cls.data.sampler import EpochIndex
from spp_cls.data.sources import ImageSource
from spp_cls.errors import UserError


class ResizedImages(Dataset[Pixels | str]):
    """Each image at a min side, or the reason why it cannot be decoded."""

    def __init__(self, images: ImageSource, min_side: int) -> None:
        self.images = images
        self.min_side = min_side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pixels | str:
        try:
            return resize(read_image(self.images, index, self.min_side), self.min_side)
        except UndecodableImageError as error:
            return str(error)


class DeviceImages:
    """All images of a source at a min side, as uint8, one after the other in one buffer on a device.

    Raises:
        UserError: they do not fit.
    """

    def __init__(self, images: ImageSource, min_side: int, device: torch.device, num_workers: int) -> None:
        self.device = device
        self.damaged: dict[int, str] = {}
        self.sizes = np.zeros((len(images), 2), np.int64)
        room = self._room(images, min_side)
        self.starts = np.cumsum(room) - room
        try:
            self.pixels = torch.empty((int(room.sum()), 3), dtype=torch.uint8, device=device)
        except RuntimeError as error:  # of which torch.OutOfMemoryError is one
            gigabytes = 3 * room.sum() / 1e9
            raise UserError(
                f"{len(images):,} images at min side {min_side} take {gigabytes:.1f} GB, more than {device} has; "
                "set data.cache=none"
            ) from error
        loader = DataLoader(ResizedImages(images, min_side), batch_size=None, num_workers=num_workers)
        for index, image in enumerate(tqdm(loader, unit=" images", desc="Decoding", file=sys.stdout)):
            if isinstance(image, str):
                self.damaged[index] = image
                continue
            height, width = image.shape[:2]
            self.sizes[index] = width, height
            self.pixels[self.starts[index] : self.starts[index] + width * height] = image.reshape(-1, 3).to(device)

    def _room(self, images: ImageSource, min_side: int) -> NDArray[np.int64]:
        """Return the pixels to set aside for each image; none for one whose header is damaged."""

        def room(index: int) -> int:
            try:
                width, height = resized_shape(*images.size(index), min_side)
            except UndecodableImageError:
                return 0
            # Decoding at a part of the size rounds, which can make the longer side a pixel longer.
            return (width + 1) * (height + 1)

        with ThreadPoolExecutor() as pool:
            return np.array(list(pool.map(room, range(len(images)))), np.int64)

    def check(self, index: int) -> None:
        """Raise UndecodableImageError if an image could not be decoded."""
        if index in self.damaged:
            raise UndecodableImageError(self.damaged[index])

    def windows(self, indices: Sequence[int], corners: Sequence[tuple[int, int]], side: int) -> Tensor:
        """Cut a square window out of each image, with (left, top) as its corner: N x 3 x side x side, channels_last."""
        lefts, tops = np.array(corners, np.int64).T
        widths = self.sizes[list(indices), 0]
        first = torch.from_numpy(self.starts[list(indices)] + tops * widths + lefts).to(self.device)
        steps = torch.arange(side, device=self.device)
        rows = first[:, None] + steps * torch.from_numpy(widths).to(self.device)[:, None]
        return self.pixels[rows[:, :, None] + steps].permute(0, 3, 1, 2)


class CachedCrops(Dataset[Batch]):
    """The batches of TrainingCrops, cut on the device out of images that are there already."""

    def __init__(
        self, cached: DeviceImages, labels: NDArray[np.int64], crop: int, seed: int, colour_deviation: float
    ) -> None:
        self.cached = cached
        self.labels = labels
        self.crop = crop
        self.seed = seed
        self.colour_deviation = colour_deviation

    def __getitems__(self, epoch_indices: Sequence[EpochIndex]) -> Batch:
        """Make a batch, which a DataLoader then takes as it is."""
        indices, corners, flips, colours = [], [], [], []
        replaced: list[str] = []
        for epoch, wanted in epoch_indices:
            draws = draws_of_epoch(self.seed, epoch, len(self.labels), self.colour_deviation)
            _, index, messages = draws.first_decodable(self.cached.check, wanted)
            width, height = self.cached.sizes[index]
            corners.append(corner_of(draws.position(wanted), int(width), int(height), self.crop))
            indices.append(index)
            flips.append(draws.flips[wanted])
            colours.append(draws.colours[wanted])
            replaced += messages
        device = self.cached.device
        return Batch(
            self.cached.windows(indices, corners, self.crop),
            torch.from_numpy(self.labels[indices]).to(device),
            torch.tensor(indices, device=device),
            torch.from_numpy(np.array(flips)).to(device),
            torch.from_numpy(np.stack(colours)).to(device),
            replaced,
        )
