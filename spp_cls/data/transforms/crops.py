"""The geometry of training: the paper's resize to a minimum side, and its five crop positions."""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from spp_cls.data.transforms.decode import Pixels

# Where the free space goes: (0, 0) is the top left corner, (1, 1) the bottom right, (0.5, 0.5) the centre.
Position = tuple[float, float]

CENTRE: Position = (0.5, 0.5)
CORNERS: tuple[Position, ...] = ((0, 0), (1, 0), (0, 1), (1, 1))

# Centre and four corners of the whole, non-square image: section 3.1.1 of the paper, for training and 10-view testing.
FIVE: tuple[Position, ...] = (CENTRE, *CORNERS)

# Images so many times longer than wide are resized by Pillow, which can start anywhere in them.
_LONG = 4

# torch.nn.functional.interpolate calls it too, but does not accept sizes together with scales.
_resize_both: Any = torch.ops.aten._upsample_bilinear2d_aa.default


def compute_min_side(crop: int) -> int:
    """Return the min side that an image is resized to before crops of `crop` pixels: 256 for 224."""
    return round(crop * 256 / 224)


def compute_resized_shape(width: int, height: int, min_side: int) -> tuple[int, int]:
    """Return width and height after a resize to `min_side` that keeps the aspect, to the nearest pixel."""
    shorter = min(width, height)
    return (2 * width * min_side + shorter) // (2 * shorter), (2 * height * min_side + shorter) // (2 * shorter)


def find_corner(position: Position, width: int, height: int, window: int) -> tuple[int, int]:
    """Return the left and top pixel of a square window at a position of an image of width x height."""
    return int(position[0] * (width - window)), int(position[1] * (height - window))


def resize(pixels: Pixels, min_side: int, interpolation: str = "bilinear") -> Pixels:
    """Resize H x W x 3 pixels so that the shorter side is `min_side`: bilinear or bicubic, antialiased."""
    height, width = pixels.shape[:2]
    return _resize_to(pixels, *compute_resized_shape(width, height, min_side), interpolation)


def warp(pixels: Pixels, side: int, interpolation: str = "bilinear") -> Pixels:
    """Resize H x W x 3 pixels to side x side, whatever their shape: bilinear or bicubic, antialiased."""
    return _resize_to(pixels, side, side, interpolation)


def _resize_to(pixels: Pixels, new_width: int, new_height: int, interpolation: str) -> Pixels:
    height, width = pixels.shape[:2]
    if interpolation != "bilinear" and (new_width, new_height) != (width, height):
        source = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
        resized = F.interpolate(source, (new_height, new_width), mode=interpolation, antialias=True)
        return resized[0].permute(1, 2, 0).numpy()
    return resize_window(pixels, new_width, new_height, (0, 0, new_width, new_height))


def crop_at(pixels: Pixels, position: Position, window: int) -> Pixels:
    """Cut a square window out of H x W x 3 pixels."""
    left, top = find_corner(position, pixels.shape[1], pixels.shape[0], window)
    return pixels[top : top + window, left : left + window]


def resize_and_crop(pixels: Pixels, min_side: int, crop: int, position: Position) -> Pixels:
    """Return the window that `resize` and then `crop_at` would give, but resize only its part of the image.

    The pixels are the same; those of images more than four times as long as wide, within one grey level. An image
    that is at `min_side` already is only sliced, and may be a tensor.
    """
    height, width = pixels.shape[:2]
    new_width, new_height = compute_resized_shape(width, height, min_side)
    left, top = find_corner(position, new_width, new_height, crop)
    return resize_window(pixels, new_width, new_height, (left, top, left + crop, top + crop))


def resize_window(pixels: Pixels, new_width: int, new_height: int, window: tuple[int, int, int, int]) -> Pixels:
    """Return a window (left, top, right, bottom) of what `pixels` would be at new_width x new_height."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = window
    if (new_width, new_height) == (width, height):
        return pixels[top:bottom, left:right]
    if max(width, height) > _LONG * min(width, height):
        return _resize_window_by_pillow(pixels, new_width, new_height, window)
    # Torch's resize is four times as fast, but starts at the top left corner, wherever the window is. Rows first: those
    # above the window then need no work along the columns.
    rows, source_rows = _source_extent(bottom, new_height, height)
    columns, source_columns = _source_extent(right, new_width, width)
    with torch.inference_mode():
        source = torch.from_numpy(pixels[:source_rows, :source_columns]).unsqueeze(0).permute(0, 3, 1, 2)
        lower = _resize_both(source, (rows, source_columns), False, new_height / height, None)[:, :, top:bottom]
        resized = _resize_both(lower, (bottom - top, columns), False, None, new_width / width)
        return resized[0].permute(1, 2, 0).numpy()[:, left:right]


def _source_extent(end: int, new_size: int, size: int) -> tuple[int, int]:
    """Return how many pixels to compute for the first `end` of `new_size`, and how many of `size` they need."""
    scale = size / new_size
    # The filter reaches one pixel of the coarser grid beyond a pixel's centre.
    source = min(size, math.ceil(end * scale + max(scale, 1)) + 1)
    if source != end or size == new_size:
        return end, source
    # Torch takes equal numbers for an axis that keeps its size.
    return (end, source + 1) if source < size else (end + 1, source)


def _resize_window_by_pillow(
    pixels: Pixels, new_width: int, new_height: int, window: tuple[int, int, int, int]
) -> Pixels:
    height, width = pixels.shape[:2]
    left, top, right, bottom = window
    across, down = width / new_width, height / new_height
    # The last product can miss the border by a rounding error, which Pillow refuses.
    box = (left * across, top * down, min(right * across, width), min(bottom * down, height))
    image = Image.fromarray(pixels)
    # A copy that augmentations may write to, as torch's is; Pillow's own memory is not.
    return np.array(image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box))
