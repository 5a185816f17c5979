"""Aspect buckets: which of a few aspect ratios each image has in training with shape=natural."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Width and height as small whole numbers.
Aspect = tuple[int, int]

# From high to wide: those of cameras and screens, and what is needed between them.
ASPECTS: tuple[Aspect, ...] = ((1, 2), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (2, 1))

# An image half way between two of them is squeezed or stretched by this factor, none by more.
MOST_SQUEEZE = max(math.sqrt(upper[0] * lower[1] / (upper[1] * lower[0])) for lower, upper in pairwise(ASPECTS))


@dataclass(frozen=True)
class AspectBuckets:
    """The images of a data set by aspect: `of_images` is the bucket of each, as an index into the rising `aspects`."""

    aspects: tuple[Aspect, ...]
    of_images: NDArray[np.int8]

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of images of each bucket."""
        return tuple(np.bincount(self.of_images).tolist())


def sort_into_buckets(sizes: NDArray[np.int64]) -> AspectBuckets:
    """Put each image, of N x 2 widths and heights, into the bucket nearest to its aspect; none is empty."""
    # An unreadable header gives 0 x 0; another image will take its place.
    width, height = np.maximum(sizes, 1).T
    nearest = np.zeros(len(sizes), np.int8)
    for lower, upper in pairwise(ASPECTS):
        # The middle between two aspects is the root of their product; in integers, the same on every machine.
        nearest += width**2 * (lower[1] * upper[1]) >= height**2 * (lower[0] * upper[0])
    used = np.unique(nearest)
    return AspectBuckets(tuple(ASPECTS[i] for i in used), np.searchsorted(used, nearest).astype(np.int8))
