"""Data sets of samples: training crops, drawn anew each epoch, and the fixed centre crops of validation."""

from collections.abc import Sequence

from torch.utils.data import Dataset

from spp_cls.data.batch import Batch, Sample, collate
from spp_cls.data.crops import CENTRE, crop_at, min_side_of, resize, resized_crop
from spp_cls.data.decode import Data, Pixels, decode
from spp_cls.data.draws import EpochDraws, draws_of_epoch
from spp_cls.data.sampler import EpochIndex
from spp_cls.data.sources import ImageSource


def read_image(images: ImageSource, index: int, min_side: int | None = None) -> Pixels:
    """Read and decode an image, H x W x 3; `min_side` is as in decode.

    Raises:
        UndecodableImageError: the file is damaged or no image.
        UserError: the file cannot be read.
    """
    return decode(images.read(index), images.place(index), min_side)


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
        epoch, index = epoch_index
        return self._sample(index, self.images.read(index), self._draws_of(epoch))

    def __getitems__(self, epoch_indices: Sequence[EpochIndex]) -> Batch:
        """Make a batch, which a DataLoader then takes as it is."""
        # Reads in a row cost half of what they cost each after an image that has swept the caches.
        data = [self.images.read(index) for _, index in epoch_indices]
        samples = (
            self._sample(index, bytes_of_it, self._draws_of(epoch))
            for (epoch, index), bytes_of_it in zip(epoch_indices, data, strict=True)
        )
        return collate(samples, len(epoch_indices))

    def _draws_of(self, epoch: int) -> EpochDraws:
        return draws_of_epoch(self.seed, epoch, len(self.images), self.colour_deviation)

    def _sample(self, wanted: int, data: Data, draws: EpochDraws) -> Sample:
        min_side = min_side_of(self.crop)

        def pixels_of(index: int) -> Pixels:
            bytes_of_it = data if index == wanted else self.images.read(index)
            return decode(bytes_of_it, self.images.place(index), min_side)

        pixels, index, replaced = draws.first_decodable(pixels_of, wanted)
        crop = resized_crop(pixels, min_side, self.crop, draws.position(wanted))
        label = int(self.images.labels[index])
        return Sample(crop, label, index, bool(draws.flips[wanted]), draws.colours[wanted], replaced)


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
