"""Table 1 of the paper as data, and each choice that the paper leaves open."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Conv:
    """A convolution followed by ReLU. `bias` is its first bias (AlexNet's)."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: float = 0.0


@dataclass(frozen=True)
class MaxPool:
    """Max pooling without padding; `ceil` lets the last window reach over the border, as Caffe does."""

    kernel: int
    stride: int
    ceil: bool = False


@dataclass(frozen=True)
class Norm:
    """Local response normalisation across channels; the values of cuda-convnet and Caffe (not in the paper)."""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0


Layer = Conv | MaxPool | Norm


@dataclass(frozen=True)
class NetSpec:
    """The backbone of a network of Table 1: its layers up to the last feature map."""

    name: str
    layers: tuple[Layer, ...]


# Table 1 gives map sizes but no paddings. These paddings and rounding modes reproduce every size it lists, and
# leave a last map of 10, 10, 14 and 14 cells from 180 pixels. Biases of one in conv2, conv4 and conv5 are AlexNet's.
_ZF5 = NetSpec(
    "zf5",
    (
        Conv(96, 7, stride=2, padding=1),
        Norm(),
        MaxPool(3, 2, ceil=True),
        Conv(256, 5, stride=2, padding=1, bias=1),
        Norm(),
        MaxPool(3, 2, ceil=True),
        Conv(384, 3, padding=1),
        Conv(384, 3, padding=1, bias=1),
        Conv(256, 3, padding=1, bias=1),
    ),
)
_CONVNET5 = NetSpec(
    "convnet5",
    (
        Conv(96, 11, stride=4, padding=2),
        Norm(),
        Conv(256, 5, padding=2, bias=1),
        Norm(),
        MaxPool(3, 2),
        Conv(384, 3, padding=1),
        MaxPool(3, 2),
        Conv(384, 3, padding=1, bias=1),
        Conv(256, 3, padding=1, bias=1),
    ),
)
_OVERFEAT5 = NetSpec(
    "overfeat5",
    (
        Conv(96, 7, stride=2, padding=1),
        MaxPool(3, 3),
        Norm(),
        Conv(256, 5, padding=2, bias=1),
        MaxPool(2, 2),
        Conv(512, 3, padding=1),
        Conv(512, 3, padding=1, bias=1),
        Conv(512, 3, padding=1, bias=1),
    ),
)
_OVERFEAT7 = replace(
    _OVERFEAT5,
    name="overfeat7",
    layers=(*_OVERFEAT5.layers, Conv(512, 3, padding=1), Conv(512, 3, padding=1)),
)

SPECS = {spec.name: spec for spec in (_ZF5, _CONVNET5, _OVERFEAT5, _OVERFEAT7)}

# Names for a network of Table 1 with options: a narrow one for demos and tests.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {"zf5_tiny": ("zf5", {"width": 0.25})}

# Units of each of the two hidden fc layers.
HIDDEN = 4096

# The network without SPP pools to 6 x 6: its 3 x 3 pooling at stride 2 (from 13) or 3 (from 18) is the same as a
# pyramid of this one level.
BASELINE_LEVELS = (6,)
