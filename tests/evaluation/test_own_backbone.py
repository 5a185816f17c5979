"""A backbone of the user's own, from outside the package, through every protocol and layer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spp_cls import Backbone, Head, NetConfig, SpatialPyramidPool, SPPNet, UserError
from spp_cls.data.loading.dataset import read_image
from spp_cls.data.sources import open_source
from spp_cls.data.transforms.crops import resize, warp
from spp_cls.evaluation import PROTOCOLS, View, cut_images, evaluate, get_protocol, view_features
from tests.conftest import write_image

SIZE = 56


class SmallBackbone(Backbone):
    """Two convolutions with batch norm, and a pool that PyTorch rounds up."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(6, 8, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.fixture(scope="module")
def net() -> SPPNet:
    torch.manual_seed(1)
    pool = SpatialPyramidPool((3, 1))
    config = NetConfig(
        "small", num_classes=4, levels=(3, 1), input_size=SIZE, mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0)
    )
    return SPPNet(SmallBackbone(), pool, Head(8 * pool.bins, (12,), 4), config).eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number, (width, height) in enumerate([(80, 60), (60, 90), (70, 70), (60, 200)]):
        colour = (200 if number % 2 else 60, 60 * number, 120)
        write_image(root / f"val/c{number}/0.png", width, height, colour, seed=number)
    return root


def find_map(net: SPPNet, pixels: np.ndarray, view: View) -> Tensor:
    """Return a view's part of the last map, from the words of the guide: 1 x C x h x w."""
    side = round(view.scale * SIZE / 224)
    image = (warp(pixels, side) if view.is_warped else resize(pixels, side)).astype(np.float32)
    height, width = image.shape[:2]
    left, top, side = 0, 0, SIZE
    if view.position is not None:
        left, top = (int(share * (free - SIZE)) for share, free in zip(view.position, (width, height), strict=True))
        if not view.on_maps:
            image = image[top : top + SIZE, left : left + SIZE]
        elif view.flip:
            left = width - SIZE - left
    if view.flip:
        image = image[:, ::-1].copy()
    values = (image - np.float32(net.config.mean)) / np.float32(net.config.std)
    maps = net.backbone(torch.from_numpy(values).permute(2, 0, 1)[None])
    if view.position is None or not view.on_maps:
        return maps
    centres = [net.backbone.first_centre + net.backbone.stride * cell for cell in range(max(maps.shape[2:]))]
    columns = [x for x in range(maps.shape[3]) if left <= centres[x] < left + side]
    rows = [y for y in range(maps.shape[2]) if top <= centres[y] < top + side]
    return maps[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def pool_bins(maps: Tensor) -> Tensor:
    """Pool a map into 3 x 3 bins and one, bin by bin."""
    height, width = maps.shape[2:]
    bins = []
    for n in (3, 1):
        grid = torch.stack(
            [
                maps[0, :, y * height // n : -(-(y + 1) * height // n), x * width // n : -(-(x + 1) * width // n)].amax(
                    (1, 2)
                )
                for y in range(n)
                for x in range(n)
            ],
            dim=1,
        )
        bins.append(grid.flatten())
    return torch.cat(bins)


def expected_features(net: SPPNet, pixels: np.ndarray, view: View) -> dict[str, Tensor]:
    maps = find_map(net, pixels, view)
    pooled = pool_bins(maps)
    hidden, classifier = net.head.get_submodule("hidden1"), net.head.classifier
    values = (hidden.weight @ pooled + hidden.bias).clamp(min=0)
    logits = classifier.weight @ values + classifier.bias
    return {"map": maps.flatten(), "pool": pooled, "hidden1": values, "logits": logits}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_is_the_plain_loop(protocol: str, net: SPPNet, images: Path) -> None:
    source = open_source("imagefolder", images, "val")
    found = evaluate(net, source, [protocol], progress=False)[protocol]
    with torch.no_grad():
        for index in range(len(source)):
            pixels = read_image(source, index)
            logits = [expected_features(net, pixels, view)["logits"] for view in PROTOCOLS[protocol].views]
            scores = torch.stack(logits).softmax(1).mean(0)
            # Sums of float32 in another order.
            torch.testing.assert_close(found.scores[index], scores[found.classes[index]], rtol=1e-5, atol=1e-6)
            assert found.classes[index].tolist() == scores.argsort(descending=True).tolist()
    # The images differ, and so do the views.
    assert found.scores.std(0).min() > 1e-3


@pytest.mark.parametrize("layer", ["map", "pool", "hidden1", "logits"])
def test_features_of_every_layer_for_98_views(layer: str, net: SPPNet) -> None:
    views = get_protocol("map98").views
    pixels = [np.random.default_rng(seed).integers(0, 256, (66, 81, 3)).astype(np.uint8) for seed in range(2)]
    found = view_features(net, cut_images(pixels, views, SIZE), views, layer)
    assert found.keys() == set(views)
    with torch.no_grad():
        for view in views:
            expected = torch.stack([expected_features(net, image, view)[layer] for image in pixels])
            torch.testing.assert_close(found[view], expected, rtol=1e-5, atol=1e-5)
    if layer == "map":
        # The whole image, and a window of 56 pixels in its corner.
        assert found[View(256, None, False, True)].shape == (2, 8 * 15 * 19)
        assert found[View(256, (0, 0), False, True)].shape[1] < 8 * 15 * 15


def test_no_layer_but_those_asked_for_is_computed(net: SPPNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net.head, "forward_to", None)
    views = get_protocol("crop10").views
    pixels = np.zeros((60, 70, 3), np.uint8)
    found = view_features(net, cut_images([pixels], views, SIZE), views, "pool")
    assert {tuple(each.shape) for each in found.values()} == {(1, 80)}


def test_mistakes(net: SPPNet, images: Path) -> None:
    source = open_source("imagefolder", images, "val")
    with pytest.raises(UserError, match=r"no layer 'fc6'; choose among map, pool, hidden1, logits"):
        view_features(net, {}, [], "fc6")
    with pytest.raises(UserError, match="there is no protocol 'map97'"):
        evaluate(net, source, ["map97"])
    net.train()
    try:
        with pytest.raises(UserError, match=r"training mode.*net\.eval\(\)"):
            evaluate(net, source, ["full1"], progress=False)
    finally:
        net.eval()
