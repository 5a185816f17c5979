"""Geometry of the backbones against Table 1, forward passes and gradients."""

import pytest
import torch
from torch import nn

from spp_cls import Backbone, SPPNet, UserError, build_net, register_backbone
from spp_cls.models.backbone import create_backbone
from spp_cls.models.specs import SPECS
from spp_cls.models.timm_backbone import TimmBackbone

PAPER_NETS = ("zf5", "convnet5", "overfeat5", "overfeat7")


def sizes_through(backbone: Backbone, size: int) -> dict[str, int]:
    maps, sizes = torch.zeros(1, 3, size, size), {}
    for name, layer in backbone.named_children():
        maps = layer(maps)
        sizes[name] = maps.shape[-1]
    return sizes


# Table 1. Its 27 x 27 of ZF-5 is conv2 before pooling; every other size is after the stage's pooling.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zf5", {"pool1": 55, "conv2": 27, "conv3": 13, "conv4": 13, "conv5": 13}),
        ("convnet5", {"norm1": 55, "pool2": 27, "pool3": 13, "conv4": 13, "conv5": 13}),
        ("overfeat5", {"norm1": 36, "pool2": 18, "conv3": 18, "conv4": 18, "conv5": 18}),
        ("overfeat7", {"norm1": 36, "pool2": 18, "conv3": 18, "conv5": 18, "conv6": 18, "conv7": 18}),
    ],
)
def test_map_sizes_at_224_are_those_of_table_1(name: str, expected: dict[str, int]) -> None:
    sizes = sizes_through(create_backbone(name), 224)
    assert {layer: sizes[layer] for layer in expected} == expected


@pytest.mark.parametrize(("name", "cells"), list(zip(PAPER_NETS, (10, 10, 14, 14), strict=True)))
def test_map_sizes_at_180(name: str, cells: int) -> None:
    assert create_backbone(name)(torch.zeros(1, 3, 180, 180)).shape[-2:] == (cells, cells)


@pytest.mark.parametrize("name", SPECS)
def test_map_size_is_that_of_the_forward_pass(name: str) -> None:
    backbone = create_backbone(name)
    smallest = backbone.smallest_input
    with torch.inference_mode():
        for size in range(smallest, smallest + 90):
            assert backbone(torch.zeros(1, 3, size, smallest)).shape[-2:] == (backbone.map_size(size), 1)


@pytest.mark.parametrize("name", SPECS)
def test_one_pixel_less_than_the_smallest_leaves_no_cell(name: str) -> None:
    backbone = create_backbone(name)
    assert backbone.map_size(backbone.smallest_input - 1) == 0
    with pytest.raises(RuntimeError):
        backbone(torch.zeros(1, 3, backbone.smallest_input - 1, 100))


@pytest.mark.parametrize(
    ("name", "stride", "first_centre", "receptive_field"),
    # Receptive fields: 139 is in the paper (v2), the others are its arithmetic on Table 1.
    [("zf5", 16, 16, 139), ("convnet5", 16, 15, 131), ("overfeat5", 12, 7, 113), ("overfeat7", 12, 7, 161)],
)
def test_stride_and_centre_are_those_of_the_receptive_fields(
    name: str, stride: int, first_centre: float, receptive_field: int
) -> None:
    backbone = create_backbone(name)
    assert (backbone.stride, backbone.first_centre) == (stride, first_centre)
    # Pixels that change a cell, found by gradients: all weights positive, averages in place of maxima, so that every
    # pixel of the field has a part.
    linear = nn.Sequential()
    for layer in backbone.children():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1e-3)
            linear.append(layer)
        elif isinstance(layer, nn.MaxPool2d):
            linear.append(nn.AvgPool2d(layer.kernel_size, layer.stride, ceil_mode=layer.ceil_mode))
    linear.double()
    size = 2 * receptive_field + 8 * stride
    image = torch.ones(1, 3, size, 200, dtype=torch.float64, requires_grad=True)
    maps = linear(image)
    cell = maps.shape[-2] // 2
    (gradient,) = torch.autograd.grad(maps[0, 0, cell].sum(), image)
    rows = gradient[0].abs().sum((0, 2)).nonzero().flatten()
    assert len(rows) == receptive_field
    assert (rows[0] + rows[-1]).item() / 2 == first_centre + stride * cell


