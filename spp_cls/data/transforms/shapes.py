"""The shapes of training images: square crops, or whole images in a few aspect ratios."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spp_cls.cli.errors import UserError
from spp_cls.data.transforms.buckets import ASPECTS, MOST_SQUEEZE, Aspect, AspectBuckets
from spp_cls.data.transforms.crops import resize_window
from spp_cls.data.transforms.decode import Pixels
from spp_cls.data.transforms.sizes import choose_size, list_sizes

# Height and width in pixels.
Shape = tuple[int, int]

# crop: square crops. natural: whole images whose shorter side is the size of the epoch. natural_area: whole images
# whose area is that of a square of this size.
KINDS = ("crop", "natural", "natural_area")


def compute_shape(aspect: Aspect, size: int, kind: str) -> Shape:
    """Return the shape of whole images of an aspect in an epoch of a size, to the nearest pixel."""
    width, height = aspect
    scale = size / math.sqrt(width * height) if kind == "natural_area" else size / min(width, height)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_whole(pixels: Pixels, shape: Shape) -> Pixels:
    """Resize H x W x 3 pixels to a shape, and change their aspect by no more than MOST_SQUEEZE.

    What would have to be squeezed more is cut off, equally at both ends.
    """
    (height, width), (new_height, new_width) = pixels.shape[:2], shape
    # Rounded up, as with a pixel less it would be squeezed more.
    whole_width = max(new_width, math.ceil(width * new_height / height / MOST_SQUEEZE))
    whole_height = max(new_height, math.ceil(height * new_width / width / MOST_SQUEEZE))
    left, top = (whole_width - new_width) // 2, (whole_height - new_height) // 2
    return resize_window(pixels, whole_width, whole_height, (left, top, left + new_width, top + new_height))


@dataclass(frozen=True)
class TrainingShapes:
    """The shapes of the training images of a run: one a size for crops, one a size and bucket for whole images.

    Images are made in the `largest` shapes, and resized on the device where the size of the epoch is smaller. `sizes`,
    `crop` and `seed` are as in choose_size. Without `buckets` there is a shape for each of ASPECTS.

    Raises:
        UserError: if `kind` is not one of KINDS, or `sizes` is wrong.
    """

    sizes: str | Sequence[int]
    crop: int
    seed: int = 0
    kind: str = "crop"
    buckets: AspectBuckets | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"shape is {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {self.kind!r}")
        list_sizes(self.sizes, self.crop)

    @property
    def has_whole_images(self) -> bool:
        """Whether the images are whole, with their aspect ratio kept."""
        return self.kind != "crop"

    @property
    def largest_size(self) -> int:
        """The largest size of an epoch."""
        return max(list_sizes(self.sizes, self.crop))

    @property
    def largest(self) -> list[Shape]:
        """The shapes of the largest size, one a bucket; for crops, one."""
        return self._list_shapes(self.largest_size)

    @property
    def all(self) -> list[Shape]:
        """All shapes that training images can have."""
        return sorted({shape for size in list_sizes(self.sizes, self.crop) for shape in self._list_shapes(size)})

    def choose(self, largest: Shape, epoch: int, epochs: int | None) -> Shape:
        """Return the shape that images of one of the largest shapes have in an epoch of a run of `epochs`.

        Raises:
            UserError: if the sizes depend on the number of epochs, and this is not known.
        """
        size = choose_size(self.sizes, epoch, self.crop, self.seed, epochs)
        return self._list_shapes(size)[self.largest.index(largest)]

    def describe(self, batch_size: int) -> str:
        """Say in a line which sizes and shapes there are, for how many images, and what filling batches changes."""
        if self.buckets is None:
            return f"sizes {self.sizes}"
        counts = self.buckets.counts
        pairs = zip(self.largest, counts, strict=True)
        listed = ", ".join(f"{height} x {width} ({count:,})" for (height, width), count in pairs)
        left_out = sum(counts) % batch_size
        beside = sum(count % batch_size for count in counts) - left_out
        return (
            f"sizes {self.sizes}, shape {self.kind}, height x width (images) up to {listed}: in an epoch up to "
            f"{beside:,} images take a shape beside theirs and {left_out:,} are left out, to fill batches"
        )

    def _list_shapes(self, size: int) -> list[Shape]:
        if not self.has_whole_images:
            return [(size, size)]
        aspects = self.buckets.aspects if self.buckets else ASPECTS
        return [compute_shape(aspect, size, self.kind) for aspect in aspects]
