"""The augmentations of today's recipes, done by torchvision and timm: standard, strong and mix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, exp, log, sqrt
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import check_fields, key
from spp_cls.data.transforms.augmentation import ImageAugmentation
from spp_cls.data.transforms.decode import Pixels
from spp_cls.data.transforms.mixing import cutmix, mixup
from spp_cls.data.transforms.randomness import seed_libraries
from spp_cls.models.config import IMAGENET_MEAN

_INTERPOLATIONS = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}

# Area of an erased box, and its height through its width: random erasing's (arXiv 1708.04896).
_ERASED_AREA, _ERASED_RATIO = (0.02, 0.4), (0.3, 1 / 0.3)

# What shifted and turned images leave empty; the share of the side by which timm shifts at most.
_FILL, _SHIFT = tuple(map(round, IMAGENET_MEAN)), 0.45


@dataclass(frozen=True)
class StandardAugmentation(ImageAugmentation):
    """A random part of the image, resized to the crop, and a flip: torchvision's RandomResizedCrop.

    Of whole images (shape=natural) there is no part to take: they are flipped. `scale` is the least and largest share
    of the area, `ratio` the least and largest width through height.

    Raises:
        UserError: if a field has a value of another type or range.
    """

    scale: tuple[float, ...] = key((0.08, 1.0), above=0, most=1)
    ratio: tuple[float, ...] = key((3 / 4, 4 / 3), above=0)
    flip: float = key(0.5, least=0, most=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    takes_whole_images = True

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        check_fields(self, "augmentation.")
        for name, values in (("scale", self.scale), ("ratio", self.ratio)):
            if len(values) != 2 or values[0] > values[1]:
                raise UserError(f"augmentation.{name} is a list of the least and the largest, not {list(values)}")

    def create_transform(self, side: int) -> Callable[[Image.Image], Image.Image]:
        """Return the transform of an image to side x side pixels; the generators of libraries are seeded for it."""
        return _crop_and_flip(self, side)

    def create_whole_transform(self, side: int) -> Callable[[Image.Image], Image.Image]:
        """Return the transform of a whole image, whose shorter side is `side`, that keeps its shape."""
        return v2.RandomHorizontalFlip(self.flip)

    def augment(self, pixels: Pixels, side: int, random: np.random.Generator) -> Pixels:
        """Transform an image with nothing random but `random`."""
        with seed_libraries(random):
            return np.array(self.create_transform(side)(Image.fromarray(pixels)))

    def augment_whole(self, pixels: Pixels, random: np.random.Generator) -> Pixels:
        """Transform a whole image with nothing random but `random`."""
        with seed_libraries(random):
            return np.array(self.create_whole_transform(min(pixels.shape[:2]))(Image.fromarray(pixels)))

    def min_side(self, side: int) -> int:
        """Return the min side at which the smallest part of an image still has `side` pixels in each direction."""
        return ceil(side * sqrt(max(self.ratio[1], 1 / self.ratio[0]) / self.scale[0]))


@dataclass(frozen=True)
class StrongAugmentation(StandardAugmentation):
    """Standard, then a policy of random operations, then a box of random pixels.

    `policy` is rand (timm's RandAugment: `operations` operations, each done to half of the images, at a strength of
    `magnitude` of 10 with the standard deviation `magnitude_std`), trivial (torchvision's TrivialAugmentWide: one
    operation at any strength) or none. `erase` is the share of images that random erasing puts a box into.

    Raises:
        UserError: if a field has a value of another type or range.
    """

    policy: Literal["rand", "trivial", "none"] = "rand"
    operations: int = key(2, least=1)
    magnitude: int = key(9, least=0, most=10)
    magnitude_std: float = key(0.5, least=0, most=10)
    erase: float = key(0.25, least=0, most=1)

    def create_transform(self, side: int) -> Callable[[Image.Image], Image.Image]:
        """Return the transform of an image to side x side pixels, but for the box."""
        crop, policy = super().create_transform(side), _create_policy(self, side)
        return lambda image: policy(crop(image))

    def create_whole_transform(self, side: int) -> Callable[[Image.Image], Image.Image]:
        """Return the transform of a whole image, but for the box."""
        flip, policy = super().create_whole_transform(side), _create_policy(self, side)
        return lambda image: policy(flip(image))

    def augment(self, pixels: Pixels, side: int, random: np.random.Generator) -> Pixels:
        """Transform an image with nothing random but `random`."""
        return self._erase(super().augment(pixels, side, random), random)

    def augment_whole(self, pixels: Pixels, random: np.random.Generator) -> Pixels:
        """Transform a whole image with nothing random but `random`."""
        return self._erase(super().augment_whole(pixels, random), random)

    def _erase(self, pixels: Pixels, random: np.random.Generator) -> Pixels:
        if random.random() < self.erase:
            erase_box(pixels, random)
        return pixels


@dataclass(frozen=True)
class MixAugmentation(StrongAugmentation):
    """Strong, then mixup or CutMix of the whole batch: images 0 and 1 with each other, 2 and 3 and so on.

    All pairs of a global batch are mixed alike. The share of an image comes from the distribution Beta(alpha, alpha) of
    `mixup_alpha` or `cutmix_alpha`; if neither is 0, half of the batches take mixup, half CutMix. `mix` is the share of
    batches that are mixed.

    Raises:
        UserError: if a field has a value of another type or range, or both alphas are 0.
    """

    mixup_alpha: float = key(0.1, least=0)
    cutmix_alpha: float = key(1.0, least=0)
    mix: float = key(1.0, least=0, most=1)

    mixes_pairs = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.mixup_alpha or self.cutmix_alpha):
            raise UserError(
                "augmentation.mixup_alpha and augmentation.cutmix_alpha are both 0; set one of them, or take "
                "augmentation=strong"
            )

    def mix_pairs(self, images: Tensor, partners: Tensor, random: np.random.Generator) -> tuple[Tensor, float]:
        """Mix by mixup or CutMix."""
        if random.random() >= self.mix:
            return images, 1.0
        takes_cutmix = random.random() < 0.5 if self.mixup_alpha and self.cutmix_alpha else bool(self.cutmix_alpha)
        alpha = self.cutmix_alpha if takes_cutmix else self.mixup_alpha
        weight = float(random.beta(alpha, alpha))
        if takes_cutmix:
            return cutmix(images, partners, weight, random)
        return mixup(images, partners, weight), weight


@cache
def _crop_and_flip(augmentation: StandardAugmentation, side: int) -> Callable[[Image.Image], Image.Image]:
    interpolation = _INTERPOLATIONS[augmentation.interpolation]
    crop = v2.RandomResizedCrop(side, augmentation.scale, augmentation.ratio, interpolation)
    return v2.Compose([crop, v2.RandomHorizontalFlip(augmentation.flip)])


@cache
def _create_policy(augmentation: StrongAugmentation, side: int) -> Callable[[Image.Image], Image.Image]:
    if augmentation.policy == "none":
        return v2.Identity()
    if augmentation.policy == "trivial":
        return v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=_FILL)
    # inc1: a larger magnitude is stronger for every operation.
    name = f"rand-m{augmentation.magnitude}-n{augmentation.operations}-mstd{augmentation.magnitude_std:.4f}-inc1"
    options: dict[str, Any] = {"translate_const": int(_SHIFT * side), "img_mean": _FILL}
    return rand_augment_transform(name, options)


def erase_box(pixels: Pixels, random: np.random.Generator) -> None:
    """Put random values into a random box of H x W x 3 pixels: random erasing."""
    height, width = pixels.shape[:2]
    area = random.uniform(*_ERASED_AREA) * height * width
    ratio = exp(random.uniform(log(_ERASED_RATIO[0]), log(_ERASED_RATIO[1])))
    down, across = min(height, round(sqrt(area * ratio))), min(width, round(sqrt(area / ratio)))
    top, left = (int(random.integers(free, endpoint=True)) for free in (height - down, width - across))
    pixels[top : top + down, left : left + across] = random.integers(256, size=(down, across, 3), dtype=np.uint8)
