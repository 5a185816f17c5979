"""The augmentations of today's recipes: what torchvision and timm do, as functions of (seed, epoch, image)."""

import random as python_random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

from spp_cls.cli.errors import UserError
from spp_cls.data import ImageNetDataModule
from spp_cls.data.loading.batch import Batch, mix_batch
from spp_cls.data.transforms.augmentation import create_augmentation
from spp_cls.data.transforms.mixing import cutmix, mixup
from spp_cls.data.transforms.randomness import seed_libraries
from spp_cls.data.transforms.standard import (
    MixAugmentation,
    StandardAugmentation,
    StrongAugmentation,
    erase_box,
)
from spp_cls.data.transforms.standard import (
    __name__ as module,
)
from tests.conftest import REPOSITORY
from tests.data.test_augmentation import load_batches


def noise(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


PIXELS = noise(150, 200)


def seed_all(seeds: list[int]) -> None:
    python_random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.manual_seed(seeds[2])


def test_the_libraries_generators_are_put_back() -> None:
    def draw() -> list[float]:
        return [python_random.random(), np.random.random(), torch.rand(()).item()]

    seed_all([1, 2, 3])
    expected = draw()
    seed_all([1, 2, 3])
    with seed_libraries(np.random.default_rng(5)):
        first = draw()
    assert draw() == expected
    with seed_libraries(np.random.default_rng(5)):
        assert draw() == first
    seed_all(np.random.default_rng(5).integers(2**32, size=3).tolist())
    assert draw() == first


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_standard_is_that_of_torchvision(interpolation: Any) -> None:
    augmentation = StandardAugmentation((0.3, 0.8), (0.9, 1.5), 0.4, interpolation)
    mode = v2.InterpolationMode(interpolation)
    crop = v2.RandomResizedCrop(64, (0.3, 0.8), (0.9, 1.5), mode)
    flip = v2.RandomHorizontalFlip(0.4)
    for number in range(20):
        random = np.random.default_rng(number)
        found = augmentation.augment(PIXELS, 64, random)
        seed_all(np.random.default_rng(number).integers(2**32, size=3).tolist())
        assert np.array_equal(found, np.asarray(flip(crop(Image.fromarray(PIXELS)))))
        assert found.shape == (64, 64, 3)


def test_rand_is_that_of_timm_and_trivial_that_of_torchvision() -> None:
    options = {"translate_const": 28, "img_mean": (124, 116, 104)}
    rand = rand_augment_transform("rand-m6-n3-mstd0.5-inc1", dict(options))
    trivial = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=(124, 116, 104))
    seen = set()
    for number in range(20):
        crop, flip = v2.RandomResizedCrop(64, (0.08, 1.0)), v2.RandomHorizontalFlip()
        for name, policy in (("rand", rand), ("trivial", trivial)):
            augmentation = StrongAugmentation(policy=name, operations=3, magnitude=6, erase=0)  # type: ignore[arg-type]
            found = augmentation.augment(PIXELS, 64, np.random.default_rng(number))
            seed_all(np.random.default_rng(number).integers(2**32, size=3).tolist())
            assert np.array_equal(found, np.asarray(policy(flip(crop(Image.fromarray(PIXELS))))))
            seen.add(found.tobytes())
    assert len(seen) == 40


def test_strong_without_its_parts_is_standard() -> None:
    for number in range(5):
        found, expected = (
            each.augment(PIXELS, 64, np.random.default_rng(number))
            for each in (StrongAugmentation(policy="none", erase=0), StandardAugmentation())
        )
        assert np.array_equal(found, expected)


def test_random_erasing() -> None:
    areas = []
    for number in range(200):
        pixels = np.zeros((100, 80, 3), np.uint8)
        erase_box(pixels, np.random.default_rng(number))
        # A pixel of zeros is drawn once in 16 million.
        rows, columns = (np.flatnonzero(pixels.any((2, 1 - axis))) for axis in (0, 1))
        box = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box.any(2)).mean() > 0.99
        areas.append(len(rows) * len(columns) / 8000)
        # Sides are whole pixels; the longest are cut at the borders.
        assert len(rows) / len(columns) < 1.15 / 0.3
    assert 0.019 < min(areas) < 0.05
    assert 0.3 < max(areas) < 0.405
    erased = [StrongAugmentation(policy="none", erase=0.25), StrongAugmentation(policy="none", erase=0)]
    changed = sum(
        not np.array_equal(*(each.augment(PIXELS, 32, np.random.default_rng(i)) for each in erased)) for i in range(400)
    )
    assert changed == pytest.approx(100, abs=35)  # four standard deviations of 400 coins of a quarter


