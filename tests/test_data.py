"""Decoding, crops, sizes, order and augmentation."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spp_cls.data.batch import Sample, collate, finish_on_device
from spp_cls.data.crops import CENTRE, FIVE, corner_of, crop_at, resize, resized_crop, resized_shape
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.data.dataset import TrainingCrops
from spp_cls.data.decode import UndecodableImageError, decode
from spp_cls.data.draws import COLOUR_COMPONENTS, COLOUR_SCALES
from spp_cls.data.sampler import ShardSampler, TrainingSampler
from spp_cls.data.show import main as show
from spp_cls.data.sizes import size_of_epoch
from spp_cls.data.sources import open_source


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width: int, height: int) -> np.ndarray:
    """Pixels that tell their own place: red is x, green is y."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], -1).astype(np.uint8)


class TestDecode:
    def test_every_colour_mode_becomes_rgb(self) -> None:
        pixels = ramp(20, 10)
        image = Image.fromarray(pixels)
        assert np.array_equal(decode(encoded(image, "PNG"), "a"), pixels)
        grey = np.asarray(image.convert("L"))
        assert np.array_equal(decode(encoded(image.convert("L"), "PNG"), "a"), np.stack([grey] * 3, -1))
        transparent = image.copy()
        transparent.putalpha(7)
        assert np.array_equal(decode(encoded(transparent, "PNG"), "a"), pixels)
        sixteen = Image.fromarray(np.full((4, 5), 0xABCD, np.uint16))
        assert np.array_equal(decode(encoded(sixteen, "PNG"), "a"), np.full((4, 5, 3), 0xAB))
        cmyk = encoded(image.convert("CMYK"), "JPEG")
        assert np.array_equal(decode(cmyk, "a"), np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))

    def test_exif_orientation_is_ignored(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        assert decode(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif), "a").shape == (10, 20, 3)

    @pytest.mark.parametrize(
        "damage", [lambda d: b"", lambda d: b"GIF89a", lambda d: d[: len(d) // 2], lambda d: d[9:]]
    )
    def test_damaged_data_is_refused_by_name(self, damage: Callable[[bytes], bytes]) -> None:
        data = encoded(Image.fromarray(ramp(100, 100)), "JPEG")
        with pytest.raises(UndecodableImageError, match=r"cannot decode the image n01\.JPEG: \w+"):
            decode(damage(data), "n01.JPEG")


class TestCrops:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((256, 256), (256, 256)), ((100, 501), (256, 1283))],
    )
    def test_min_side(self, size: tuple[int, int], expected: tuple[int, int]) -> None:
        assert resized_shape(*size, 256) == expected

    def test_the_five_positions_are_of_the_whole_image(self) -> None:
        # No resize here: the pixels say where the crop lies. 341 - 224 = 117 and 256 - 224 = 32 pixels are free.
        pixels = ramp(341, 256)
        expected = {(58, 16), (0, 0), (117, 0), (0, 32), (117, 32)}
        found = set()
        for position in FIVE:
            crop = crop_at(pixels, position, 224)
            assert crop.shape == (224, 224, 3)
            left, top = int(crop[0, 0, 0]), int(crop[0, 0, 1])
            assert np.array_equal(crop, pixels[top : top + 224, left : left + 224])
            found.add((left, top))
        assert found == expected

    @pytest.mark.parametrize("shape", [(500, 375), (375, 500), (333, 500), (64, 300), (256, 256), (1000, 999)])
    def test_a_resized_crop_is_the_crop_of_the_resized(self, shape: tuple[int, int]) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3)).astype(np.uint8)
        for position in FIVE:
            whole = crop_at(resize(pixels, 256), position, 224).astype(int)
            own = resized_crop(pixels, 256, 224, position).astype(int)
            # Both round the same sums to grey levels, computed from coordinates that differ in the last bits.
            assert abs(whole - own).max() <= 1

    def test_the_pixels_of_the_five_crops_are_those_computed_by_hand(self) -> None:
        y, x = np.mgrid[:128, :160]
        pixels = np.stack([x, y, 255 - x], -1).astype(np.uint8)
        for position, left, top in zip(FIVE, (12, 0, 24, 0, 24), (4, 0, 0, 8, 8), strict=True):
            crop = resized_crop(pixels, 64, 56, position)
            row, column = np.mgrid[top + 1 : top + 55, left + 1 : left + 55]
            # The centre of a pixel of the half-size image lies between two of the whole: at 2 x + 0.5.
            expected = np.stack([2 * column + 0.5, 2 * row + 0.5, 254.5 - 2 * column], -1)
            # Rounded after each axis; a crop one pixel aside would differ by two.
            assert abs(crop[1:55, 1:55] - expected).max() <= 1

    def test_corners_touch_the_borders(self) -> None:
        assert [corner_of(position, 301, 256, 224) for position in FIVE] == [
            (38, 16),
            (0, 0),
            (77, 0),
            (0, 32),
            (77, 32),
        ]

    @pytest.mark.parametrize("shape", [(225, 224), (340, 240), (240, 350), (224, 1000), (3, 2), (1, 5000), (5000, 1)])
    def test_any_shape(self, shape: tuple[int, int]) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3)).astype(np.uint8)
        new_width, new_height = resized_shape(*shape, 256)
        whole = Image.fromarray(pixels)
        for position in FIVE:
            left, top = corner_of(position, new_width, new_height, 224)
            across, down = shape[0] / new_width, shape[1] / new_height
            box = (left * across, top * down, (left + 224) * across, (top + 224) * down)
            box = (*box[:2], min(box[2], shape[0]), min(box[3], shape[1]))
            expected = np.asarray(whole.resize((224, 224), Image.Resampling.BILINEAR, box=box), int)
            # Torch rounds after the rows and then after the columns, Pillow the other way round.
            assert abs(resized_crop(pixels, 256, 224, position) - expected).max() <= 2


