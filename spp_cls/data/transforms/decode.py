"""Bytes of an image file -> RGB pixels."""

import io
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from spp_cls.cli.errors import UserError
from spp_cls.cli.reading import check_regular

# Pillow warns of damaged images, and of headers that claim an absurd size, before it refuses them. Not
# catch_warnings: threads decode, and it would leave the filters of one to all.
warnings.filterwarnings("ignore", module=r"PIL\.")

Pixels = NDArray[np.uint8]

# The bytes of an image file; an array if they are part of a larger, memory-mapped file.
Data = bytes | NDArray[np.uint8]

# libjpeg's messages for data that end early although the file goes on: the rest of the image would be grey.
_GREY_REST = ("premature end of data segment", "found marker")


# Not all that Pillow knows: for EPS it starts Ghostscript, a program that the image is written in.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "QOI")

# No photograph is so many times longer than wide; a strip of 1 x 1,000,000 would be resized to 256 x 256,000,000.
MOST_ASPECT = 256


class UndecodableImageError(UserError):
    """The bytes are not a complete image; the message names the file and the reason."""


def decode(data: Data, name: str, min_side: int | None = None) -> Pixels:
    """Decode any of FORMATS to H x W x 3 uint8, whatever its colour mode; EXIF orientation is ignored.

    `name` is the file's name for the error message. Give `min_side` if the image will be resized to it: a JPEG at
    least twice as large is then decoded at a half, a quarter or an eighth of its size, not smaller than `min_side`.

    Raises:
        UndecodableImageError: if the data is truncated, damaged or not an image, has over twice
            PIL.Image.MAX_IMAGE_PIXELS, or is over MOST_ASPECT times longer than wide (or wider than long).
    """
    try:
        return _decode_jpeg(data, min_side)
    except ValueError as error:
        refusal = str(error)
    try:
        with Image.open(io.BytesIO(bytes(data)), formats=FORMATS) as image:
            _check_aspect(*image.size)
            pixels = np.array(_convert_to_rgb(image))
    except Exception as error:  # a damaged file can make Pillow's parsers raise nearly anything
        raise _make_refusal(name, error) from error
    if any(words in refusal for words in _GREY_REST):
        raise UndecodableImageError(f"cannot decode the image {name}: {refusal}")
    return pixels


def _decode_jpeg(data: Data, min_side: int | None) -> Pixels:
    """Decode an ordinary JPEG with libjpeg-turbo; ValueError for everything else, also for small irregularities."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    _check_aspect(width, height)
    # A damaged header can claim any size; Pillow has a limit.
    if height * width > (Image.MAX_IMAGE_PIXELS or 0):
        raise ValueError("a very large image")
    if colours == "CMYK":
        # Only to see whether the file is complete; Pillow does the conversion to RGB.
        simplejpeg.decode_jpeg(data, "CMYK")
        raise ValueError("neither RGB nor grey")
    if min_side is None or min(height, width) < 2 * min_side:
        return simplejpeg.decode_jpeg(data)
    # Other fractions take longer than decoding the whole image.
    part = next(part for part in (8, 4, 2) if min(height, width) >= part * min_side)
    return simplejpeg.decode_jpeg(data, min_height=-(-height // part), min_width=-(-width // part), min_factor=2)


def _check_aspect(width: int, height: int) -> None:
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels, over {MOST_ASPECT} times longer than wide, is no photograph")


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    # Pillow clips deep grey to 255 instead of scaling it. That of PPM and PNG in 32 bits goes to 65535.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit" if image.mode == "I" else "floating-point"
        raise ValueError(f"its {kind} pixels have no known range; convert them to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _describe_error(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not in a known image format"
    return " ".join(str(error).split()) or type(error).__name__


def read_size(path: Path) -> tuple[int, int]:
    """Read an image's width and height from its header.

    Raises:
        UndecodableImageError: if the file is not an image, or one that decode refuses for its shape.
        UserError: if the file cannot be read.
    """
    try:
        check_regular(path)
        with Image.open(path, formats=FORMATS) as image:
            _check_aspect(*image.size)
            return image.size
    except OSError as error:
        # Pillow's own, such as of an unknown format, have no number.
        if error.errno is not None:
            raise UserError(f"cannot read the image {path}: {error.strerror or error}") from error
        raise _make_refusal(str(path), error) from error
    except Exception as error:  # as in decode
        raise _make_refusal(str(path), error) from error


def _make_refusal(name: str, error: Exception) -> UndecodableImageError:
    return UndecodableImageError(f"cannot decode the image {name}: {_describe_error(error)}")