@pytest.mark.parametrize("options", [{}, {"scale": (0.35, 1.0)}, {"ratio": (0.5, 1.2)}])
def test_no_part_is_enlarged_because_of_decoding_at_a_fraction(options: dict[str, Any]) -> None:
    augmentation = StandardAugmentation(**options)
    side = augmentation.min_side(64)
    image = torch.zeros(3, side, round(1.4 * side))
    crop = v2.RandomResizedCrop(64, augmentation.scale, augmentation.ratio)
    torch.manual_seed(0)
    smallest = min(min(crop.make_params([image])[key] for key in ("height", "width")) for _ in range(2000))
    assert smallest >= 64
    square = torch.zeros(3, side, side)
    # Not for nothing: of the smallest images with such a hint some parts are hardly larger.
    assert min(min(crop.make_params([square])[key] for key in ("height", "width")) for _ in range(2000)) < 64 * 1.4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Standard", {"scale": [0.5]}, "augmentation.scale is a list of the least and the largest, not [0.5]"),
        ("Standard", {"scale": [0, 1]}, "augmentation.scale is a list of numbers above 0 to 1, not (0, 1)"),
        ("Standard", {"ratio": [2, 1]}, "augmentation.ratio is a list of the least and the largest, not [2, 1]"),
        ("Standard", {"flip": 2}, "augmentation.flip is a number from 0 to 1, not 2"),
        ("Standard", {"interpolation": "nearest"}, "augmentation.interpolation is bilinear or bicubic, not 'nearest'"),
        ("Strong", {"policy": "auto"}, "augmentation.policy is rand or trivial or none, not 'auto'"),
        ("Strong", {"magnitude": 11}, "augmentation.magnitude is a whole number from 0 to 10, not 11"),
        ("Strong", {"mixup_alpha": 1}, "no parameter mixup_alpha"),
        ("Mix", {"mixup_alpha": 0, "cutmix_alpha": 0.0}, "augmentation.cutmix_alpha are both 0; set one of them"),
    ],
)
def test_mistakes(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        create_augmentation({"_target_": f"{module}.{name}Augmentation", **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["standard", "strong", "mix"])
def test_the_defaults_of_conf_are_those_of_python(name: str) -> None:
    node: Any = {}
    for part in ("standard", "strong", "mix")[: ("standard", "strong", "mix").index(name) + 1]:
        node |= OmegaConf.to_container(OmegaConf.load(REPOSITORY / f"conf/augmentation/{part}.yaml"))  # type: ignore[operator]
    node.pop("defaults", None)
    found = create_augmentation(node)
    assert found == type(found)()
    assert type(found).__name__ == f"{name.title()}Augmentation"


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_images_are_the_same_for_any_number_of_workers(shared_image_folder: Path, workers: int) -> None:
    alone = load_batches(shared_image_folder, 0, StrongAugmentation())
    assert len({image.numpy().tobytes() for batch in alone for image in batch.images}) == 48
    for ours, theirs in zip(alone, load_batches(shared_image_folder, workers, StrongAugmentation()), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:5], theirs[:5], strict=True))


def test_whole_images_keep_their_shape() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    flipped = StandardAugmentation(flip=1.0).augment_whole(pixels, np.random.default_rng(1))
    assert np.array_equal(flipped, pixels[:, ::-1])
    # The policy is that of timm, at the shorter side.
    strong = StrongAugmentation(flip=0.0, erase=0.0).augment_whole(pixels, np.random.default_rng(1))
    policy = rand_augment_transform(
        "rand-m9-n2-mstd0.5000-inc1", {"translate_const": int(0.45 * 40), "img_mean": (124, 116, 104)}
    )
    with seed_libraries(np.random.default_rng(1)):
        # The flip draws a number before.
        torch.rand(1)
        assert np.array_equal(strong, np.array(policy(Image.fromarray(pixels))))
    erased = StrongAugmentation(flip=0.0, policy="none", erase=1.0).augment_whole(pixels, np.random.default_rng(1))
    changed = (erased != pixels).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    # One box: 2 to 40 % of the area.
    assert 0.02 * 0.9 < np.ptp(rows) * np.ptp(columns) / changed.size < 0.4
    assert changed.mean() == pytest.approx((np.ptp(rows) + 1) * (np.ptp(columns) + 1) / changed.size, rel=0.01)