class TestSizes:
    def test_the_words(self) -> None:
        assert [size_of_epoch("single", epoch, 224, 0) for epoch in range(3)] == [224] * 3
        assert [size_of_epoch("alternate", epoch, 224, 0) for epoch in range(4)] == [224, 180, 224, 180]
        assert [size_of_epoch([224, 200, 180], epoch, 224, 0) for epoch in range(4)] == [224, 200, 180, 224]

    def test_random_is_uniform_from_180_to_224_and_repeatable(self) -> None:
        sizes = [size_of_epoch("random", epoch, 224, 5) for epoch in range(4500)]
        counts = np.bincount(sizes, minlength=225)[180:]
        assert counts.sum() == 4500
        # 45 sizes, 100 expected of each: chi-squared with 44 degrees of freedom is under 80 in 99.9 % of draws.
        assert ((counts - 100) ** 2 / 100).sum() < 80
        assert sizes[:9] == [size_of_epoch("random", epoch, 224, 5) for epoch in range(9)]
        assert sizes[:9] != [size_of_epoch("random", epoch, 224, 6) for epoch in range(9)]

    @pytest.mark.parametrize("sizes", ["double", [], [0], [224.5], ["a"]])
    def test_mistakes(self, sizes: object) -> None:
        with pytest.raises(ValueError, match="sizes"):
            size_of_epoch(sizes, 0, 224, 0)  # type: ignore[arg-type]


class TestSamplers:
    def test_an_epoch_is_a_permutation_without_its_last_incomplete_batch(self) -> None:
        sampler = TrainingSampler(103, 10, seed=1)
        orders = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            epochs, indices = zip(*sampler, strict=True)
            assert set(epochs) == {epoch}
            assert len(indices) == len(sampler) == 100
            assert len(set(indices)) == 100
            orders.append(indices)
        assert len(set(orders)) == 3

    @pytest.mark.parametrize("processes", [2, 5])
    def test_processes_share_the_same_global_batches(self, processes: int) -> None:
        whole = [index for _, index in TrainingSampler(47, 10, seed=3)]
        shares = [[i for _, i in TrainingSampler(47, 10, 3, rank, processes)] for rank in range(processes)]
        part = 10 // processes
        for batch in range(4):
            together = {i for share in shares for i in share[batch * part : (batch + 1) * part]}
            assert together == set(whole[batch * 10 : (batch + 1) * 10])

    @pytest.mark.parametrize("processes", [1, 2, 3, 7])
    def test_evaluation_sees_each_image_once(self, processes: int) -> None:
        shards = [list(ShardSampler(20, rank, processes)) for rank in range(processes)]
        assert sorted(index for shard in shards for index in shard) == list(range(20))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


