"""Table 1 of the paper as data, and each choice where the paper is silent."""

from dataclasses import dataclass, replace

from spp_cls.errors import UserError


@dataclass(frozen=True)
class Conv:
    """A convolution followed by ReLU. `bias` is its initial bias in the paper's recipe."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: float = 0.0

    def output_size(self, size: int) -> int:
        """Cells along a side of `size` cells; below one where nothing is left."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class MaxPool:
    """Max pooling without padding; `ceil` lets the last window reach over the border, as Caffe does."""

    kernel: int
    stride: int
    ceil: bool = False
    padding: int = 0

    def output_size(self, size: int) -> int:
        """Cells along a side of `size` cells; below one where nothing is left."""
        reach = size - self.kernel + (self.stride - 1 if self.ceil else 0)
        return reach // self.stride + 1


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
    """A network of Table 1: its layers up to the last feature map, and the width of the two hidden fc layers.

    `baseline_bins` is the side of the map that the network without SPP pools to: 3x3 pooling at stride 2 (from 13)
    or 3 (from 18) is the same as a pyramid of this one level.
    """

    name: str
    layers: tuple[Layer, ...]
    hidden: int = 4096
    hidden_bias: float = 1.0
    baseline_bins: int = 6

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        return [layer.channels for layer in self.layers if isinstance(layer, Conv)][-1]


def narrowed(spec: NetSpec, name: str, divisor: int) -> NetSpec:
    """Divide the widths of all layers of a spec; strides and map sizes stay."""
    layers = tuple(
        replace(layer, channels=layer.channels // divisor) if isinstance(layer, Conv) else layer
        for layer in spec.layers
    )
    return replace(spec, name=name, layers=layers, hidden=spec.hidden // divisor)


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

SPECS = {spec.name: spec for spec in (_ZF5, _CONVNET5, _OVERFEAT5, _OVERFEAT7, narrowed(_ZF5, "zf5_tiny", divisor=4))}


def get_spec(name: str) -> NetSpec:
    """Return the spec called `name`.

    Raises:
        UserError: no network has this name.
    """
    if name not in SPECS:
        raise UserError(f"there is no network {name!r}; choose one of {', '.join(SPECS)}")
    return SPECS[name]
