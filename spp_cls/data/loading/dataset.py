"""Data sets of samples: augmented training images, and the fixed centre crops of validation."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch.utils.data import Dataset

from spp_cls.cli.errors import UserError
from spp_cls.data.loading.batch import Batch, Sample, collate
from spp_cls.data.loading.sampler import EpochIndex
from spp_cls.data.sources.source import ImageSource
from spp_cls.data.transforms.augmentation import Augmentation, EpochAugmentation
from spp_cls.data.transforms.buckets import MOST_SQUEEZE
from spp_cls.data.transforms.crops import CENTRE, compute_min_side, crop_at, resize
from spp_cls.data.transforms.decode import Data, Pixels, UndecodableImageError, decode
from spp_cls.data.transforms.randomness import Purpose, create_generator
from spp_cls.data.transforms.shapes import Shape, resize_whole

# So many undecodable images in a row are not bad luck.
_MOST_REPLACEMENTS = 20

Image = TypeVar("Image")


def read_image(source: ImageSource, index: int, min_side: int | None = None) -> Pixels:
    """Read and decode an image, H x W x 3; `min_side` is as in decode.

    Raises:
        UndecodableImageError: if the file is damaged or not an image.
        UserError: if the file cannot be read.
    """
    return decode(source.read(index), source.location(index), min_side)


class TrainingCrops(Dataset[Sample]):
    """Augmented training images of crop x crop pixels, each a function of (seed, epoch, index).

    An image that cannot be decoded is replaced by another one, and the sample says so.
    """

    def __init__(self, source: ImageSource, crop: int, augmentation: Augmentation, seed: int) -> None:
        self.source = source
        self.crop = crop
        self.augmentation = augmentation
        self.seed = seed
        # The last one is kept, as drawing the parameters of an epoch takes longer than an image.
        self._epoch_augmentation: tuple[int, EpochAugmentation] | None = None

    def __getitem__(self, epoch_index: EpochIndex) -> Sample:
        return self._make_sample(epoch_index)

    def __getitems__(self, epoch_indices: Sequence[EpochIndex]) -> Batch:
        """Make a batch, which a DataLoader returns as it is."""
        # Reading in a row costs half of reading each image after the decoding of another, which evicts the caches.
        encoded = [self.source.read(index) for _, index, *_ in epoch_indices]
        return collate(map(self._make_sample, epoch_indices, encoded), len(epoch_indices))

    def _make_sample(self, epoch_index: EpochIndex, encoded: Data | None = None) -> Sample:
        """Make a sample; `encoded` are the bytes of the image, if they have been read."""
        epoch, wanted, *shape = epoch_index

        def load(index: int) -> Pixels:
            return self._load(index, encoded if index == wanted else None)

        pixels, index, replaced = load_decodable(load, wanted, self.seed, epoch, len(self.source))
        augmentation = self._augmentation_of(epoch)
        return Sample(
            self._transform(augmentation, pixels, wanted, *shape),
            int(self.source.labels[index]),
            index,
            augmentation.flip(wanted),
            augmentation.colour_shift(wanted),
            replaced,
        )

    def _transform(self, augmentation: EpochAugmentation, pixels: Pixels, wanted: int) -> Pixels:
        return augmentation.apply(pixels, wanted, self.crop)

    def _augmentation_of(self, epoch: int) -> EpochAugmentation:
        if self._epoch_augmentation is None or self._epoch_augmentation[0] != epoch:
            self._epoch_augmentation = epoch, self.augmentation.of_epoch(self.seed, epoch, len(self.source))
        return self._epoch_augmentation[1]

    def _min_side(self) -> int | None:
        """Return the least shorter side that an image is decoded to."""
        return self.augmentation.min_side(self.crop)

    def _load(self, index: int, encoded: Data | None) -> Pixels:
        min_side = self._min_side()
        if encoded is None:
            return read_image(self.source, index, min_side)
        return decode(encoded, self.source.location(index), min_side)


class WholeImages(TrainingCrops):
    """Augmented whole training images, each resized to the shape of a bucket; a function of (seed, epoch, index).

    The sampler gives the bucket beside the index; `shapes` are height and width for each. An image that replaces a
    damaged one gets its shape.
    """

    def __init__(self, source: ImageSource, shapes: Sequence[Shape], augmentation: Augmentation, seed: int) -> None:
        super().__init__(source, max(min(shape) for shape in shapes), augmentation, seed)
        self.shapes = shapes

    def _transform(self, augmentation: EpochAugmentation, pixels: Pixels, wanted: int, bucket: int = 0) -> Pixels:
        return augmentation.apply_whole(resize_whole(pixels, self.shapes[bucket]), wanted)

    def _min_side(self) -> int:
        # An image may be shortened along its shorter side.
        return math.ceil(self.crop * MOST_SQUEEZE)


def load_decodable(
    load: Callable[[int], Image], wanted: int, seed: int, epoch: int, length: int
) -> tuple[Image, int, tuple[str, ...]]:
    """Load an image, or, while it is damaged, another one of the `length` images at random.

    Returns what was loaded, its index, and a message for each damaged image.

    Raises:
        UserError: if too many images in a row are damaged.
    """
    replaced: list[str] = []
    index = wanted
    while True:
        try:
            return load(index), index, tuple(replaced)
        except UndecodableImageError as error:
            replaced.append(str(error))
            if len(replaced) == _MOST_REPLACEMENTS:
                raise UserError(f"{len(replaced)} images in a row are damaged; the last: {error}") from error
            random = create_generator(Purpose.REPLACEMENT, seed, epoch, wanted)
            index = int(random.integers(length, size=len(replaced))[-1])


class CentreCrops(Dataset[Sample]):
    """The centre crop of each image, for validation: Table 3's "1 crop".

    Raises:
        UndecodableImageError: if an image is damaged, as an error over the others would be that of another data set.
    """

    def __init__(self, source: ImageSource, crop: int, interpolation: str = "bilinear") -> None:
        self.source = source
        self.crop = crop
        self.interpolation = interpolation

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        # Resized and then cropped, as the evaluator does it, so that both count the same errors.
        pixels = resize(read_image(self.source, index), compute_min_side(self.crop), self.interpolation)
        return Sample(crop_at(pixels, CENTRE, self.crop), int(self.source.labels[index]), index)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Make a batch, which a DataLoader returns as it is."""
        return collate(map(self.__getitem__, indices), len(indices))
