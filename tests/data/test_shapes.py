"""Sizes that grow, and whole images with their aspect ratio kept."""

import math
import os
import pickle
import time
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

import spp_cls
from spp_cls import UserError
from spp_cls.data import ImageNetDataModule
from spp_cls.data.loading.sampler import BucketSampler
from spp_cls.data.sources import listing, open_source
from spp_cls.data.sources.headers import read_image_sizes
from spp_cls.data.sources.packing import PackSettings, pack
from spp_cls.data.transforms.augmentation import ImageAugmentation, PaperAugmentation
from spp_cls.data.transforms.buckets import ASPECTS, MOST_SQUEEZE, sort_into_buckets
from spp_cls.data.transforms.shapes import TrainingShapes, compute_shape, resize_whole
from spp_cls.data.transforms.sizes import choose_size, list_sizes
from spp_cls.models.checkpoint import load_checkpoint
from spp_cls.training.module import LitClassifier
from tests.conftest import load_epochs, write_image
from tests.data.test_transforms import ramp

# Widths and heights of photographs, and some that no bucket fits.
PHOTOS = [
    (500, 375),
    (375, 500),
    (500, 333),
    (333, 500),
    (400, 400),
    (640, 360),
    (500, 480),
    (320, 500),
    (250, 500),
    (900, 200),
]


class TestProgressive:
    def test_it_grows_from_160_to_224_in_multiples_of_32(self) -> None:
        sizes = [choose_size("progressive", epoch, 224, 0, epochs=88) for epoch in range(88)]
        # 160 + 64 (epoch / 87 - 0.5) / 0.3, to the nearest of 160, 192 and 224: 192 from a quarter of the growth on.
        assert sizes == [160] * 51 + [192] * 13 + [224] * 24
        assert list_sizes("progressive", 224) == [160, 192, 224]

    @pytest.mark.parametrize(("epochs", "sizes"), [(1, [224]), (2, [160, 224]), (3, [160, 160, 224])])
    def test_the_last_epoch_has_the_largest_size(self, epochs: int, sizes: list[int]) -> None:
        assert [choose_size("progressive", epoch, 224, 0, epochs) for epoch in range(epochs)] == sizes

    def test_any_range(self) -> None:
        assert list_sizes("progressive:100-200", 224) == [100, 128, 160, 192, 200]
        assert list_sizes("progressive:128-160", 224) == [128, 160]
        assert list_sizes("progressive:64-64", 224) == [64]
        grown = [choose_size("progressive:100-200", epoch, 224, 0, 101) for epoch in range(101)]
        assert grown == sorted(grown)
        assert (grown[50], grown[80], set(grown)) == (100, 200, {100, 128, 160, 192, 200})
        drawn = [choose_size("random:128-256", epoch, 224, 5) for epoch in range(2000)]
        # Each of the 129 sizes is missed by all draws with a chance of 2e-7.
        assert set(drawn) == set(range(128, 257))

    @pytest.mark.parametrize(
        "sizes", ["progressive:", "progressive:200", "random:200-100", "random:0-9", "single:1-2", "random:1-2-3"]
    )
    def test_mistakes(self, sizes: str) -> None:
        with pytest.raises(UserError, match="sizes") as error:
            list_sizes(sizes, 224)
        assert "\n" not in str(error.value)

    def test_it_needs_the_number_of_epochs(self) -> None:
        for epochs in (None, -1):
            with pytest.raises(UserError, match=r"sizes=progressive needs .*; set trainer\.max_epochs"):
                choose_size("progressive", 0, 224, 0, epochs)


