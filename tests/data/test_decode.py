"""Images of unusual depth, and Pillow's warnings."""

import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from spp_cls.data.loading.device_images import _count_pixels
from spp_cls.data.sources.files import open_files
from spp_cls.data.sources.packing import PackSettings, _read_row
from spp_cls.data.transforms import decode as decode_module
from spp_cls.data.transforms.decode import UndecodableImageError, decode
from tests.data.test_transforms import encoded

# All levels of 16 bits, black to white.
RAMP = np.arange(2**16).reshape(256, 256)


def to_pgm(values: NDArray[np.int64], most: int) -> bytes:
    return f"P5 256 256 {most}\n".encode() + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        to_pgm(RAMP, 65535),
        # 10 bits, as some cameras have.
        to_pgm(RAMP // 64, 1023),
        encoded(Image.fromarray(RAMP.astype(np.uint16)), "PNG"),
        encoded(Image.fromarray(RAMP.astype(np.uint16)), "TIFF"),
    ],
    ids=["PGM of 16 bits", "PGM of 10 bits", "PNG", "TIFF"],
)
def test_deep_grey_is_scaled(data: bytes) -> None:
    pixels = decode(data, "ramp")
    assert abs(pixels.astype(int) - (RAMP // 256)[:, :, None]).max() <= 1
    assert pixels.shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.int32), "32-bit pixels have no known range; convert them to 8 or 16 bits"),
        ((RAMP / 65535).astype(np.float32), "floating-point pixels have no known range"),
    ],
)
def test_pixels_without_a_known_range_are_refused(values: NDArray[np.generic], message: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(UndecodableImageError, match=rf"deep\.tif: its {message}") as error:
        decode(path.read_bytes(), str(path))
    # Packing does the same, with the image's bytes unchanged or not.
    for settings in (PackSettings(), PackSettings(min_side=64)):
        assert _read_row(open_files([path]), settings, 0) == {"name": str(path), "reason": str(error.value)}


def test_threads_leave_the_filters_of_warnings_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", (9, 9)).save(path)
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        _count_pixels(open_files([path] * 2000), 8)
    finally:
        sys.setswitchinterval(interval)
    assert warnings.filters == before


def test_only_warnings_of_pillow_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (40, 40)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        # As on its first import.
        module = runpy.run_path(decode_module.__file__)
        warnings.warn("the user's own", stacklevel=1)
        module["decode"](data, "large")
    assert [str(each.message) for each in seen] == ["the user's own"]
