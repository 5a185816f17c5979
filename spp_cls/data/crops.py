"""The geometry of training: the paper's resize to a minimum side, and its five crop positions."""

import numpy as np
from PIL import Image

from spp_cls.data.decode import Pixels

# Where the free space goes: (0, 0) is the top left corner, (1, 1) the bottom right, (0.5, 0.5) the centre.
Position = tuple[float, float]

CENTRE: Position = (0.5, 0.5)
CORNERS: tuple[Position, ...] = ((0, 0), (1, 0), (0, 1), (1, 1))

# Centre and four corners of the whole, non-square image: section 3.1.1 of the paper, for training and 10-view testing.
FIVE: tuple[Position, ...] = (CENTRE, *CORNERS)


def min_side_of(crop: int) -> int:
    """Return the min side that an image is resized to before crops of `crop` pixels: 256 for 224."""
    return round(crop * 256 / 224)


def resized_shape(width: int, height: int, min_side: int) -> tuple[int, int]:
    """Width and height after the shorter side becomes `min_side` and the aspect is kept, to the nearest pixel."""
    shorter = min(width, height)
    return (2 * width * min_side + shorter) // (2 * shorter), (2 * height * min_side + shorter) // (2 * shorter)


def corner_of(position: Position, width: int, height: int, window: int) -> tuple[int, int]:
    """Return the left and top pixel of a square window at a position of an image of width x height."""
    return int(position[0] * (width - window)), int(position[1] * (height - window))


def resize(pixels: Pixels, min_side: int) -> Pixels:
    """Resize H x W x 3 pixels so that the shorter side is `min_side`: bilinear, antialiased."""
    height, width = pixels.shape[:2]
    shape = resized_shape(width, height, min_side)
    if shape == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR))


def crop_at(pixels: Pixels, position: Position, window: int) -> Pixels:
    """Cut a square window out of H x W x 3 pixels."""
    left, top = corner_of(position, pixels.shape[1], pixels.shape[0], window)
    return pixels[top : top + window, left : left + window]


def resized_crop(pixels: Pixels, min_side: int, crop: int, position: Position) -> Pixels:
    """Return the window that `resize` and then `crop_at` would give, within one grey level.

    Only the window's own part of the image is resized.
    """
    height, width = pixels.shape[:2]
    new_width, new_height = resized_shape(width, height, min_side)
    left, top = corner_of(position, new_width, new_height, crop)
    if (new_width, new_height) == (width, height):
        return pixels[top : top + crop, left : left + crop]
    across, down = width / new_width, height / new_height
    box = (left * across, top * down, (left + crop) * across, (top + crop) * down)
    # The last product can miss the border by a rounding error, which Pillow refuses.
    box = (box[0], box[1], min(box[2], width), min(box[3], height))
    return np.asarray(Image.fromarray(pixels).resize((crop, crop), Image.Resampling.BILINEAR, box=box))
