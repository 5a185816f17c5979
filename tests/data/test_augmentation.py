"""The paper's augmentation, and augmentations from outside the package."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spp_cls import UserError
from spp_cls.data import ImageNetDataModule
from spp_cls.data.loading.batch import Batch, Sample, collate, finish_on_device
from spp_cls.data.loading.dataset import TrainingCrops, read_image
from spp_cls.data.sources import open_source
from spp_cls.data.transforms.augmentation import (
    PCA_COMPONENTS,
    PCA_SCALES,
    ImageAugmentation,
    PaperAugmentation,
    create_augmentation,
)
from spp_cls.data.transforms.crops import CENTRE, FIVE, crop_at, resize
from tests.data.test_transforms import ramp

OFF: dict[str, Any] = {"corners": False, "flip": False, "pca_std": 0}


class TestPaper:
    def test_pca_components_are_orthonormal(self) -> None:
        # The published values have four digits.
        assert np.allclose(PCA_COMPONENTS.T @ PCA_COMPONENTS, np.eye(3), atol=2e-4)

    def test_the_parameters_are_those_of_the_generators(self) -> None:
        augmentation = PaperAugmentation().of_epoch(seed=7, epoch=2, length=50)
        positions = np.random.default_rng([7, 2, 0, 3]).integers(5, size=50, dtype=np.int8)
        flips = np.random.default_rng([7, 2, 0, 4]).integers(2, size=50, dtype=np.bool_)
        coefficients = 0.1 * np.random.default_rng([7, 2, 0, 5]).standard_normal((50, 3), np.float32)
        # No resize at this size: the pixels say where the crop is.
        pixels = ramp(300, 128)
        for i in range(50):
            assert np.array_equal(augmentation.apply(pixels, i, 112), crop_at(pixels, FIVE[positions[i]], 112))
            assert augmentation.flip(i) == flips[i]
            assert augmentation.colour_shift(i) == pytest.approx(
                PCA_COMPONENTS.astype(float) @ (PCA_SCALES.astype(float) * coefficients[i]), rel=1e-4, abs=1e-4
            )

    def test_statistics(self, shared_image_folder: Path) -> None:
        source = open_source("imagefolder", shared_image_folder, "train")
        crops = TrainingCrops(source, 112, PaperAugmentation(), seed=0)
        samples = [crops[epoch, 5] for epoch in range(2000)]
        flips = np.mean([sample.flip for sample in samples])
        assert flips == pytest.approx(0.5, abs=0.045)  # four standard deviations of 2000 coins
        shifts = np.array([sample.colour_shift for sample in samples])
        coefficients = shifts @ PCA_COMPONENTS / PCA_SCALES
        assert coefficients.mean(0) == pytest.approx([0] * 3, abs=0.009)  # four of a mean of 2000
        assert np.cov(coefficients.T) == pytest.approx(0.01 * np.eye(3), abs=0.0013)  # four of a variance
        assert len({sample.pixels.tobytes() for sample in samples}) == 5

    @pytest.mark.parametrize("kept", ["corners", "flip", "pca_std", None])
    def test_each_part_is_switched_off_alone(self, shared_image_folder: Path, kept: str | None) -> None:
        source = open_source("imagefolder", shared_image_folder, "train")
        options = {name: value for name, value in OFF.items() if name != kept}
        ours, whole = (TrainingCrops(source, 112, PaperAugmentation(**some), seed=3) for some in (options, {}))
        for epoch in range(8):
            sample, other = ours[epoch, 4], whole[epoch, 4]
            centre = crop_at(resize(read_image(source, 4), 128), CENTRE, 112)
            assert np.array_equal(sample.pixels, other.pixels if kept == "corners" else centre)
            assert sample.flip is (other.flip if kept == "flip" else False)
            assert np.array_equal(sample.colour_shift, other.colour_shift if kept == "pca_std" else np.zeros(3))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pca_std": -0.1}, r"augmentation\.pca_std is a number from 0, not -0\.1"),
            ({"flip": "yes"}, r"augmentation\.flip is true or false, not 'yes'"),
            ({"colour": 1}, "no parameter colour"),
        ],
    )
    def test_mistakes(self, options: dict[str, Any], message: str) -> None:
        path = "spp_cls.data.transforms.augmentation.PaperAugmentation"
        with pytest.raises(UserError, match=message) as error:
            create_augmentation({"_target_": path, **options})
        assert "\n" not in str(error.value)


class TestOnTheDevice:
    def test_flip_colour_mean_std_and_resize(self) -> None:
        pixels = ramp(8, 8)
        plain = Sample(pixels, 0, 0)
        altered = Sample(pixels, 1, 1, flip=True, colour_shift=np.array([1, 2, 3], np.float32))
        batch = finish_on_device(collate([plain, altered], 2), mean=(10, 20, 30), std=(1, 1, 1), size=8)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        expected = pixels.astype(np.float32) - [10, 20, 30]
        assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), expected)
        assert np.array_equal(batch.images[1].permute(1, 2, 0).numpy(), expected[:, ::-1] + [1, 2, 3])
        scaled = finish_on_device(collate([plain, altered], 2), mean=(10, 20, 30), std=(2, 4, 8), size=8)
        assert torch.equal(scaled.images, batch.images / torch.tensor([2.0, 4, 8]).view(1, 3, 1, 1))

    def test_the_small_image_is_the_crop_resized(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
        batch = finish_on_device(collate([Sample(pixels, 0, 0)], 1), mean=(0, 0, 0), std=(1, 1, 1), size=180)
        expected = np.asarray(Image.fromarray(pixels).resize((180, 180), Image.Resampling.BILINEAR), np.float32)
        # Pillow rounds to whole grey levels after each of its two passes.
        assert abs(batch.images[0].permute(1, 2, 0).numpy() - expected).max() <= 1.01


class RandomWindow(ImageAugmentation):
    """A window of the whole image at a random place, darkened: nothing that the package knows of."""

    def augment(self, pixels: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
        left, top = (int(random.integers(size - side + 1)) for size in (pixels.shape[1], pixels.shape[0]))
        return pixels[top : top + side, left : left + side] // 2


def darken_corner(pixels: np.ndarray, side: int, random: np.random.Generator, factor: int = 2) -> np.ndarray:
    return (pixels[:side, :side] // factor + random.integers(3)).astype(np.uint8)


def load_batches(root: Path, workers: int, augmentation: Any) -> list[Batch]:
    data = ImageNetDataModule("imagefolder", str(root), 6, workers, crop=64, augmentation=augmentation, seed=3)
    loader = data.train_dataloader()
    found = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found += list(loader)
    return found


class TestOwn:
    def test_a_class_makes_the_same_images_for_any_number_of_workers(self, shared_image_folder: Path) -> None:
        alone = load_batches(shared_image_folder, 0, RandomWindow())
        source = open_source("imagefolder", shared_image_folder, "train")
        seen = set()
        for number, batch in enumerate(alone):
            assert not batch.flips.any()
            assert not batch.colour_shifts.any()
            for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
                pixels = read_image(source, index)
                random = np.random.default_rng([3, number // 4, index, 8])
                left = int(random.integers(pixels.shape[1] - 63))
                top = int(random.integers(pixels.shape[0] - 63))
                expected = pixels[top : top + 64, left : left + 64] // 2
                assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
                seen.add((index, left, top))
        # Each of 24 images twice, at another place in the second epoch.
        assert len(seen) == 48
        for ours, theirs in zip(alone, load_batches(shared_image_folder, 2, RandomWindow()), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours[:5], theirs[:5], strict=True))

    def test_a_function_with_a_key_of_its_own(self, shared_image_folder: Path) -> None:
        augmentation = create_augmentation({"_target_": f"{__name__}.darken_corner", "_partial_": True, "factor": 4})
        (batch, *_) = load_batches(shared_image_folder, 0, augmentation)
        pixels = read_image(open_source("imagefolder", shared_image_folder, "train"), int(batch.indices[0]))
        noise = np.random.default_rng([3, 0, int(batch.indices[0]), 8]).integers(3)
        assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), pixels[:64, :64] // 4 + noise)
        (same, *_) = load_batches(shared_image_folder, 0, lambda *given: darken_corner(*given, factor=4))
        assert torch.equal(same.images, batch.images)

    @pytest.mark.parametrize("augmentation", [PaperAugmentation(), RandomWindow(), darken_corner])
    def test_the_data_set_goes_to_a_process_that_is_not_forked(
        self, shared_image_folder: Path, augmentation: Any
    ) -> None:
        data = ImageNetDataModule("imagefolder", str(shared_image_folder), 6, 0, crop=64, augmentation=augmentation)
        crops = data.train_dataloader().dataset
        ours, theirs = crops[1, 5], pickle.loads(pickle.dumps(crops))[1, 5]
        assert np.array_equal(ours.pixels, theirs.pixels)
        assert ours.flip == theirs.flip

    @pytest.mark.parametrize("augmentation", [RandomWindow, 3, "paper"])
    def test_what_is_not_an_augmentation(self, augmentation: Any) -> None:
        with pytest.raises(
            UserError, match=r"augmentation is an Augmentation or a function of \(pixels, side, random\)"
        ):
            ImageNetDataModule("imagefolder", "x", augmentation=augmentation)

    def test_an_image_of_another_size_is_refused(self, shared_image_folder: Path) -> None:
        with pytest.raises(UserError, match=r"uint8 \(64, 64, 3\), not float32 \(8, 8, 3\)"):
            load_batches(shared_image_folder, 0, lambda *_: np.zeros((8, 8, 3), np.float32))

    def test_images_on_the_device_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"data\.cache=device works with .* set data\.cache=none"):
            ImageNetDataModule("imagefolder", "x", cache="device", augmentation=RandomWindow())


class TestDamagedImage:
    def test_another_image_takes_its_place(self, image_folder: Path) -> None:
        (image_folder / "train/red/0.jpg").write_bytes(b"no image")
        source = open_source("imagefolder", image_folder, "train")
        index = [source.name(i) for i in range(len(source))].index("red/0.jpg")
        crops = TrainingCrops(source, 112, PaperAugmentation(), seed=0)
        sample = crops[4, index]
        assert sample.image_index == np.random.default_rng([0, 4, index, 6]).integers(24)
        assert sample.label == source.labels[sample.image_index]
        (message,) = sample.replaced
        assert "red/0.jpg" in message
        assert crops[4, index].image_index == sample.image_index

    def test_only_damaged_images_are_an_error(self, image_folder: Path) -> None:
        for path in image_folder.glob("train/*/*"):
            path.write_bytes(b"")
        crops = TrainingCrops(open_source("imagefolder", image_folder, "train"), 112, PaperAugmentation(), 0)
        with pytest.raises(ValueError, match="20 images in a row"):
            crops[0, 0]
