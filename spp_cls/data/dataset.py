"""Data sets of samples: training crops, drawn anew each epoch, and the fixed centre crops of validation."""

import numpy as np
from torch.utils.data import Dataset

from spp_cls.data.batch import Sample
from spp_cls.data.crops import CENTRE, FIVE, crop_at, min_side_of, resize, resized_crop
from spp_cls.data.decode import Pixels, UndecodableImageError, decode
from spp_cls.data.randomness import Purpose, generator
from spp_cls.data.sampler import EpochIndex
from spp_cls.data.sources import ImageFiles
from spp_cls.errors import UserError

# Principal components of the RGB values of ImageNet's training pixels, 0..255, one a column, and the factor of each
# one's random coefficient: the values of Torch's ImageNet example (fb.resnet.torch) for AlexNet's colour altering.
COLOUR_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
COLOUR_SCALES = 255 * np.array([0.2175, 0.0188, 0.0045], np.float32)

# So many undecodable images in a row are no bad luck.
_MOST_REPLACEMENTS = 20


def read_image(files: ImageFiles, index: int) -> Pixels:
    """Read and decode an image, H x W x 3.

    Raises:
        UndecodableImageError: the file is damaged or no image.
        UserError: the file cannot be read.
    """
    path = files.path(index)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error
    return decode(data, str(path))


class TrainingCrops(Dataset[Sample]):
    """One crop of an image, at one of five positions, flipped or not, its colours altered (section 3.1.1).

    Everything random in it is a function of (seed, epoch, index). An image that cannot be decoded is replaced by
    another draw, and the sample says so.
    """

    def __init__(self, files: ImageFiles, crop: int, seed: int, colour_deviation: float) -> None:
        self.files = files
        self.crop = crop
        self.seed = seed
        self.colour_deviation = colour_deviation

    def __getitem__(self, epoch_index: EpochIndex) -> Sample:
        epoch, index = epoch_index
        random = generator(Purpose.AUGMENTATION, self.seed, epoch, index)
        position = FIVE[random.integers(len(FIVE))]
        flip = bool(random.integers(2))
        colour = COLOUR_COMPONENTS @ (COLOUR_SCALES * random.normal(0, self.colour_deviation, 3).astype(np.float32))
        replaced: list[str] = []
        while True:
            try:
                pixels = read_image(self.files, index)
                break
            except UndecodableImageError as error:
                replaced.append(str(error))
                if len(replaced) == _MOST_REPLACEMENTS:
                    raise UserError(f"{len(replaced)} images in a row are damaged; the last: {error}") from error
                index = int(random.integers(len(self.files)))
        crop = resized_crop(pixels, min_side_of(self.crop), self.crop, position)
        return Sample(crop, int(self.files.labels[index]), index, flip, colour, tuple(replaced))


class CentreCrops(Dataset[Sample]):
    """The centre crop of each image, for validation: Table 3's "1 crop".

    Raises:
        UndecodableImageError: an image is damaged; no figure is given as if it had been counted.
    """

    def __init__(self, files: ImageFiles, crop: int) -> None:
        self.files = files
        self.crop = crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        # Resized whole and then cut, as the evaluator does, so that both count the same.
        pixels = resize(read_image(self.files, index), min_side_of(self.crop))
        return Sample(crop_at(pixels, CENTRE, self.crop), int(self.files.labels[index]), index)