def draw_sizes(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.array([PHOTOS[i] for i in random.integers(len(PHOTOS), size=count)]) + random.integers(
        20, size=(count, 2)
    )


class TestBuckets:
    def test_each_image_is_in_the_nearest_bucket(self) -> None:
        sizes = draw_sizes(3000)
        buckets = sort_into_buckets(sizes)
        assert buckets.aspects == ASPECTS
        for (width, height), bucket in zip(sizes.tolist(), buckets.of_images.tolist(), strict=True):
            distances = [abs(math.log(width / height * h / w)) for w, h in ASPECTS]
            assert distances[bucket] == min(distances)
        assert buckets.counts == tuple(Counter(buckets.of_images.tolist())[i] for i in range(len(ASPECTS)))

    def test_there_are_no_empty_buckets(self) -> None:
        # An unreadable header, which is taken for a square, and a long image.
        buckets = sort_into_buckets(np.array([[300, 100], [0, 0], [200, 100]]))
        assert (buckets.aspects, buckets.of_images.tolist()) == (((1, 1), (2, 1)), [1, 0, 1])

    def test_the_largest_squeeze(self) -> None:
        # Half way between a square and 4:3, in the logarithm.
        assert pytest.approx(math.sqrt(4 / 3)) == MOST_SQUEEZE
        ratios = [Fraction(*later) / Fraction(*earlier) for earlier, later in pairwise(ASPECTS)]
        assert max(ratios) == Fraction(4, 3)


class TestShapes:
    def test_the_shorter_side_or_the_area_is_that_of_the_size(self) -> None:
        assert [compute_shape(aspect, 224, "natural") for aspect in ASPECTS] == [
            (448, 224), (336, 224), (299, 224), (224, 224), (224, 299), (224, 336), (224, 448),
        ]  # fmt: skip
        assert compute_shape((3, 2), 224, "natural_area") == (183, 274)
        for size in range(20, 300):
            for aspect in ASPECTS:
                height, width = compute_shape(aspect, size, "natural_area")
                # Half a pixel on each side.
                assert abs(height * width - size**2) <= 0.5 * (height + width) + 0.25

    @pytest.mark.parametrize("kind", ["natural", "natural_area"])
    def test_no_aspect_is_changed_by_more_than_the_buckets_rounding(self, kind: str) -> None:
        """The slopes of a ramp after the resize say how either side was scaled."""
        random = np.random.default_rng(0)
        squeezed = []
        for width, height in [*PHOTOS, *random.integers(40, 200, (60, 2)).tolist(), (1000, 30), (30, 1000)]:
            pixels = linear(width, height)
            # Of a bucket far away too: that of an image which this one replaces.
            for aspect in (sort_into_buckets(np.array([[width, height]])).aspects[0], (1, 1)):
                shape = compute_shape(aspect, 96, kind)
                found = resize_whole(pixels, shape)
                assert found.shape == (*shape, 3)
                # Pixels of the image for each of the result.
                across = slope(found[shape[0] // 2, :, 0]) * (width - 1)
                down = slope(found[:, shape[1] // 2, 1]) * (height - 1)
                change = across / down
                squeezed.append(max(change, 1 / change))
        # The slopes are read from whole grey levels, of which a window of the longest images has nine: within 2 %.
        assert MOST_SQUEEZE * 0.98 <= max(squeezed) <= MOST_SQUEEZE * 1.02

    def test_an_image_of_its_bucket_is_whole(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (375, 520, 3)).astype(np.uint8)
        expected = np.asarray(Image.fromarray(pixels).resize((299, 224), Image.Resampling.BILINEAR), int)
        # Torch rounds after the rows and then after the columns, Pillow the other way round.
        assert abs(resize_whole(pixels, (224, 299)) - expected).max() <= 2

    def test_what_is_cut_off_is_cut_off_at_both_ends(self) -> None:
        # No resize: of 600 columns 554 are to be 480 wide.
        pixels = ramp(600, 240)
        whole_width = math.ceil(600 / MOST_SQUEEZE)
        left = (whole_width - 480) // 2
        middle = np.asarray(Image.fromarray(pixels).resize((whole_width, 240), Image.Resampling.BILINEAR), int)
        assert abs(resize_whole(pixels, (240, 480))[..., 1] - middle[:, left : left + 480, 1]).max() <= 2
        assert whole_width == 520

    @pytest.mark.parametrize("width", [200, 500])
    def test_augmentations_may_write_to_it(self, width: int) -> None:
        assert resize_whole(np.zeros((100, width, 3), np.uint8), (112, 224)).flags.writeable

    @pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (2, 3)])
    def test_any_image(self, size: tuple[int, int]) -> None:
        pixels = np.full((size[1], size[0], 3), 77, np.uint8)
        for aspect in ASPECTS:
            shape = compute_shape(aspect, 32, "natural")
            assert np.array_equal(resize_whole(pixels, shape), np.full((*shape, 3), 77))

    def test_the_shapes_of_a_run(self) -> None:
        crops = TrainingShapes("alternate", 224)
        assert crops.all == [(180, 180), (224, 224)]
        assert crops.largest == [(224, 224)]
        assert crops.choose((224, 224), 1, None) == (180, 180)
        natural = TrainingShapes([64, 48], 112, kind="natural")
        assert len(natural.all) == 14
        assert natural.largest_size == 64
        assert natural.choose((64, 85), 1, None) == (48, 64)
        with pytest.raises(UserError, match=r"shape is crop, natural or natural_area, not 'square'"):
            TrainingShapes("single", 112, kind="square")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 training images of three classes and many shapes, six to validate."""
    root = tmp_path_factory.mktemp("photos") / "images"
    for split, count in (("train", 40), ("val", 2)):
        for label, name in enumerate(("a", "b", "c")):
            for i in range(count):
                width, height = PHOTOS[(i + label) % len(PHOTOS)]
                colour = (40 + 80 * label, 90, 200 - 70 * label)
                write_image(root / split / name / f"{i:02}.jpg", width // 4, height // 4, colour, seed=i)
    return root


def create_data(root: Path, workers: int = 0, **options: Any) -> ImageNetDataModule:
    given = {"batch_size": 6, "crop": 32, "seed": 3, "shape": "natural", **options}
    return ImageNetDataModule("imagefolder", str(root), num_workers=workers, **given)


class TestEpochs:
    @pytest.mark.parametrize(("count", "batch"), [(120, 6), (1000, 7), (1000, 48), (3060, 128), (130, 128)])
    def test_every_image_at_most_once_and_as_many_as_with_crops(self, count: int, batch: int) -> None:
        buckets = sort_into_buckets(draw_sizes(count)).of_images
        sampler = BucketSampler(buckets, batch, seed=1)
        left_out, elsewhere = [], []
        for epoch in range(20):
            sampler.set_epoch(epoch)
            epochs, indices, shapes = (np.array(column) for column in zip(*sampler, strict=True))
            assert set(epochs) == {epoch}
            assert len(indices) == len(set(indices)) == len(sampler) == count // batch * batch
            # One shape a batch.
            assert (shapes.reshape(-1, batch) == shapes[::batch, None]).all()
            moved = shapes != buckets[indices]
            assert moved.sum() <= (np.bincount(buckets) % batch).sum()
            batches = np.sort(buckets[indices].reshape(-1, batch))
            # The shape is that of an image in the middle.
            assert (shapes[::batch] == batches[:, batch // 2]).all()
            left_out += sorted(set(range(count)) - set(indices.tolist()))
            elsewhere += indices[moved].tolist()
        # 20 epochs leave out other images and change those of other shapes.
        assert len(left_out) == 20 * (count % batch)
        assert len(set(left_out)) >= 0.5 * min(count, len(left_out))
        assert len(set(elsewhere)) >= min(len(elsewhere), 0.5 * np.bincount(buckets).min())

    def test_batches_of_the_shape_of_their_bucket_without_padding(self, images: Path) -> None:
        data = create_data(images)
        batches = load_epochs(data, 3)
        assert len(batches) == 60
        for batch in batches:
            height, width = batch.images.shape[-2:]
            assert batch.images.shape == (6, 3, height, width)
            assert (height, width) in data.shapes.largest
            # Noise everywhere, as in the images.
            assert (batch.images.float().std((0, 1)) > 0).all()
        # The shapes come in random order.
        widths = [batch.images.shape[-1] for batch in batches[:20]]
        assert widths != sorted(widths)

    def test_most_images_have_the_shape_nearest_to_theirs(self, images: Path) -> None:
        data = create_data(images)
        source, nearest = data.train_source, 0
        for batch in load_epochs(data, 1):
            height, width = batch.images.shape[-2:]
            for index in batch.indices.tolist():
                w, h = source.size(index)
                distances = {shape: abs(math.log(w / h * shape[0] / shape[1])) for shape in data.shapes.largest}
                # A side of these small shapes is rounded by up to 2 %.
                nearest += distances[height, width] <= min(distances.values()) + 0.04
        buckets = data.shapes.buckets
        assert buckets
        assert nearest >= 120 - sum(count % 6 for count in buckets.counts)

    @pytest.mark.parametrize("workers", [1, 3])
    def test_the_same_for_any_number_of_workers(self, images: Path, workers: int) -> None:
        for ours, theirs in zip(
            load_epochs(create_data(images)), load_epochs(create_data(images, workers)), strict=True
        ):
            assert all(torch.equal(a, b) for a, b in zip(ours[:5], theirs[:5], strict=True))

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_processes_share_the_same_batches_of_the_same_shape(self, images: Path, world_size: int) -> None:
        whole = load_epochs(create_data(images), 1)
        loaders = []
        for rank in range(world_size):
            data = create_data(images)
            loader = data.train_dataloader()
            buckets = data.shapes.buckets.of_images  # type: ignore[union-attr]
            sampler = BucketSampler(buckets, 6, 3, rank, world_size)
            assert len(sampler) == len(list(sampler)) == len(whole) * 6 // world_size
            chosen = list(sampler)
            size = 6 // world_size
            loaders.append(
                [loader.dataset.__getitems__(chosen[at : at + size]) for at in range(0, len(chosen), size)]  # type: ignore[attr-defined]
            )
        for batch, *chunks in zip(whole, *loaders, strict=True):
            assert torch.equal(torch.cat([chunk.images for chunk in chunks]), batch.images)
            assert torch.equal(torch.cat([chunk.flips for chunk in chunks]), batch.flips)

    @pytest.mark.parametrize("consumed", range(0, 126, 6))
    def test_the_sampler_goes_on_after_any_batch(self, consumed: int) -> None:
        buckets = sort_into_buckets(draw_sizes(120)).of_images
        whole, resumed = (BucketSampler(buckets, 6, 3) for _ in range(2))
        whole.set_epoch(5)
        resumed.set_epoch(5)
        resumed.resume(5, consumed)
        assert list(resumed) == list(whole)[consumed:]

    def test_packed_images_give_the_same_batches(self, images: Path, tmp_path: Path) -> None:
        splits = {split: open_source("imagefolder", images, split) for split in ("train", "val")}  # type: ignore[arg-type]
        pack(splits, tmp_path / "packed", PackSettings(), 1, "stop")
        data = ImageNetDataModule("packed", str(tmp_path / "packed"), 6, 0, crop=32, seed=3, shape="natural")
        for ours, theirs in zip(load_epochs(data), load_epochs(create_data(images)), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours[:5], theirs[:5], strict=True))

    def test_a_damaged_image_is_replaced_in_the_shape_of_its_batch(self, images: Path, tmp_path: Path) -> None:
        for path in images.rglob("*.jpg"):
            copy = tmp_path / path.relative_to(images)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        # The header is whole in one, and in the other nothing.
        cut, empty = tmp_path / "train/a/01.jpg", tmp_path / "train/b/04.jpg"
        cut.write_bytes(cut.read_bytes()[:-300])
        empty.write_bytes(b"")
        data = create_data(tmp_path)
        assert read_image_sizes(data.train_source)[44].tolist() == [0, 0]
        replaced = {message for batch in load_epochs(data, 4) for message in batch.replaced}
        assert len(replaced) == 2

    def test_whole_images_are_flipped_and_shifted_as_crops_are(self, images: Path) -> None:
        data = create_data(images, augmentation=PaperAugmentation(pca_std=0.3))
        expected = PaperAugmentation(pca_std=0.3).of_epoch(3, 0, 120)
        for batch in load_epochs(data, 1):
            indices = batch.indices.tolist()
            assert batch.flips.tolist() == [expected.flip(index) for index in indices]
            assert np.array_equal(batch.colour_shifts, np.stack([expected.colour_shift(index) for index in indices]))


class Darken(ImageAugmentation):
    """An augmentation of whole images."""

    takes_whole_images = True

    def augment(self, pixels: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
        raise NotImplementedError

    def augment_whole(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return pixels // random.integers(2, 5).astype(np.uint8)


class Transposed(Darken):
    def augment_whole(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return pixels[:10]


class CropsAlone(Darken):
    takes_whole_images = False


class TestOwnAugmentation:
    def test_it_gets_the_resized_image_and_a_generator(self, images: Path) -> None:
        plain = load_epochs(create_data(images), 1)
        for dark, light in zip(load_epochs(create_data(images, augmentation=Darken()), 1), plain, strict=True):
            for index, ours, theirs in zip(dark.indices.tolist(), dark.images, light.images, strict=True):
                factor = int(np.random.default_rng([3, 0, index, 8]).integers(2, 5))
                assert torch.equal(ours, theirs // factor)

    def test_it_keeps_the_shape(self, images: Path) -> None:
        with pytest.raises(UserError, match=r"uint8 \(\d+, \d+, 3\), not uint8 \(10, "):
            load_epochs(create_data(images, augmentation=Transposed()), 1)

    @pytest.mark.parametrize("augmentation", [CropsAlone(), lambda pixels, side, random: pixels])
    def test_one_that_only_crops_is_refused(self, augmentation: Any) -> None:
        with pytest.raises(UserError, match=r"shape=natural takes augmentations of whole images") as error:
            create_data(Path("x"), augmentation=augmentation)
        assert "\n" not in str(error.value)

    def test_the_data_set_goes_to_a_process_that_is_not_forked(self, images: Path) -> None:
        dataset = create_data(images, augmentation=Darken()).train_dataloader().dataset
        assert np.array_equal(dataset[1, 5, 2].pixels, pickle.loads(pickle.dumps(dataset))[1, 5, 2].pixels)


def test_images_on_the_device_are_crops() -> None:
    with pytest.raises(UserError, match=r"data\.cache=device makes crops only; .* shape=natural_area"):
        create_data(Path("x"), shape="natural_area", cache="device")


def test_crops_are_made_at_the_largest_size_whatever_validation_has(images: Path) -> None:
    data = create_data(images, shape="crop", crop=64, sizes=[40, 32])
    assert {tuple(batch.images.shape) for batch in load_epochs(data)} == {(6, 3, 40, 40)}
    same = create_data(images, shape="crop", crop=40)
    for ours, theirs in zip(load_epochs(data), load_epochs(same), strict=True):
        assert torch.equal(ours.images, theirs.images)
    (val,) = data.val_dataloader()
    assert val.images.shape == (6, 3, 64, 64)


def test_sizes_of_a_large_folder_are_cached(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "LEAST_CACHED", 1)
    for path in images.rglob("*"):
        if path.is_dir():
            os.utime(path, (1e9, 1e9))
    source = open_source("imagefolder", images, "train")
    expected = np.array([source.size(i) for i in range(120)])
    assert np.array_equal(read_image_sizes(source), expected)
    (cache,) = (tmp_path / "cache/spp_cls").glob("sizes-*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(type(source), "size", None)
        assert np.array_equal(read_image_sizes(source), expected)
    # A folder that changed is read again; just after a change the sizes are not kept.
    os.utime(images / "train/a", (time.time(), time.time()))
    before = cache.read_bytes()
    assert np.array_equal(read_image_sizes(source), expected)
    assert cache.read_bytes() == before


class MachineGoneError(Exception):
    """Stands for a machine that goes away."""


class Seen(pl.Callback):
    """Notes what the network was trained on, and stops before a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[int, tuple[int, ...], list[int], float]] = []
        self.stop_at = stop_at

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        if trainer.global_step == self.stop_at:
            raise MachineGoneError
        values = batch.indices.tolist(), float(batch.images.double().sum())
        self.steps.append((trainer.current_epoch, tuple(batch.images.shape[-2:]), *values))


def fit(root: Path, folder: Path, seen: Seen, resume: bool, **options: Any) -> ImageNetDataModule:
    torch.manual_seed(0)
    data = create_data(root, **options)
    net = spp_cls.build_net("zf5_tiny", num_classes=3, input_size=32, hidden=(), class_names=data.class_names)
    saved = pl.callbacks.ModelCheckpoint(folder, filename="last", every_n_train_steps=5, enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[seen, saved], logger=False, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(LitClassifier(net), data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return data


@pytest.mark.parametrize(("shape", "stop"), [("natural", 25), ("natural_area", 40)])
def test_a_run_stopped_in_an_epoch_goes_on_with_the_next_batch(
    shape: str, stop: int, images: Path, tmp_path: Path
) -> None:
    options = {"shape": shape, "sizes": "progressive:34-48"}
    whole, first, second = Seen(), Seen(stop), Seen()
    data = fit(images, tmp_path / "whole", whole, resume=False, **options)
    with pytest.raises(MachineGoneError):
        fit(images, tmp_path / "stopped", first, resume=False, **options)
    fit(images, tmp_path / "stopped", second, resume=True, **options)
    assert first.steps + second.steps == whole.steps
    weights, resumed = (load_checkpoint(tmp_path / name / "last.ckpt")["state_dict"] for name in ("whole", "stopped"))
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)
    buckets = data.shapes.buckets
    assert buckets
    assert len(whole.steps) == 3 * 20
    for epoch, size in enumerate((34, 34, 48)):
        shapes = {shape for number, shape, _, _ in whole.steps if number == epoch}
        assert shapes <= {compute_shape(aspect, size, data.shapes.kind) for aspect in buckets.aspects}
        assert len(shapes) > 4


def linear(width: int, height: int) -> np.ndarray:
    """An image whose red grows by its width from left to right and whose green from top to bottom."""
    red, green = np.linspace(0, 250, width), np.linspace(0, 250, height)
    channels = np.broadcast_arrays(red[None], green[:, None], 0)
    return np.stack(channels, -1).round().astype(np.uint8)


def slope(levels: np.ndarray) -> float:
    """Return by how much of an image's side one pixel is, from the inner pixels."""
    inner = np.arange(len(levels))[8:-8]
    return float(np.polyfit(inner, levels[8:-8].astype(float), 1)[0] / 250)
