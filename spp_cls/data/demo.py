"""The demo data set: ten classes of textured shapes, in JPEG files of varying size, aspect and object scale."""

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from spp_cls.cli.errors import UserError

IMAGES_PER_CLASS = {"train": 200, "val": 50}

Random = np.random.Generator
Mask = NDArray[np.float32]


def draw_demo(root: Path) -> None:
    """Draw the data set into `root` as train/<class>/<image>, unless it exists; always the same images.

    Raises:
        UserError: if the folder cannot be written.
    """
    if root.is_dir():
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        # Drawn beside it and renamed, so that a folder that exists is complete; several processes may draw at once.
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
            drawn = Path(folder) / root.name
            print(f"Drawing the demo data set into {root}", flush=True)
            for split_number, (split, count) in enumerate(IMAGES_PER_CLASS.items()):
                for class_number, name in enumerate(CLASSES):
                    (drawn / split / name).mkdir(parents=True)
                    for number in range(count):
                        random = np.random.default_rng([split_number, class_number, number])
                        image = _draw_image(name, random)
                        image.save(drawn / split / name / f"{number:04d}.jpg", quality=90)
            try:
                os.replace(drawn, root)
            except OSError:
                if not root.is_dir():
                    raise
    except OSError as error:
        raise UserError(f"cannot draw the demo data set into {root}: {error.strerror}") from error


def _draw_image(name: str, random: Random) -> Image.Image:
    texture, shape = name.split("_")
    width, height = (int(value) for value in 150 * np.exp(random.uniform(-0.25, 0.35, 2)))
    short = min(width, height)
    radius = short * random.uniform(0.25, 0.48)
    centre = [
        random.uniform(min(0.9 * radius, side / 2), max(side - 0.9 * radius, side / 2)) for side in (width, height)
    ]
    mask = _draw_mask(shape, width, height, centre, radius, random.uniform(-0.4, 0.4))
    # The object must stand out; its two colours are far from each other and from the background.
    dark, light = random.uniform(0, 80, 3), random.uniform(175, 255, 3)
    pattern = TEXTURES[texture](width, height, radius, random)[..., None]
    pixels = _draw_background(width, height, random)
    object_pixels = dark + (light - dark) * pattern
    pixels += (object_pixels - pixels) * mask[..., None]
    pixels += random.normal(0, 6, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_background(width: int, height: int, random: Random) -> NDArray[np.float64]:
    coarse = random.uniform(95, 160, (4, 5, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(random.integers(2, 7)):
        ends = random.uniform(0, 1, 4) * (width, height, width, height)
        pen.line(ends.tolist(), fill=tuple(random.integers(70, 185, 3).tolist()), width=int(random.integers(1, 4)))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1))).astype(np.float64)


def _draw_mask(shape: str, width: int, height: int, centre: list[float], radius: float, angle: float) -> Mask:
    # Drawn at twice the size, so that edges come out smooth.
    image = Image.new("L", (2 * width, 2 * height))
    pen = ImageDraw.Draw(image)
    x, y, r = 2 * centre[0], 2 * centre[1], 2 * radius
    if shape in ("disc", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=0)
    else:
        corners, inner = {"triangle": (3, 0.5), "square": (4, math.sqrt(0.5)), "star": (5, 0.4)}[shape]
        points = []
        for i in range(2 * corners):
            reach = r * (1.15 if i % 2 == 0 else 1.15 * inner)
            turn = angle + math.pi * i / corners - math.pi / 2
            points.append((x + reach * math.cos(turn), y + reach * math.sin(turn)))
        pen.polygon(points, fill=255)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)).astype(np.float32) / np.float32(255)


def _draw_stripes(width: int, height: int, radius: float, random: Random) -> NDArray[np.float64]:
    angle, wave = random.uniform(0, math.pi), radius * random.uniform(0.3, 0.5)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    return (np.sin((across * math.cos(angle) + down * math.sin(angle)) * 2 * math.pi / wave) > 0).astype(np.float64)


def _draw_checks(width: int, height: int, radius: float, random: Random) -> NDArray[np.float64]:
    angle, wave = random.uniform(0, math.pi / 2), radius * random.uniform(0.45, 0.7)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    first = np.sin((across * math.cos(angle) + down * math.sin(angle)) * 2 * math.pi / wave)
    second = np.sin((down * math.cos(angle) - across * math.sin(angle)) * 2 * math.pi / wave)
    return (first * second > 0).astype(np.float64)


TEXTURES: dict[str, Callable[[int, int, float, Random], NDArray[np.float64]]] = {
    "checked": _draw_checks,
    "striped": _draw_stripes,
}
SHAPES = ("disc", "ring", "square", "star", "triangle")
CLASSES = [f"{texture}_{shape}" for texture in TEXTURES for shape in SHAPES]
