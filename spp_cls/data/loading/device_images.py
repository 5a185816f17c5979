"""A data set kept decoded in the memory of the device, for data sets that fit there."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from spp_cls.cli.errors import UserError
from spp_cls.data.loading.batch import Batch, make_batch
from spp_cls.data.loading.dataset import TrainingCrops, read_image
from spp_cls.data.loading.loader import raise_worker_errors
from spp_cls.data.loading.sampler import EpochIndex
from spp_cls.data.sources.source import ImageSource
from spp_cls.data.transforms.augmentation import Augmentation
from spp_cls.data.transforms.crops import compute_resized_shape, resize
from spp_cls.data.transforms.decode import Data, Pixels, UndecodableImageError


class ResizedImages(Dataset[Pixels | str]):
    """Each image at a min side, or the reason why it cannot be decoded."""

    def __init__(self, source: ImageSource, min_side: int) -> None:
        self.source = source
        self.min_side = min_side

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Pixels | str:
        try:
            return resize(read_image(self.source, index, self.min_side), self.min_side)
        except UndecodableImageError as error:
            return str(error)


class DeviceImages:
    """All images of a source at a min side, as uint8, one after the other in one buffer on a device.

    Raises:
        UserError: if they do not fit, an image is larger than `source.size` says, a worker dies, or an image takes over
            `timeout` seconds (0: no limit).
    """

    def __init__(
        self, source: ImageSource, min_side: int, device: torch.device, num_workers: int, timeout: float = 0
    ) -> None:
        self.source = source
        self.damaged: dict[int, str] = {}
        self.sizes = np.zeros((len(source), 2), np.int64)
        room = _count_pixels(source, min_side)
        self.starts = np.cumsum(room) - room
        try:
            self.pixels = torch.empty((int(room.sum()), 3), dtype=torch.uint8, device=device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            gigabytes = 3 * room.sum() / 1e9
            raise UserError(
                f"{len(source):,} images at min side {min_side} take {gigabytes:.1f} GB, more than {device} has; "
                "set data.cache=none"
            ) from error
        timeout = timeout if num_workers else 0
        loader = DataLoader(ResizedImages(source, min_side), batch_size=None, num_workers=num_workers, timeout=timeout)
        images = raise_worker_errors(iter(loader), source.root, timeout)
        bar = tqdm(images, total=len(source), unit=" images", desc="Decoding", file=sys.stdout)
        for index, image in enumerate(bar):
            if isinstance(image, str) or not room[index]:
                reason = f"cannot decode the image {source.location(index)}: its header is damaged"
                self.damaged[index] = image if isinstance(image, str) else reason
                continue
            height, width = image.shape[:2]
            if height * width > room[index]:
                raise UserError(
                    f"{source.location(index)} is {width} x {height} pixels at min side {min_side}, more than the "
                    "size() of its source leaves room for; mend size(), or set data.cache=none"
                )
            self.sizes[index] = width, height
            self.pixels[self.starts[index] : self.starts[index] + width * height] = image.reshape(-1, 3).to(device)

    def image(self, index: int) -> Tensor:
        """Return an image, H x W x 3: a view of the buffer.

        Raises:
            UndecodableImageError: if it could not be decoded.
        """
        if index in self.damaged:
            raise UndecodableImageError(self.damaged[index])
        width, height = self.sizes[index]
        return self.pixels[self.starts[index] : self.starts[index] + width * height].view(height, width, 3)


def _count_pixels(source: ImageSource, min_side: int) -> NDArray[np.int64]:
    """Return the pixels to reserve for each image, from its header; 0 if that is damaged."""

    def count(index: int) -> int:
        try:
            width, height = compute_resized_shape(*source.size(index), min_side)
        except UndecodableImageError:
            return 0
        # Decoding at a fraction of the size rounds, which can make the longer side one pixel longer.
        return (width + 1) * (height + 1)

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(count, range(len(source)))), np.int64)


class CachedCrops(TrainingCrops):
    """The batches of TrainingCrops, cut on the device out of images that are there already."""

    def __init__(self, images: DeviceImages, crop: int, augmentation: Augmentation, seed: int) -> None:
        super().__init__(images.source, crop, augmentation, seed)
        self.images = images

    def __getitems__(self, epoch_indices: Sequence[EpochIndex]) -> Batch:
        """Make a batch, which a DataLoader returns as it is."""
        samples = [self._make_sample(each) for each in epoch_indices]
        windows: list[Any] = [sample.pixels for sample in samples]
        return make_batch(torch.stack(windows), [sample[1:] for sample in samples])

    def _load(self, index: int, encoded: Data | None) -> Any:
        # A tensor, of which the augmentation only cuts a window.
        return self.images.image(index)
