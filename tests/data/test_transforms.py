"""Decoding, crops, sizes and the order of images."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from spp_cls.data.loading.sampler import ShardSampler, TrainingSampler
from spp_cls.data.transforms.crops import (
    CENTRE,
    FIVE,
    compute_resized_shape,
    crop_at,
    find_corner,
    resize,
    resize_and_crop,
    warp,
)
from spp_cls.data.transforms.decode import UndecodableImageError, decode
from spp_cls.data.transforms.sizes import choose_size


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
        assert compute_resized_shape(*size, 256) == expected

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
            own = resize_and_crop(pixels, 256, 224, position).astype(int)
            # Both round the same sums to grey levels, computed from coordinates that differ in the last bits.
            assert abs(whole - own).max() <= 1

    def test_the_pixels_of_the_five_crops_are_those_computed_by_hand(self) -> None:
        y, x = np.mgrid[:128, :160]
        pixels = np.stack([x, y, 255 - x], -1).astype(np.uint8)
        for position, left, top in zip(FIVE, (12, 0, 24, 0, 24), (4, 0, 0, 8, 8), strict=True):
            crop = resize_and_crop(pixels, 64, 56, position)
            row, column = np.mgrid[top + 1 : top + 55, left + 1 : left + 55]
            # The centre of a pixel of the half-size image lies between two of the whole: at 2 x + 0.5.
            expected = np.stack([2 * column + 0.5, 2 * row + 0.5, 254.5 - 2 * column], -1)
            # Rounded after each axis; a crop one pixel aside would differ by two.
            assert abs(crop[1:55, 1:55] - expected).max() <= 1

    def test_corners_touch_the_borders(self) -> None:
        assert [find_corner(position, 301, 256, 224) for position in FIVE] == [
            (38, 16),
            (0, 0),
            (77, 0),
            (0, 32),
            (77, 32),
        ]

    @pytest.mark.parametrize("shape", [(225, 224), (340, 240), (240, 350), (224, 1000), (3, 2), (1, 5000), (5000, 1)])
    def test_any_shape(self, shape: tuple[int, int]) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3)).astype(np.uint8)
        new_width, new_height = compute_resized_shape(*shape, 256)
        whole = Image.fromarray(pixels)
        for position in FIVE:
            left, top = find_corner(position, new_width, new_height, 224)
            across, down = shape[0] / new_width, shape[1] / new_height
            box = (left * across, top * down, (left + 224) * across, (top + 224) * down)
            box = (*box[:2], min(box[2], shape[0]), min(box[3], shape[1]))
            expected = np.asarray(whole.resize((224, 224), Image.Resampling.BILINEAR, box=box), int)
            # Torch rounds after the rows and then after the columns, Pillow the other way round.
            assert abs(resize_and_crop(pixels, 256, 224, position) - expected).max() <= 2


class TestSizes:
    def test_the_words(self) -> None:
        assert [choose_size("single", epoch, 224, 0) for epoch in range(3)] == [224] * 3
        assert [choose_size("alternate", epoch, 224, 0) for epoch in range(4)] == [224, 180, 224, 180]
        assert [choose_size([224, 200, 180], epoch, 224, 0) for epoch in range(4)] == [224, 200, 180, 224]

    def test_random_is_uniform_from_180_to_224_and_repeatable(self) -> None:
        sizes = [choose_size("random", epoch, 224, 5) for epoch in range(4500)]
        counts = np.bincount(sizes, minlength=225)[180:]
        assert counts.sum() == 4500
        # 45 sizes, 100 expected of each: chi-squared with 44 degrees of freedom is under 80 in 99.9 % of draws.
        assert ((counts - 100) ** 2 / 100).sum() < 80
        assert sizes[:9] == [choose_size("random", epoch, 224, 5) for epoch in range(9)]
        assert sizes[:9] != [choose_size("random", epoch, 224, 6) for epoch in range(9)]

    @pytest.mark.parametrize("sizes", ["double", [], [0], [224.5], ["a"]])
    def test_mistakes(self, sizes: object) -> None:
        with pytest.raises(ValueError, match="sizes"):
            choose_size(sizes, 0, 224, 0)  # type: ignore[arg-type]


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

    @pytest.mark.parametrize("world_size", [2, 5])
    def test_processes_share_the_same_global_batches(self, world_size: int) -> None:
        whole = [index for _, index in TrainingSampler(47, 10, seed=3)]
        chunks = [[i for _, i in TrainingSampler(47, 10, 3, rank, world_size)] for rank in range(world_size)]
        size = 10 // world_size
        for batch in range(4):
            together = {i for chunk in chunks for i in chunk[batch * size : (batch + 1) * size]}
            assert together == set(whole[batch * 10 : (batch + 1) * 10])

    @pytest.mark.parametrize("world_size", [1, 2, 3, 7])
    def test_evaluation_sees_each_image_once(self, world_size: int) -> None:
        shards = [list(ShardSampler(20, rank, world_size)) for rank in range(world_size)]
        assert sorted(index for shard in shards for index in shard) == list(range(20))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_centre_is_the_middle() -> None:
    assert find_corner(CENTRE, 256, 256, 224) == (16, 16)


@pytest.mark.parametrize(("width", "height"), [(150, 90), (64, 200), (64, 64), (30, 40), (300, 40)])
def test_a_warped_image_is_the_whole_image_as_a_square(width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))
    # Pillow rounds to whole grey levels in another place.
    assert np.abs(warp(pixels, 64).astype(int) - expected).max() <= 1
