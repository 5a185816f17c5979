"""How training images are changed at random: the interface, and the paper's augmentation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import check_fields, key
from spp_cls.cli.targets import PARTIAL, call_target
from spp_cls.data.transforms.crops import FIVE, compute_min_side, resize_and_crop
from spp_cls.data.transforms.decode import Pixels
from spp_cls.data.transforms.randomness import Purpose, create_generator

# Principal components of the RGB values of ImageNet's training pixels, 0..255, one a column, and the factor of each
# one's random coefficient: the values of Torch's ImageNet example (fb.resnet.torch) for AlexNet's colour jitter.
PCA_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
PCA_SCALES: NDArray[np.float32] = np.array([255 * 0.2175, 255 * 0.0188, 255 * 0.0045], np.float32)

_NO_SHIFT = np.zeros(3, np.float32)

# (pixels, side, random) -> pixels, as ImageAugmentation.augment.
AugmentFunction = Callable[[Pixels, int, np.random.Generator], Pixels]


class EpochAugmentation(ABC):
    """The augmentation of one epoch; what it does to an image is a function of (seed, epoch, index)."""

    @abstractmethod
    def apply(self, pixels: Pixels, index: int, side: int) -> Pixels:
        """Turn a decoded image, H x W x 3, into side x side x 3 pixels; workers call this."""

    def apply_whole(self, pixels: Pixels, index: int) -> Pixels:
        """Change a whole image, H x W x 3, that has the shape of its batch, and keep this shape (shape=natural)."""
        return pixels

    def flip(self, index: int) -> bool:
        """Return whether the device mirrors the image."""
        return False

    def colour_shift(self, index: int) -> NDArray[np.float32]:
        """Return the three values that the device adds to red, green and blue."""
        return _NO_SHIFT


class Augmentation(ABC):
    """An augmentation of training images. ImageAugmentation is the base class for most new ones."""

    # Whether `apply` only cuts a window out of an image that has the min side of training already. The image may then
    # be a tensor on the device as well (data.cache=device).
    can_crop_on_device = False

    # Whether it can be used on whole images of any shape (shape=natural), which go to `apply_whole`, not to `apply`.
    takes_whole_images = False

    # Whether `mix_pairs` mixes images, for which the batch of a process must be even.
    mixes_pairs = False

    @abstractmethod
    def of_epoch(self, seed: int, epoch: int, length: int) -> EpochAugmentation:
        """Return the augmentation of an epoch of a data set of `length` images."""

    def min_side(self, side: int) -> int | None:
        """Return the least shorter side of a decoded image; None: all pixels of the file.

        A large JPEG is decoded faster to a half, a quarter or an eighth of its size.
        """
        return None

    def mix_pairs(self, images: Tensor, partners: Tensor, random: np.random.Generator) -> tuple[Tensor, float]:
        """Mix normalised images, N x C x H x W, with their partners on the device; return them and their own share.

        `random` is a function of (seed, epoch, step): the same for all parts of a global batch, whatever the number of
        processes and of batches whose gradients are accumulated. Called where `mixes_pairs` is true.
        """
        return images, 1.0


class ImageAugmentation(Augmentation):
    """An augmentation that sees one image at a time: a subclass defines `augment` and nothing else.

    For shape=natural it also sets `takes_whole_images`, and defines `augment_whole` if it changes more than the crop.
    """

    @abstractmethod
    def augment(self, pixels: Pixels, side: int, random: np.random.Generator) -> Pixels:
        """Turn a decoded image, H x W x 3, into side x side x 3 pixels (uint8), with no other randomness than `random`.

        `random` is a function of (seed, epoch, index): the image is the same for any number of workers and processes.
        """

    def augment_whole(self, pixels: Pixels, random: np.random.Generator) -> Pixels:
        """Change a whole image, H x W x 3, and keep its shape; `random` is as in `augment`."""
        return pixels

    def of_epoch(self, seed: int, epoch: int, length: int) -> EpochAugmentation:
        """Return the augmentation of an epoch."""
        return _ImagesOfEpoch(self, seed, epoch)


@dataclass(frozen=True)
class _ImagesOfEpoch(EpochAugmentation):
    augmentation: ImageAugmentation
    seed: int
    epoch: int

    def apply(self, pixels: Pixels, index: int, side: int) -> Pixels:
        return _check_pixels(self.augmentation.augment(pixels, side, self._random(index)), (side, side, 3))

    def apply_whole(self, pixels: Pixels, index: int) -> Pixels:
        return _check_pixels(self.augmentation.augment_whole(pixels, self._random(index)), pixels.shape)

    def _random(self, index: int) -> np.random.Generator:
        return create_generator(Purpose.AUGMENTATION, self.seed, self.epoch, index)


def _check_pixels(pixels: Any, shape: tuple[int, ...]) -> Pixels:
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels)
        raise UserError(f"an augmentation returns a NumPy array of uint8 {shape}, not {found}")
    return pixels


@dataclass(frozen=True)
class FunctionAugmentation(ImageAugmentation):
    """A function of (pixels, side, random) as an augmentation."""

    function: AugmentFunction

    def augment(self, pixels: Pixels, side: int, random: np.random.Generator) -> Pixels:
        """Call the function."""
        return self.function(pixels, side, random)


@dataclass(frozen=True)
class PaperAugmentation(Augmentation):
    """The paper's augmentation (section 3.1.1): five crop positions, flips, and colour jitter along the PCA of RGB.

    Raises:
        UserError: if a field has a value of another type or range.
    """

    corners: bool = key(True, help="crop at the centre or one of the four corners; false: at the centre")
    flip: bool = key(True, help="flip half of the images")
    pca_std: float = key(0.1, help="standard deviation of the coefficients of the colour jitter; 0: none", least=0)

    can_crop_on_device = True
    takes_whole_images = True

    def __post_init__(self) -> None:
        check_fields(self, "augmentation.")

    def of_epoch(self, seed: int, epoch: int, length: int) -> EpochAugmentation:
        """Return the augmentation of an epoch."""
        return _PaperEpoch(self, seed, epoch, length)

    def min_side(self, side: int) -> int:
        """Return the min side that images are resized to before the crop."""
        return compute_min_side(side)


@dataclass(frozen=True)
class _PaperEpoch(EpochAugmentation):
    """Draws the parameters of all images together, as making a generator takes ten times as long as a number."""

    augmentation: PaperAugmentation
    seed: int
    epoch: int
    length: int

    @cached_property
    def _positions(self) -> NDArray[np.int8]:
        if not self.augmentation.corners:
            return np.zeros(self.length, np.int8)
        return create_generator(Purpose.POSITION, self.seed, self.epoch).integers(
            len(FIVE), size=self.length, dtype=np.int8
        )

    @cached_property
    def _flips(self) -> NDArray[np.bool_]:
        if not self.augmentation.flip:
            return np.zeros(self.length, np.bool_)
        return create_generator(Purpose.FLIP, self.seed, self.epoch).integers(2, size=self.length, dtype=np.bool_)

    @cached_property
    def _colour_shifts(self) -> NDArray[np.float32]:
        random = create_generator(Purpose.COLOUR, self.seed, self.epoch)
        coefficients = random.standard_normal((self.length, 3), np.float32) * np.float32(self.augmentation.pca_std)
        # Not a matrix product, whose last bits may depend on the number of threads.
        parts = [(coefficients * PCA_SCALES)[:, i : i + 1] * PCA_COMPONENTS[:, i] for i in range(3)]
        return parts[0] + parts[1] + parts[2]

    def apply(self, pixels: Pixels, index: int, side: int) -> Pixels:
        return resize_and_crop(pixels, compute_min_side(side), side, FIVE[self._positions[index]])

    def flip(self, index: int) -> bool:
        return bool(self._flips[index])

    def colour_shift(self, index: int) -> NDArray[np.float32]:
        return self._colour_shifts[index]


def convert_to_augmentation(value: Augmentation | AugmentFunction) -> Augmentation:
    """Return an augmentation as it is, and a function of (pixels, side, random) as an augmentation.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(value, Augmentation):
        return value
    if isinstance(value, type) or not callable(value):
        raise UserError(f"augmentation is an Augmentation or a function of (pixels, side, random), not {value!r}")
    return FunctionAugmentation(value)


def create_augmentation(node: Mapping[str, Any]) -> Augmentation:
    """Create the augmentation of a configuration node.

    Raises:
        UserError: if it cannot be made, or is not an augmentation.
    """
    value = call_target(node, "augmentation")
    if isinstance(value, partial) and isinstance(value.func, type):
        raise UserError(f"augmentation: {PARTIAL} is for functions, and {value.func.__name__} is a class; leave it out")
    return convert_to_augmentation(value)
