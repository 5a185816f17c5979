"""Mixing the images of a batch in pairs: mixup and CutMix."""

import math

import numpy as np
from torch import Tensor


def mixup(images: Tensor, partners: Tensor, weight: float) -> Tensor:
    """Return `weight` of each image plus the rest of its partner, N x C x H x W (arXiv 1710.09412)."""
    return images * weight + partners * (1 - weight)


def cutmix(images: Tensor, partners: Tensor, weight: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """Put a box of its partner into each image, N x C x H x W, the same box in all (arXiv 1905.04899).

    The box has 1 - `weight` of the area, but is cut at the borders. Returns the images, and the share of an image that
    is still its own.
    """
    height, width = images.shape[-2:]
    side = math.sqrt(1 - weight)
    top, bottom = _place(random, height, side)
    left, right = _place(random, width, side)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _place(random: np.random.Generator, length: int, share: float) -> tuple[int, int]:
    """Return start and end of a part of a length, around a random pixel."""
    # A fraction, so that an image resized to another size has the box at the same place.
    centre = random.random() * length
    half = share * length / 2
    return max(0, round(centre - half)), min(length, round(centre + half))
