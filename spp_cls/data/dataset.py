"""Data sets of samples: training crops, drawn anew each epoch, and the fixed centre crops of validation."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from spp_cls.data.batch import Batch, Sample, collate
from spp_cls.data.crops import CENTRE, FIVE, Position, crop_at, min_side_of, resize, resized_crop
from spp_cls.data.decode import Data, Pixels, UndecodableImageError, decode
from spp_cls.data.randomness import Purpose, generator
from spp_cls.data.sampler import EpochIndex
from spp_cls.data.sources import ImageSource
from spp_cls.errors import UserError

# Principal components of the RGB values of ImageNet's training pixels, 0..255, one a column, and the factor of each
# one's random coefficient: the values of Torch's ImageNet example (fb.resnet.torch) for AlexNet's colour altering.
COLOUR_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
COLOUR_SCALES = 255 * np.array([0.2175, 0.0188, 0.0045], np.float32)

# So many undecodable images in a row are no bad luck.
_MOST_REPLACEMENTS = 20


class Draw(NamedTuple):
    """What is random in a training crop, and the generator to draw another image from if its own is damaged."""

    position: Position
    flip: bool
    colour: NDArray[np.float32]
    random: np.random.Generator


def draw(seed: int, epoch: int, index: int, colour_deviation: float) -> Draw:
    """Draw the crop of an image in an epoch: a pure function (section 3.1.1)."""
    random = generator(Purpose.AUGMENTATION, seed, epoch, index)
    position = FIVE[random.integers(len(FIVE))]
    flip = bool(random.integers(2))
    colour = COLOUR_COMPONENTS @ (COLOUR_SCALES * random.normal(0, colour_deviation, 3).astype(np.float32))
    return Draw(position, flip, colour, random)


def read_image(images: ImageSource, index: int, min_side: int | None = None) -> Pixels:
    """Read and decode an image, H x W x 3; `min_side` is as in decode.

    Raises:
        UndecodableImageError: the file is damaged or no image.
        UserError: the file cannot be read.
    """
    return decode(images.read(index), images.place(index), min_side)


Image = TypeVar("Image")


def first_decodable(
    read: Callable[[int], Image], index: int, length: int, random: np.random.Generator
) -> tuple[Image, int, tuple[str, ...]]:
    """Read an image, or, as often as it is damaged, another draw out of `length`.

    Returns what was read, its index, and a message for each image that was damaged.
    """
    replaced: list[str] = []
    while True:
        try:
            return read(index), index, tuple(replaced)
        except UndecodableImageError as error:
            replaced.append(str(error))
            if len(replaced) == _MOST_REPLACEMENTS:
                raise UserError(f"{len(replaced)} images in a row are damaged; the last: {error}") from error
            index = int(random.integers(length))


class TrainingCrops(Dataset[Sample]):
    """One crop of an image, at one of five positions, flipped or not, its colours altered (section 3.1.1).

    Everything random in it is a function of (seed, epoch, index). An image that cannot be decoded is replaced by
    another draw, and the sample says so.
    """

    def __init__(self, images: ImageSource, crop: int, seed: int, colour_deviation: float) -> None:
        self.images = images
        self.crop = crop
        self.seed = seed
        self.colour_deviation = colour_deviation

    def __getitem__(self, epoch_index: EpochIndex) -> Sample:
        index = epoch_index[1]
        return self._sample(index, self.images.read(index), self._draw(epoch_index))

    def __getitems__(self, epoch_indices: Sequence[EpochIndex]) -> Batch:
        """Make a batch, which a DataLoader then takes as it is."""
        # Draws and reads in a row cost half of what they cost each after an image that has swept the caches.
        drawn = [self._draw(epoch_index) for epoch_index in epoch_indices]
        data = [self.images.read(index) for _, index in epoch_indices]
        indices = [index for _, index in epoch_indices]
        return collate(map(self._sample, indices, data, drawn), len(epoch_indices))

    def _draw(self, epoch_index: EpochIndex) -> Draw:
        return draw(self.seed, *epoch_index, self.colour_deviation)

    def _sample(self, wanted: int, data: Data, drawn: Draw) -> Sample:
        min_side = min_side_of(self.crop)

        def pixels_of(index: int) -> Pixels:
            bytes_of_it = data if index == wanted else self.images.read(index)
            return decode(bytes_of_it, self.images.place(index), min_side)

        pixels, index, replaced = first_decodable(pixels_of, wanted, len(self.images), drawn.random)
        crop = resized_crop(pixels, min_side, self.crop, drawn.position)
        return Sample(crop, int(self.images.labels[index]), index, drawn.flip, drawn.colour, replaced)


class CentreCrops(Dataset[Sample]):
    """The centre crop of each image, for validation: Table 3's "1 crop".

    Raises:
        UndecodableImageError: an image is damaged; no figure is given as if it had been counted.
    """

    def __init__(self, images: ImageSource, crop: int) -> None:
        self.images = images
        self.crop = crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        # Resized whole and then cut, as the evaluator does, so that both count the same.
        pixels = resize(read_image(self.images, index), min_side_of(self.crop))
        return Sample(crop_at(pixels, CENTRE, self.crop), int(self.images.labels[index]), index)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Make a batch, which a DataLoader then takes as it is."""
        return collate((self[index] for index in indices), len(indices))
