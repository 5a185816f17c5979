"""Protocols, windows and the evaluator against slow, obvious references."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

import spp_cls
from spp_cls import UserError
from spp_cls.data.loading.dataset import read_image
from spp_cls.data.sources import open_source
from spp_cls.data.sources.files import ImageFiles
from spp_cls.data.transforms.crops import resize, warp
from spp_cls.evaluation import PROTOCOLS, Protocol, View, evaluate, get_protocol, view_features
from spp_cls.evaluation.features import find_cells
from spp_cls.evaluation.images import get_cuts, group_by_shape, load_cuts
from spp_cls.evaluation.protocols import SIX_SCALES, make_map_views, make_protocol
from tests.conftest import write_image
from tests.models.test_pyramid import pooled_by_loops

CPU = Fabric(accelerator="cpu", devices=1)

# Of pixels: He's weights need inputs of about one.
STD = (57.6, 57.6, 57.6)


def window_corner(view: View, width: int, height: int, window: int) -> tuple[int, int]:
    """Left and top of a view's window in the unflipped image, from the words of section 3.1.4."""
    assert view.position is not None
    places = {0: lambda free: 0, 0.5: lambda free: free // 2, 1: lambda free: free}
    return places[view.position[0]](width - window), places[view.position[1]](height - window)


class TestViews:
    @pytest.mark.parametrize(
        ("name", "count"),
        [
            ("crop1", 1),
            ("crop10", 10),
            ("full1", 1),
            ("full2", 2),
            ("map10", 10),
            ("map96", 96),
            ("map98", 98),
            ("warp1", 1),
        ],
    )
    def test_counts(self, name: str, count: int) -> None:
        views = get_protocol(name).views
        assert len(views) == len(set(views)) == count

    def test_views_a_scale(self) -> None:
        counts = {scale: sum(view.scale == scale for view in PROTOCOLS["map96"].views) for scale in SIX_SCALES}
        assert counts == {224: 6, 256: 18, 300: 18, 360: 18, 448: 18, 560: 18}

    @pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (700, 350)])
    def test_windows_are_distinct_at_every_scale(self, width: int, height: int) -> None:
        for scale in SIX_SCALES:
            size = [side * scale // min(width, height) for side in (width, height)]
            views = [view for view in make_map_views([scale]) if not view.flip]
            corners = {window_corner(view, *size, 224) for view in views}
            assert len(corners) == (3 if scale == 224 else 9)
            free = [side - 224 for side in size]
            nine = {(x, y) for x in (0, free[0] // 2, free[0]) for y in (0, free[1] // 2, free[1])}
            assert corners == nine

    def test_mistakes(self) -> None:
        with pytest.raises(ValueError, match=r"no protocol 'map97'; choose among crop1, .*map98"):
            get_protocol("map97")
        with pytest.raises(ValueError, match="200 is smaller than the window"):
            make_map_views([256, 200])


class TestWindows:
    # paper.md, section 5: [0, 224] keeps the 13 or 18 cells of a 224 image; 3..21 (from 1) at the right of 256, S = 12.
    @pytest.mark.parametrize(
        ("window", "stride", "centre", "cells", "expected"),
        [
            ((0, 224), 16, 16, 13, (0, 12)),
            ((0, 224), 16, 16, 15, (0, 12)),
            ((32, 256), 16, 16, 15, (2, 14)),
            ((0, 224), 12, 7, 18, (0, 17)),
            ((32, 256), 12, 7, 21, (3, 20)),
            ((100, 101), 16, 16, 40, (5, 5)),
            ((0, 3), 16, 16, 13, (0, 0)),
            ((990, 999), 16, 16, 13, (12, 12)),
        ],
    )
    def test_cells(self, window, stride, centre, cells, expected) -> None:  # type: ignore[no-untyped-def]
        assert find_cells(*window, geometry(stride, centre, windows_are_open=True), cells) == expected

    @pytest.mark.parametrize(("stride", "centre"), [(16, 16), (16, 15), (12, 7)])
    def test_open_windows_keep_the_centres_strictly_inside(self, stride: int, centre: int) -> None:
        cells, backbone = 40, geometry(stride, centre, windows_are_open=True)
        for start in range(0, 300, 7):
            for size in (17, 100, 224):
                inside = [j for j in range(cells) if start < centre + stride * j < start + size]
                assert find_cells(start, start + size, backbone, cells) == (inside[0], inside[-1])

    # As in timm: odd kernels padded on both sides, even ones without padding, and TensorFlow's padding behind alone.
    @pytest.mark.parametrize("centre", [0, 15.5, 31, 7])
    def test_other_windows_have_as_many_cells_as_a_crop_of_their_size(self, centre: float) -> None:
        backbone = geometry(32, centre, windows_are_open=False)
        for start in range(300):
            inside = [j for j in range(40) if centre + 32 * j in np.arange(2 * start, 2 * (start + 224)) / 2]
            first, last = find_cells(start, start + 224, backbone, 40)
            assert (first, last) == (inside[0], inside[-1])
            assert last - first + 1 == 7


def geometry(stride: int, first_centre: float, *, windows_are_open: bool) -> Any:
    return SimpleNamespace(stride=stride, first_centre=first_centre, windows_are_open=windows_are_open)


def reference_pooled(
    net: spp_cls.SPPNet, pixels: NDArray[np.uint8], view: View, known_maps: dict[object, Tensor]
) -> Tensor:
    """One view by itself: the whole image through the convolutions, its window cut from the map, bins in loops.

    Maps of one scale and flip are kept, as they are the same for each view.
    """
    side = round(view.scale * net.config.input_size / 224)
    image = warp(pixels, side) if view.is_warped else resize(pixels, side)
    height, width = image.shape[:2]
    if view.flip:
        image = image[:, ::-1]
    normalised = (image.astype(np.float32) - np.float32(net.config.mean)) / np.float32(net.config.std)
    inputs = torch.from_numpy(normalised).permute(2, 0, 1)[None]
    window = net.config.input_size
    if view.position is not None:
        left, top = window_corner(view, width, height, window)
        if view.flip:
            left = width - window - left
    if view.is_warped:
        maps = net.forward_features(inputs)
    elif not view.on_maps:
        maps = net.forward_features(inputs[:, :, top : top + window, left : left + window])
    else:
        if (view.scale, view.flip) not in known_maps:
            known_maps[view.scale, view.flip] = net.forward_features(inputs)
        maps = known_maps[view.scale, view.flip]
    if view.on_maps and view.position is not None:
        stride, centre = net.backbone.stride, net.backbone.first_centre
        columns = [j for j in range(maps.shape[-1]) if left < centre + stride * j < left + window]
        rows = [j for j in range(maps.shape[-2]) if top < centre + stride * j < top + window]
        maps = maps[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return torch.from_numpy(pooled_by_loops(maps.contiguous().numpy(), net.pool.levels))[0]


def reference_logits(net: spp_cls.SPPNet, pixels: NDArray[np.uint8], views: list[View]) -> Tensor:
    maps: dict[object, Tensor] = {}
    return net.head(torch.stack([reference_pooled(net, pixels, view, maps) for view in views]))


SHAPES = [(341, 256), (256, 341), (500, 375), (375, 500), (224, 224)]
SHAPES += [(224, 301), (640, 128), (150, 300), (256, 256), (300, 299)]


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    for number, (width, height) in enumerate(SHAPES):
        colour = np.random.default_rng(number).integers(0, 256, 3).tolist()
        write_image(root / f"val/c{number % 3}/{number}.png", width, height, tuple(colour), seed=number)
    return root


CROP = View(256, (0.5, 0.5), flip=False, on_maps=False)


def shapes(root: Path) -> ImageFiles:
    return open_source("imagefolder", root, "val")


def assert_views_equal_reference(
    net: spp_cls.SPPNet, source: ImageFiles, views: set[View], chosen: Sequence[int] = range(len(SHAPES))
) -> None:
    seen = 0
    with torch.inference_mode():
        cuts = get_cuts(views, net.config.input_size)
        for batch in load_cuts(source, chosen, cuts, net.config.input_size, "bilinear", 8_000_000, 0):
            found = view_features(net, batch.images, views)
            assert found.keys() == views
            for row, index in enumerate(batch.indices.tolist()):
                ordered = sorted(views, key=str)
                expected = reference_logits(net, read_image(source, index), ordered)
                difference = torch.stack([found[view][row] for view in ordered]) - expected
                # Sums over up to 25,600 values in float32, in another order for another batch.
                assert difference.abs().max() < 1e-5 * expected.abs().max(), source.name(index)
                seen += 1
    assert seen == len(chosen)


EVERY_VIEW = {view for protocol in PROTOCOLS.values() for view in protocol.views}


def test_every_view_equals_the_reference(shapes_folder: Path) -> None:
    net = spp_cls.build_net("zf5_tiny", num_classes=10, init="kaiming", std=STD, input_size=112).eval()
    assert_views_equal_reference(net, shapes(shapes_folder), EVERY_VIEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zf5", "convnet5", "overfeat5", "overfeat7"])
def test_every_view_equals_the_reference_in_the_papers_nets(name: str, shapes_folder: Path) -> None:
    # The geometry of the four nets at a quarter of their widths, and four of the shapes: a fifth of the minutes.
    net = spp_cls.build_net(name, num_classes=10, init="kaiming", std=STD, width=0.25).eval()
    assert_views_equal_reference(net, shapes(shapes_folder), EVERY_VIEW, chosen=[0, 3, 5, 6])


def test_full1_is_the_net_on_the_whole_image(shapes_folder: Path) -> None:
    net = spp_cls.build_net("zf5_tiny", num_classes=3, init="kaiming", std=STD).eval()
    source = shapes(shapes_folder)
    # One image a batch, as in the loop below: not a bit differs.
    found = evaluate(net, source, [get_protocol("full1")], CPU, max_pixels=1, progress=False)["full1"]
    with torch.inference_mode():
        for index in range(len(source)):
            image = resize(read_image(source, index), 256).astype(np.float32) - np.array(net.config.mean, np.float32)
            inputs = torch.from_numpy(image[None] / np.float32(STD)).permute(0, 3, 1, 2)
            scores = net(inputs).softmax(1)[0]
            best = scores.argsort(descending=True, stable=True)
            assert torch.equal(found.classes[index], best)
            assert torch.equal(found.scores[index], scores[best])


def test_scores_are_the_mean_of_the_softmax_of_the_views(shapes_folder: Path) -> None:
    net = spp_cls.build_net("zf5_tiny", num_classes=3, init="kaiming", std=STD, input_size=112).eval()
    source = shapes(shapes_folder)
    protocol = get_protocol("map10")
    found = evaluate(net, source, [protocol], CPU, progress=False)["map10"]
    with torch.inference_mode():
        pixels = read_image(source, 4)
        mean = reference_logits(net, pixels, list(protocol.views)).softmax(1).mean(0)
    torch.testing.assert_close(mean[found.classes[4]], found.scores[4], rtol=1e-4, atol=1e-6)
    assert found.indices.tolist() == list(range(len(source)))
    wrong = sum(found.classes[i, 0].item() != source.labels[i] for i in range(len(source)))
    assert found.error(1) == 100 * wrong / len(source)
    assert found.error(3) == 0


def test_results_do_not_depend_on_the_batch(shapes_folder: Path) -> None:
    net = spp_cls.build_net("zf5_tiny", num_classes=3, init="kaiming", std=STD, input_size=112).eval()
    source, protocols = shapes(shapes_folder), [get_protocol("crop10"), get_protocol("map10"), get_protocol("full1")]
    one, two = (evaluate(net, source, protocols, CPU, max_pixels=size, progress=False) for size in (50_000, 5_000_000))
    for name in one:
        assert torch.equal(one[name].classes, two[name].classes)
        torch.testing.assert_close(one[name].scores, two[name].scores, rtol=1e-5, atol=1e-6)


def test_batches_are_bounded(shapes_folder: Path) -> None:
    source = shapes(shapes_folder)
    cuts = get_cuts(PROTOCOLS["full1"].views, 224)
    batches = group_by_shape(source, list(range(len(source))) * 9, cuts, 224, max_pixels=3 * 256 * 341)
    assert sorted(index for batch in batches for index in batch) == sorted(list(range(len(source))) * 9)
    for batch in batches:
        shapes_of_batch = {resize(read_image(source, index), 256).shape for index in batch}
        ((height, width, _),) = shapes_of_batch
        assert len(batch) * height * width <= 3 * 256 * 341 or len(batch) == 1


def test_mistakes(shapes_folder: Path) -> None:
    source = shapes(shapes_folder)
    baseline = spp_cls.build_net("zf5_tiny", "none", num_classes=3, input_size=112).eval()
    with pytest.raises(ValueError, match="full1 needs a net that takes any size"):
        evaluate(baseline, source, [get_protocol("full1")], CPU)
    protocols = [get_protocol(name) for name in ("crop1", "crop10", "warp1")]
    found = evaluate(baseline, source, protocols, CPU, progress=False)
    assert len(found["crop10"]) == len(found["warp1"]) == len(source)
    net = spp_cls.build_net("zf5_tiny", num_classes=4, input_size=112)
    with pytest.raises(ValueError, match="has 3 classes, the checkpoint 4"):
        evaluate(net, source, [get_protocol("crop1")], CPU)
    net = spp_cls.build_net("zf5_tiny", num_classes=3, class_names=("c0", "c1", "x"), input_size=112)
    with pytest.raises(ValueError, match=r"class 2 of .* is c2, and x in the checkpoint"):
        evaluate(net, source, [get_protocol("crop1")], CPU)


@pytest.mark.parametrize(
    ("protocols", "message"),
    [
        ([], "give one protocol or more"),
        ([Protocol("mine", (CROP,)), Protocol("mine", (CROP._replace(flip=True),))], "each with a name of its own"),
        ([Protocol("mine", ())], "mine has no views"),
        # At that scale the image has 200/224 of the crop's pixels.
        ([Protocol("mine", (CROP._replace(scale=200),))], "a window of 224 is larger than an image at scale 200"),
        ([Protocol("mine", (CROP._replace(scale=256, position=None, is_warped=True),))], "takes images of 112 x 112"),
    ],
)
def test_protocols_that_cannot_be(protocols: list[Protocol], message: str, shapes_folder: Path) -> None:
    net = spp_cls.build_net("zf5_tiny", "none", num_classes=3, input_size=112).eval()
    with pytest.raises(UserError, match=message):
        evaluate(net, shapes(shapes_folder), protocols, progress=False)


def test_a_protocol_that_is_named_twice_counts_once(shapes_folder: Path) -> None:
    net = spp_cls.build_net("zf5_tiny", num_classes=3, input_size=112).eval()
    source = shapes(shapes_folder)
    found = evaluate(net, source, ["crop1", "full1", "crop1"], progress=False)
    assert [(name, len(predictions)) for name, predictions in found.items()] == [("crop1", 10), ("full1", 10)]


def test_no_images_to_test_on(tmp_path: Path) -> None:
    source = ImageFiles(tmp_path, np.array([], "S1"), np.array([], np.int64), ("a", "b", "c"))
    net = spp_cls.build_net("zf5_tiny", num_classes=3, input_size=112).eval()
    with pytest.raises(UserError, match="there are no images in"):
        evaluate(net, source, ["full1"], progress=False)


class TestCustomProtocol:
    def test_scales_and_positions_of_ones_own(self) -> None:
        views = make_protocol([256, 384], ["centre", "corners"], flips=False).views
        assert len(views) == len(set(views)) == 10
        assert {view.scale for view in views} == {256, 384}
        assert set(make_protocol(SIX_SCALES, ["centre", "corners", "sides"], True).views) == set(
            PROTOCOLS["map96"].views
        )
        # At 224 the four corners are two; the whole image may be smaller than a window.
        assert len(make_protocol([224], ["corners"], flips=False).views) == 2
        assert make_protocol([180], ["full"], flips=False).views == (View(180, None, False, True),)

    @pytest.mark.parametrize(
        ("scales", "positions", "message"),
        [
            ([200], ["centre"], "smaller than the window"),
            ([256], ["left"], "no position 'left'"),
            ([], ["full"], "needs"),
        ],
    )
    def test_mistakes(self, scales: list[int], positions: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_protocol(scales, positions, flips=True)


class _Rank:
    """What evaluate asks of a fabric, for one of several processes."""

    def __init__(self, rank: int, processes: int) -> None:
        self.global_rank, self.world_size, self.autocast = rank, processes, CPU.autocast


@pytest.mark.parametrize("processes", [2, 3, 7, 12])
def test_results_do_not_depend_on_the_number_of_processes(
    processes: int, shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = spp_cls.build_net("zf5_tiny", num_classes=3, init="kaiming", std=STD, input_size=112).eval()
    source, protocol = shapes(shapes_folder), get_protocol("map10")
    alone = evaluate(net, source, [protocol], CPU, progress=False)["map10"]
    sent: list[object] = []

    class SentError(Exception):
        """A process has sent its predictions."""

    def send(own: object) -> list[object]:
        sent.append(own)
        if len(sent) < processes:
            raise SentError
        return sent

    # The processes run one after another; the last one gets what all have sent.
    monkeypatch.setattr(sys.modules["spp_cls.evaluation.evaluate"], "all_gather", send)
    for rank in range(processes - 1):
        with pytest.raises(SentError):
            evaluate(net, source, [protocol], _Rank(rank, processes), progress=False)  # type: ignore[arg-type]
    together = evaluate(net, source, [protocol], _Rank(processes - 1, processes), progress=False)["map10"]  # type: ignore[arg-type]
    assert torch.equal(together.indices, alone.indices)
    assert torch.equal(together.classes, alone.classes)
    assert together.error(1) == alone.error(1)
