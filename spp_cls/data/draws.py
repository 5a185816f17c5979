"""What is random in the training crops of an epoch."""

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from spp_cls.data.crops import FIVE, Position
from spp_cls.data.decode import UndecodableImageError
from spp_cls.data.randomness import Purpose, generator
from spp_cls.errors import UserError

# Principal components of the RGB values of ImageNet's training pixels, 0..255, one a column, and the factor of each
# one's random coefficient: the values of Torch's ImageNet example (fb.resnet.torch) for AlexNet's colour altering.
COLOUR_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
COLOUR_SCALES: NDArray[np.float32] = np.array([255 * 0.2175, 255 * 0.0188, 255 * 0.0045], np.float32)

# So many undecodable images in a row are no bad luck.
_MOST_REPLACEMENTS = 20

Image = TypeVar("Image")


class EpochDraws:
    """Position, flip and colours of each image of an epoch (section 3.1.1), functions of (seed, epoch, index) alone.

    They are drawn for all images together, since making a generator takes ten times as long as a draw.
    """

    def __init__(self, seed: int, epoch: int, length: int, colour_deviation: float) -> None:
        self.seed = seed
        self.epoch = epoch
        self.length = length
        self.colour_deviation = colour_deviation

    @cached_property
    def _positions(self) -> NDArray[np.int8]:
        return generator(Purpose.POSITION, self.seed, self.epoch).integers(len(FIVE), size=self.length, dtype=np.int8)

    @cached_property
    def flips(self) -> NDArray[np.bool_]:
        """Whether each image is flipped."""
        return generator(Purpose.FLIP, self.seed, self.epoch).integers(2, size=self.length, dtype=np.bool_)

    @cached_property
    def colours(self) -> NDArray[np.float32]:
        """What is added to red, green and blue of each image, N x 3."""
        random = generator(Purpose.COLOUR, self.seed, self.epoch)
        coefficients = random.standard_normal((self.length, 3), np.float32) * np.float32(self.colour_deviation)
        # Not a matrix product, whose last bits may depend on the number of threads.
        parts = [(coefficients * COLOUR_SCALES)[:, i : i + 1] * COLOUR_COMPONENTS[:, i] for i in range(3)]
        return parts[0] + parts[1] + parts[2]

    def position(self, index: int) -> Position:
        """Return which of the five crops of an image is taken."""
        return FIVE[self._positions[index]]

    def first_decodable(self, read: Callable[[int], Image], index: int) -> tuple[Image, int, tuple[str, ...]]:
        """Read an image, or, as often as it is damaged, another draw.

        Returns what was read, its index, and a message for each image that was damaged.
        """
        replaced: list[str] = []
        wanted = index
        while True:
            try:
                return read(index), index, tuple(replaced)
            except UndecodableImageError as error:
                replaced.append(str(error))
                if len(replaced) == _MOST_REPLACEMENTS:
                    raise UserError(f"{len(replaced)} images in a row are damaged; the last: {error}") from error
                random = generator(Purpose.REPLACEMENT, self.seed, self.epoch, wanted)
                index = int(random.integers(self.length, size=len(replaced))[-1])


@lru_cache(maxsize=1)
def draws_of_epoch(seed: int, epoch: int, length: int, colour_deviation: float) -> EpochDraws:
    """Return the draws of an epoch; those of the last one asked for are kept."""
    return EpochDraws(seed, epoch, length, colour_deviation)
