"""Bytes of an image file -> RGB pixels."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spp_cls.errors import UserError

Pixels = NDArray[np.uint8]


class UndecodableImageError(UserError):
    """The bytes are not a whole image; the message names the file and the reason."""


def decode(data: bytes, name: str) -> Pixels:
    """Decode any common image format to H x W x 3 uint8, whatever its colour mode; EXIF orientation is ignored.

    `name` is the file's name for the error message.

    Raises:
        UndecodableImageError: the data is truncated, damaged or no image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(_to_rgb(image))
    except Exception as error:  # a damaged file can make Pillow's parsers raise nearly anything
        raise UndecodableImageError(f"cannot decode the image {name}: {_reason(error)}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image format is recognised in it"
    return " ".join(str(error).split()) or type(error).__name__


def read_size(path: Path) -> tuple[int, int]:
    """Read an image's width and height from its header.

    Raises:
        UndecodableImageError: the header is that of no image.
        UserError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except Image.UnidentifiedImageError as error:
        raise UndecodableImageError(f"cannot decode the image {path}: {_reason(error)}") from error
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from error