class Chain(Backbone):
    """Layers one after the other, as a user would write a backbone."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_geometry_of_other_chains_is_that_of_their_forward_passes() -> None:
    chain = Chain(
        nn.Conv2d(3, 4, 5, stride=2, padding=3),
        nn.MaxPool2d(3, 3, padding=1, ceil_mode=True),
        nn.Conv2d(4, 6, 3, dilation=2, padding=1),
        nn.BatchNorm2d(6),
        nn.AvgPool2d(2, 2, ceil_mode=True),
        nn.MaxPool2d(3, 1, dilation=2, padding=1),
    ).eval()
    assert (chain.channels, chain.first_conv) == (6, "layers.0")
    with torch.inference_mode():
        for size in range(chain.smallest_input, 150):
            cells = chain(torch.zeros(1, 3, size, 150)).shape[-2]
            assert chain.map_size(size) == cells, size
    assert chain.map_size(chain.smallest_input - 1) == 0
    # Centres, step by step: -3 + 2 = -1; -1 + (1 - 1) * 2; then (2 - 1) * 6 on; (0.5) * 6; (2 - 1) * 12.
    assert (chain.stride, chain.first_centre) == (12, -1 + 0 + 6 + 3 + 12)


def test_layers_without_one_geometry_are_refused() -> None:
    for layer in (nn.Conv2d(3, 4, (3, 5)), nn.Conv2d(3, 4, 3, padding="same")):
        with pytest.raises(UserError, match="the geometry needs"):
            _ = Chain(layer).first_centre


def test_a_registered_backbone_is_a_network_of_build_net() -> None:
    for name in ("zf5", "zf5_tiny", "timm/mine"):
        with pytest.raises(UserError, match=f"{name} is a name of another network"):
            register_backbone(name)

    @register_backbone("test_chain")
    def create_chain(in_chans: int, width: float) -> Backbone:
        return Chain(nn.Conv2d(in_chans, round(8 * width), 3, stride=2), nn.ReLU())

    net = build_net("test_chain", num_classes=5, levels=(3, 1), hidden=(7,), width=0.5, in_chans=1, mean=(0.0,))
    assert net(torch.zeros(2, 1, 20, 31)).shape == (2, 5)
    assert net.head.get_submodule("hidden1").weight.shape == (7, 4 * 10)
    assert net.backbone.bias_lr_scale == 1
    with pytest.raises(UserError, match=r"choose among zf5.*test_chain"):
        build_net("no_chain")


def test_a_registered_backbone_keeps_its_own_attributes() -> None:
    @register_backbone("test_wide")
    class Wide(Backbone):
        name = property(lambda self: "my own")

        def __init__(self, in_chans: int, width: float) -> None:
            super().__init__()
            self.width = int(64 * width)
            self.conv = nn.Conv2d(in_chans, self.width, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv(images)[:, : self.width]

    net = build_net("test_wide", "avg", width=0.5, num_classes=2)
    assert (net.backbone.name, net.backbone.width, net.config.width) == ("my own", 32, 0.5)
    assert SPPNet(net.backbone, net.pool, net.head).config.name == "test_wide"


def test_a_registered_network_of_timm_has_its_geometry() -> None:
    @register_backbone("test_timm")
    class Mine(TimmBackbone):
        def __init__(self, in_chans: int, width: float) -> None:
            super().__init__("timm/resnet10t", in_chans)

    net = build_net("test_timm", "avg", num_classes=2)
    assert (net.config.name, net.backbone.map_size(224)) == ("test_timm", 7)


def test_a_backbone_without_convolutions_names_its_first_layer() -> None:
    with pytest.raises(UserError, match="Chain has no convolution; override first_conv"):
        _ = Chain(nn.ReLU()).first_conv
