"""Damaged and odd image files: each decodes as Pillow does or is reported by name, none is half grey without a word."""

import io
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from spp_cls.data.transforms.decode import UndecodableImageError, decode
from tests.data.test_transforms import encoded


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colours with some noise: large flat areas as well as detail, and no grey."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (3, 4, 3)).astype(np.uint8)).resize((width, height))
    return Image.fromarray(
        (np.asarray(coarse) + random.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8)
    )


def bases() -> dict[str, bytes]:
    """Whole files of several kinds."""
    image = photograph(61, 47, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "420": encoded(image, "JPEG", quality=85),
        "444": encoded(image, "JPEG", quality=95, subsampling=0),
        "progressive": encoded(image, "JPEG", progressive=True),
        "restarts": encoded(image, "JPEG", restart_marker_blocks=3),
        "grey": encoded(image.convert("L"), "JPEG"),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "rotated": encoded(image, "JPEG", exif=exif),
        "png": encoded(image, "PNG"),
        "webp": encoded(image, "WEBP"),
    }


def damaged() -> Iterator[tuple[str, bytes]]:
    """Over 2,000 files with bit flips, zeros, wrong headers, and cut short at every tenth."""
    for name, data in bases().items():
        for number in range(200):
            random = np.random.default_rng([number, zlib.crc32(name.encode())])
            bytes_of_it = bytearray(data)
            for place in random.integers(0, len(data), 1 + number % 4):
                bytes_of_it[place] ^= 1 << int(random.integers(8))
            yield f"{name} flipped {number}", bytes(bytes_of_it)
        for number in range(20):
            start = int(np.random.default_rng(number).integers(0, len(data) - 20))
            yield f"{name} zeros {number}", data[:start] + bytes(20) + data[start + 20 :]
        for tenth in range(10):
            short = data[: len(data) * tenth // 10]
            yield f"{name} cut {tenth}", short
            yield f"{name} cut and ended {tenth}", short + b"\xff\xd9"
        for header in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8\xff\xe0", bytes(16)):
            yield f"{name} with header {header[:4]!r}", header + data[len(header) or 2 :]


def as_pillow_does(data: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def test_damaged_files_decode_as_pillow_does_or_are_reported_by_name() -> None:
    outcomes: Counter[str] = Counter()
    messages: dict[str, str] = {}
    for name, data in damaged():
        expected = as_pillow_does(data)
        try:
            pixels = decode(data, name)
        except UndecodableImageError as error:
            messages[name] = str(error)
            outcomes["refused" if expected is None else "refused though Pillow decodes it"] += 1
        else:
            assert expected is not None, name
            assert np.array_equal(pixels, expected), name
            outcomes["decoded"] += 1
    for name, message in messages.items():
        assert message.startswith(f"cannot decode the image {name}: ")
        assert "\n" not in message
    assert outcomes.total() >= 2000
    # Neither side of the test may be empty; the third are files whose rest Pillow leaves grey.
    assert min(outcomes.values()) >= 20, outcomes


@pytest.mark.parametrize("name", ["420", "444", "restarts", "grey", "rotated", "cmyk", "png", "webp"])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_file_cut_short_is_never_an_image(name: str, end: bytes) -> None:
    data = bases()[name]
    for tenth in range(10):
        with pytest.raises(UndecodableImageError):
            decode(data[: len(data) * tenth // 10] + end, name)


def frames() -> list[Image.Image]:
    return [photograph(20, 15, seed) for seed in range(3)]


ODD = {
    "1x1": lambda: encoded(photograph(1, 1, 0), "JPEG"),
    "1x256": lambda: encoded(photograph(1, 256, 0), "JPEG"),
    "256x1": lambda: encoded(photograph(256, 1, 0), "JPEG"),
    "cmyk": lambda: encoded(photograph(30, 20, 0).convert("CMYK"), "JPEG"),
    "grey": lambda: encoded(photograph(30, 20, 0).convert("L"), "JPEG"),
    "palette": lambda: encoded(photograph(30, 20, 0).convert("P"), "PNG"),
    "alpha": lambda: encoded(photograph(30, 20, 0).convert("RGBA"), "PNG"),
    "animated gif": lambda: encoded(frames()[0], "GIF", save_all=True, append_images=frames()[1:]),
    "animated webp": lambda: encoded(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]),
    "two pictures": lambda: encoded(frames()[0], "MPO", save_all=True, append_images=frames()[1:]),
    "tiff": lambda: encoded(photograph(30, 20, 0), "TIFF"),
    "rubbish after the end": lambda: encoded(photograph(30, 20, 0), "JPEG") + b"rubbish",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_decode_as_pillow_does(name: str) -> None:
    data = ODD[name]()
    expected = as_pillow_does(data)
    assert expected is not None
    assert np.array_equal(decode(data, f"{name}.JPEG"), expected)


def test_sixteen_bits_of_grey_are_scaled() -> None:
    sixteen = Image.fromarray(np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10))
    assert np.array_equal(decode(encoded(sixteen, "PNG"), "a")[..., 0], np.asarray(sixteen) >> 8)


def test_a_header_that_claims_an_absurd_size_is_refused_at_once() -> None:
    data = bytearray(encoded(photograph(64, 64, 0), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(UndecodableImageError, match="huge: "):
        decode(bytes(data), "huge")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("shape", [(1, 257), (257, 1), (2, 60_000)])
def test_a_strip_is_refused_before_it_is_resized(kind: str, shape: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", shape), kind)
    with pytest.raises(UndecodableImageError, match=rf"strip: {shape[0]} x {shape[1]} pixels, over 256 times longer"):
        decode(data, "strip", 64)


def test_an_image_that_is_a_program_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photograph(30, 20, 0), "EPS")
    # Pillow takes it for an image, and would start Ghostscript, which runs the PostScript in it.
    assert Image.open(io.BytesIO(data)).format == "EPS"
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(UndecodableImageError, match="not in a known image format"):
        decode(data, "a.jpg")


def test_large_images_are_decoded_at_half_or_a_quarter_of_their_size() -> None:
    image = photograph(1100, 1030, 0)
    data = encoded(image, "JPEG", quality=95)
    for min_side, expected in ((516, (1030, 1100)), (515, (515, 550)), (300, (515, 550)), (256, (258, 275))):
        pixels = decode(data, "large", min_side)
        assert pixels.shape[:2] == expected
        reference = np.asarray(Image.open(io.BytesIO(data)).resize(expected[::-1], Image.Resampling.BOX), np.int16)
        # The means of squares of pixels, up to the rounding of libjpeg's scaled transform and its colours.
        assert abs(pixels - reference).mean() < 3
