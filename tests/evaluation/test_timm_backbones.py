"""Networks of timm through the protocols on maps, against a plain loop over views."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spp_cls import SPPNet, build_net
from spp_cls.data.transforms.crops import resize
from spp_cls.evaluation import PROTOCOLS, View, cut_images, view_features
from spp_cls.evaluation.features import find_cells
from spp_cls.models.timm_backbone import TimmBackbone

SIZE = 64

# Of ten families; where sides are padded (dla46_c), channels come last (mambaout_femto), centres lie between pixels
# (convnext_atto) and padding depends on the side (tf_mobilenetv3_small_minimal_100).
NETS = (
    "resnet10t", "resnet18", "seresnet18", "regnetx_002", "mobilenetv3_small_050", "tf_mobilenetv3_small_minimal_100",
    "convnext_atto", "repvgg_a0", "dla46_c", "mambaout_femto", "ghostnet_050", "mnasnet_small",
)  # fmt: skip
FAST = ("resnet10t", "dla46_c")


def find_logits(net: SPPNet, pixels: np.ndarray, view: View, maps_of: dict[tuple[int, bool], Tensor]) -> Tensor:
    """Return the logits of a view, from the words of the guide and timm's own layers."""
    side = round(view.scale * SIZE / 224)
    image = resize(pixels, side, net.config.interpolation).astype(np.float32)
    height, width = image.shape[:2]
    backbone = net.backbone
    assert isinstance(backbone, TimmBackbone)
    if (side, view.flip) not in maps_of:
        values = (image[:, ::-1] if view.flip else image) - np.float32(net.config.mean)
        inputs = torch.from_numpy(values / np.float32(net.config.std)).permute(2, 0, 1)[None]
        multiple = backbone.traits.multiple
        padded = F.pad(inputs, (0, -width % multiple, 0, -height % multiple))
        maps = backbone.model.forward_features(padded.contiguous())
        maps_of[side, view.flip] = maps.permute(0, 3, 1, 2) if backbone.traits.is_channels_last else maps
    maps = maps_of[side, view.flip]
    assert view.position is not None
    left, top = (int(share * (free - SIZE)) for share, free in zip(view.position, (width, height), strict=True))
    left = width - SIZE - left if view.flip else left
    rows, columns = (
        [i for i in range(cells) if start <= backbone.first_centre + backbone.stride * i < start + SIZE]
        for cells, start in zip(maps.shape[2:], (top, left), strict=True)
    )
    window = maps[0, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if net.config.pooling == "avg":
        pooled = window.mean((1, 2))
    else:
        pooled = torch.cat([F.adaptive_max_pool2d(window, n).flatten() for n in net.config.levels])
    return net.head.classifier(pooled)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("side", [SIZE, 224])
def test_the_window_that_is_the_whole_image_is_the_whole_map(name: str, side: int) -> None:
    backbone = build_net(f"timm/{name}", "avg", num_classes=5).backbone
    cells = backbone.map_size(side)
    assert find_cells(0, side, backbone, cells) == (0, cells - 1)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_windows_on_maps_are_the_plain_loop(name: str) -> None:
    torch.manual_seed(3)
    nets = [
        build_net(f"timm/{name}", pooling, num_classes=5, levels=(2, 1), input_size=SIZE).eval()
        for pooling in ("spp", "avg")
    ]
    nets[1].backbone = nets[0].backbone
    coarse = np.random.default_rng(1).integers(0, 256, (9, 11, 3))
    pixels = coarse.repeat(9, 0).repeat(9, 1).astype(np.uint8)
    for protocol in ("map10", "map96"):
        views = PROTOCOLS[protocol].views
        maps_of: dict[tuple[int, bool], Tensor] = {}
        for net in nets:
            images = cut_images([pixels], views, SIZE, net.config.interpolation)
            found = view_features(net, images, views)
            with torch.inference_mode():
                expected = {view: find_logits(net, pixels, view, maps_of) for view in views}
            largest = max(float(logits.abs().max()) for logits in expected.values())
            assert largest > 0
            for view in views:
                assert (found[view][0] - expected[view]).abs().max() <= 1e-5 * largest, view
        # The views differ, and so their windows.
        assert len({tuple(each[0].tolist()) for each in found.values()}) >= 2