class TestAugmentation:
    def test_colour_components_are_orthonormal(self) -> None:
        # The published figures have four digits.
        assert np.allclose(COLOUR_COMPONENTS.T @ COLOUR_COMPONENTS, np.eye(3), atol=2e-4)

    def test_statistics_of_the_draws(self, image_folder: Path) -> None:
        files = open_source("imagefolder", image_folder, "train")
        crops = TrainingCrops(files, 112, seed=0, colour_deviation=0.1)
        samples = [crops[epoch, 5] for epoch in range(2000)]
        flips = np.mean([sample.flip for sample in samples])
        assert flips == pytest.approx(0.5, abs=0.045)  # four deviations of 2000 coins
        colours = np.array([sample.colour for sample in samples])
        coefficients = colours @ COLOUR_COMPONENTS / COLOUR_SCALES
        assert coefficients.mean(0) == pytest.approx([0] * 3, abs=0.009)  # four deviations of a mean of 2000
        assert np.cov(coefficients.T) == pytest.approx(0.01 * np.eye(3), abs=0.0013)  # four of a variance
        corners = {sample.pixels.tobytes() for sample in samples}
        assert len(corners) == 5

    def test_flip_colour_mean_and_resize_on_the_device(self) -> None:
        pixels = ramp(8, 8)
        plain = Sample(pixels, 0, 0)
        altered = Sample(pixels, 1, 1, flip=True, colour=np.array([1, 2, 3], np.float32))
        batch = finish_on_device(collate([plain, altered], 2), mean=(10, 20, 30), size=8)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        expected = pixels.astype(np.float32) - [10, 20, 30]
        assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), expected)
        assert np.array_equal(batch.images[1].permute(1, 2, 0).numpy(), expected[:, ::-1] + [1, 2, 3])

    def test_the_small_image_is_the_crop_resized(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
        batch = finish_on_device(collate([Sample(pixels, 0, 0)], 1), mean=(0, 0, 0), size=180)
        expected = np.asarray(Image.fromarray(pixels).resize((180, 180), Image.Resampling.BILINEAR), np.float32)
        # Pillow rounds to whole grey levels after each of its two passes.
        assert abs(batch.images[0].permute(1, 2, 0).numpy() - expected).max() <= 1.01


def batches(root: Path, workers: int, epochs: int = 2) -> list[tuple]:
    data = ImageNetDataModule("imagefolder", str(root), batch_size=6, num_workers=workers, crop=112, seed=3)
    loader = data.train_dataloader()
    found = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found += [tuple(batch[:5]) for batch in loader]
    return found


def test_batches_do_not_depend_on_the_number_of_workers(shared_image_folder: Path) -> None:
    alone = batches(shared_image_folder, 0)
    assert len(alone) == 8
    for workers in (1, 3):
        for ours, theirs in zip(alone, batches(shared_image_folder, workers), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class TestDamagedTrainingImage:
    def test_another_draw_takes_its_place_and_it_is_told(self, image_folder: Path) -> None:
        (image_folder / "train/red/0.jpg").write_bytes(b"no image")
        files = open_source("imagefolder", image_folder, "train")
        index = [files.name(i) for i in range(len(files))].index("red/0.jpg")
        crops = TrainingCrops(files, 112, seed=0, colour_deviation=0.1)
        sample = crops[4, index]
        assert sample.image_index != index
        assert sample.label == files.labels[sample.image_index]
        (message,) = sample.replaced
        assert "red/0.jpg" in message
        assert crops[4, index].image_index == sample.image_index

    def test_only_damaged_images_are_an_error(self, image_folder: Path) -> None:
        for path in image_folder.glob("train/*/*"):
            path.write_bytes(b"")
        crops = TrainingCrops(open_source("imagefolder", image_folder, "train"), 112, 0, 0.1)
        with pytest.raises(ValueError, match="20 images in a row"):
            crops[0, 0]


def test_centre_is_the_middle() -> None:
    assert corner_of(CENTRE, 256, 256, 224) == (16, 16)


def test_contact_sheet(image_folder: Path, tmp_path: Path) -> None:
    root = f"data.root={image_folder}"
    out = tmp_path / "sheet.png"
    show(["data=imagefolder", root, f"out={out}", "images=10", "crop=112", "colour_deviation=0"])
    sheet = np.asarray(Image.open(out))
    # Two rows of up to eight at 112 and again at 90, each under a line of text of 14 pixels.
    assert sheet.shape == (2 * (112 + 14) + 2 * (90 + 14), 8 * 112, 3)
    files = open_source("imagefolder", image_folder, "train")
    (epoch, index), *_ = TrainingSampler(24, 10, seed=0)
    sample = TrainingCrops(files, 112, 0, 0)[epoch, index]
    expected = sample.pixels[:, ::-1] if sample.flip else sample.pixels
    assert np.array_equal(sheet[14:126, :112], expected)
    small = sheet[2 * 126 + 14 : 2 * 126 + 14 + 90, :90].astype(int)
    reference = np.asarray(Image.fromarray(np.ascontiguousarray(expected)).resize((90, 90), Image.Resampling.BILINEAR))
    # Pillow rounds to whole grey levels after each of its two passes.
    assert abs(small - reference).max() <= 1
    # Letters above, white beside the last image.
    assert sheet[:14, :112].min() < 100
    assert sheet[126 + 14 :, 2 * 112 + 1 :][:112].min() == 255
    for wrong in (["data=imagefolder"], [root, "images=0"], [root, "epoch=x"], [root, "colour_deviation=x"]):
        with pytest.raises(ValueError, match=r"data\.root|whole number|a number"):
            show([*wrong, "data=imagefolder"])
