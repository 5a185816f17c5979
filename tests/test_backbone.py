"""Geometry of the trunks against Table 1 and against gradients."""

import pytest
import torch
from torch import nn

from spp_cls.models.backbone import Backbone
from spp_cls.models.specs import SPECS, get_spec

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
    sizes = sizes_through(Backbone(get_spec(name)), 224)
    assert {layer: sizes[layer] for layer in expected} == expected


@pytest.mark.parametrize(("name", "cells"), list(zip(PAPER_NETS, (10, 10, 14, 14), strict=True)))
def test_map_sizes_at_180(name: str, cells: int) -> None:
    assert Backbone(get_spec(name))(torch.zeros(1, 3, 180, 180)).shape[-2:] == (cells, cells)


@pytest.mark.parametrize("name", SPECS)
def test_map_size_is_that_of_the_forward_pass(name: str) -> None:
    backbone = Backbone(get_spec(name))
    smallest = backbone.smallest_input
    with torch.inference_mode():
        for size in range(smallest, smallest + 90):
            assert backbone(torch.zeros(1, 3, size, smallest)).shape[-2:] == (backbone.map_size(size), 1)


@pytest.mark.parametrize("name", SPECS)
def test_one_pixel_less_than_the_smallest_leaves_no_cell(name: str) -> None:
    backbone = Backbone(get_spec(name))
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
    backbone = Backbone(get_spec(name))
    assert (backbone.stride, backbone.first_centre) == (stride, first_centre)
    # Pixels that change a cell, found by gradients: all weights positive, averages in place of maxima, so that every
    # pixel of the field has a part.
    linear = nn.Sequential()
    for layer in backbone:
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