class TestMixing:
    images = torch.rand(6, 3, 12, 20).to(memory_format=torch.channels_last)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])

    def batch(self) -> Batch:
        empty = torch.zeros(6)
        return Batch(self.images, self.labels, torch.arange(6), empty, empty, [])

    def test_mixup(self) -> None:
        mixed = mixup(self.images, self.images.flip(0), 0.3)
        torch.testing.assert_close(mixed, 0.3 * self.images + 0.7 * self.images.flip(0))

    @pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 0.9, 1.0])
    def test_cutmix(self, weight: float) -> None:
        zeros, ones = torch.zeros(2, 3, 48, 80), torch.ones(2, 3, 48, 80)
        shares = []
        for number in range(300):
            mixed, share = cutmix(zeros, ones, weight, np.random.default_rng(number))
            assert share == pytest.approx(1 - mixed[0, 0].mean().item(), abs=1e-6)
            assert torch.equal(mixed[0], mixed[1])
            rows, columns = (mixed[0, 0].amax(axis).nonzero() for axis in (1, 0))
            if len(rows):
                # A box: all of it is the partner's.
                assert len(rows) * len(columns) == mixed[0, 0].sum()
                shares.append(share)
        # The box is never larger than asked for, but for rounding its sides to pixels, and as large where it fits.
        assert min(shares, default=1) == pytest.approx(weight, abs=0.03 if weight else 0.5)

    def test_images_of_a_whole_share_are_those_of_the_augmentation(self) -> None:
        class Brighter(MixAugmentation):
            def mix_pairs(self, images: Any, partners: Any, random: Any) -> Any:
                return images + 1, 1.0

        mixed = mix_batch(self.batch(), Brighter(), np.random.default_rng(0), 3)
        assert torch.equal(mixed.images, self.images + 1)
        assert mixed.targets is None

    def test_neighbours_are_mixed_and_labels_are_those_of_the_larger_share(self) -> None:
        partner = [1, 0, 3, 2, 5, 4]
        seen = {"mixup": 0, "cutmix": 0, "own": 0}
        for number in range(100):
            augmentation = MixAugmentation(mixup_alpha=1.0, mix=0.8)
            mixed = mix_batch(self.batch(), augmentation, np.random.default_rng(number), 3)
            if mixed.targets is None:
                seen["own"] += 1
                assert torch.equal(mixed.images, self.images)
                continue
            assert mixed.images.is_contiguous(memory_format=torch.channels_last)
            # Images 2 and 3 have the same label.
            share = mixed.targets[0, 0].item()
            expected = torch.zeros(6, 3)
            for i, j in enumerate(partner):
                expected[i, self.labels[i]] += share
                expected[i, self.labels[j]] += 1 - share
            torch.testing.assert_close(mixed.targets, expected)
            assert torch.equal(mixed.labels, self.labels if share >= 0.5 else self.labels[partner])
            assert torch.equal(mixed.indices, torch.arange(6))
            blended = share * self.images + (1 - share) * self.images[partner]
            if torch.allclose(mixed.images, blended, atol=1e-6):
                seen["mixup"] += 1
            else:
                seen["cutmix"] += 1
                is_own = mixed.images == self.images
                assert torch.equal(torch.where(is_own, self.images, self.images[partner]), mixed.images)
                assert is_own.float().mean().item() == pytest.approx(share, abs=1e-6)
        # Four standard deviations of 100 draws of 0.4, 0.4 and 0.2.
        assert seen["mixup"] == pytest.approx(40, abs=20)
        assert seen["cutmix"] == pytest.approx(40, abs=20)
        assert seen["own"] == pytest.approx(20, abs=16)

    def test_an_alpha_of_zero_leaves_the_other_kind(self) -> None:
        for options, is_box in (({"mixup_alpha": 0}, True), ({"cutmix_alpha": 0, "mixup_alpha": 1.0}, False)):
            for number in range(10):
                mixed = mix_batch(self.batch(), MixAugmentation(**options), np.random.default_rng(number), 3)
                is_own = (mixed.images == self.images) | (mixed.images == self.images[[1, 0, 3, 2, 5, 4]])
                assert bool(is_own.all()) == is_box

    def test_shares_are_those_of_the_beta_distribution(self) -> None:
        augmentation = MixAugmentation(mixup_alpha=0.4, cutmix_alpha=0)
        pair = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
        shares = [augmentation.mix_pairs(pair, pair.flip(0), np.random.default_rng(i))[1] for i in range(2000)]
        # Variance of Beta(a, a): 1 / (4 (2a + 1)); four standard deviations of a mean and of a variance.
        assert np.mean(shares) == pytest.approx(0.5, abs=0.034)
        assert np.var(shares) == pytest.approx(1 / 7.2, abs=0.01)

    @pytest.mark.parametrize(("size", "chunks"), [(7, 1), (6, 2)])
    def test_an_odd_chunk_is_refused(self, shared_image_folder: Path, size: int, chunks: int) -> None:
        data = ImageNetDataModule("imagefolder", str(shared_image_folder), size, 0, augmentation=MixAugmentation())
        with pytest.raises(UserError, match=rf"odd number; set data\.batch_size to a multiple of {2 * chunks}"):
            data.check_batch(chunks)
        ImageNetDataModule("imagefolder", str(shared_image_folder), 8, 0, augmentation=MixAugmentation()).check_batch(2)
