"""The convolutional part of a network, and the geometry of its feature map."""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from spp_cls.cli.errors import UserError
from spp_cls.models.lrn import LocalResponseNorm
from spp_cls.models.specs import PRESETS, SPECS, Conv, NetSpec, Norm
from spp_cls.models.timm_models import PREFIX

WindowedLayer = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d


class Backbone(nn.Module):
    """Images N x in_chans x H x W -> feature maps N x channels x map_size(H) x map_size(W).

    A backbone of your own subclasses this and defines `forward`. The geometry is computed from its convolutions and
    pools, in the order in which they were made, which is right for a chain of layers; a backbone with branches
    overrides `windowed_layers` with the layers of one path, or the properties.
    """

    # Factor of the learning rate of biases, here and in the head.
    bias_lr_scale = 1.0

    # Whether a window on maps leaves out the cell whose centre is its first pixel, as in the paper. With that cell, a
    # window that is as long as a multiple of the stride has as many cells wherever it lies, and one that is the whole
    # image is the whole map.
    windows_are_open = False

    # Name and width by which create_net builds it again, as for a checkpoint; None of a class that it does not know.
    registered_as: tuple[str, float] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Map N x in_chans x H x W images to the last feature map."""
        raise NotImplementedError

    def init_weights(self, init: str) -> None:
        """Set the initial weights of `model.init`, paper or kaiming; here they stay as PyTorch made them."""

    def windowed_layers(self) -> list[WindowedLayer]:
        """Return the layers that change the size of a map, from the image on."""
        return [layer for layer in self.modules() if isinstance(layer, WindowedLayer)]

    def list_map_layers(self) -> dict[str, nn.Module]:
        """List by name the layers whose outputs are inner feature maps, which features can be taken from.

        These are its children; of a backbone that has one child alone, another network, those of this child.
        """
        layers = dict(self.named_children())
        inner = dict(next(iter(layers.values())).named_children()) if len(layers) == 1 else {}
        return inner or layers

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        return [layer for layer in self.windowed_layers() if isinstance(layer, nn.Conv2d)][-1].out_channels

    @property
    def stride(self) -> int:
        """Pixels from the centre of a cell of the last map to that of the next (the paper's S)."""
        return math.prod(_side(layer.stride) for layer in self.windowed_layers())

    @property
    def first_centre(self) -> float:
        """Pixel (counted from 0) under the centre of the first cell of the last map."""
        centre, step = 0.0, 1
        for layer in self.windowed_layers():
            centre += ((_kernel(layer) - 1) / 2 - _padding(layer)) * step
            step *= _side(layer.stride)
        return centre

    def map_size(self, size: int) -> int:
        """Cells along a side of the last map, for `size` pixels; 0 where the image is too small."""
        for layer in self.windowed_layers():
            size = _output_size(layer, size)
            if size < 1:
                return 0
        return size

    @property
    def smallest_input(self) -> int:
        """Smallest image side, in pixels, that leaves one cell."""
        size = 1
        while self.map_size(size) < 1:
            size += 1
        return size

    @property
    def first_conv(self) -> str:
        """Name of the convolution that sees the image.

        Raises:
            UserError: if there is none; a backbone without them overrides this with its first layer's name.
        """
        found = next((name for name, layer in self.named_modules() if isinstance(layer, nn.Conv2d)), None)
        if found is None:
            raise UserError(
                f"{type(self).__name__} has no convolution; override first_conv with its first layer's name"
            )
        return found


def _side(value: int | tuple[int, ...]) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise UserError(f"a layer has different values along height and width, {value}; the geometry needs one")
    return sides.pop()


def _kernel(layer: WindowedLayer) -> int:
    """Return the pixels from the first to the last that a window reaches."""
    dilation = 1 if isinstance(layer, nn.AvgPool2d) else _side(layer.dilation)
    return dilation * (_side(layer.kernel_size) - 1) + 1


def _padding(layer: WindowedLayer) -> int:
    if isinstance(layer.padding, str):
        raise UserError(f"the geometry needs a padding in numbers, and a layer has {layer.padding!r}")
    return _side(layer.padding)


def _output_size(layer: WindowedLayer, size: int) -> int:
    stride, padding = _side(layer.stride), _padding(layer)
    reach = size + 2 * padding - _kernel(layer)
    if isinstance(layer, nn.Conv2d) or not layer.ceil_mode:
        return reach // stride + 1
    cells = -(-reach // stride) + 1
    # PyTorch leaves out a last window that would begin in the padding behind the map.
    return cells - 1 if (cells - 1) * stride >= size + padding else cells


class PaperBackbone(Backbone):
    """The layers of a spec of Table 1, named conv1, relu1, norm1, pool1, conv2 and on; `width` scales the channels."""

    bias_lr_scale = 2.0
    windows_are_open = True

    def __init__(self, spec: NetSpec, in_chans: int = 3, width: float = 1.0) -> None:
        super().__init__()
        self._first_biases: list[float] = []
        channels, stage = in_chans, 0
        for layer in spec.layers:
            if isinstance(layer, Conv):
                stage += 1
                out_channels = scale_width(layer.channels, width)
                conv = nn.Conv2d(channels, out_channels, layer.kernel, layer.stride, layer.padding)
                self.add_module(f"conv{stage}", conv)
                self.add_module(f"relu{stage}", nn.ReLU(inplace=True))
                self._first_biases.append(layer.bias)
                channels = out_channels
            elif isinstance(layer, Norm):
                self.add_module(f"norm{stage}", LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k))
            else:
                self.add_module(f"pool{stage}", nn.MaxPool2d(layer.kernel, layer.stride, ceil_mode=layer.ceil))

    def forward(self, images: Tensor) -> Tensor:
        """Map N x in_chans x H x W images to the last feature map."""
        for layer in self.children():
            images = layer(images)
        return images

    def list_map_layers(self) -> dict[str, nn.Module]:
        """List the convolutions by name, conv1 and on, each with the ReLU behind it: the paper's features."""
        layers = dict(self.named_children())
        return {name: layers[name.replace("conv", "relu")] for name in layers if name.startswith("conv")}

    def init_weights(self, init: str) -> None:
        """Set the initial weights: N(0, 0.01) with AlexNet's biases (paper), or He's with biases 0 (kaiming)."""
        convs = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        for conv, bias in zip(convs, self._first_biases, strict=True):
            init_layer(conv, init, bias)


def scale_width(channels: int, width: float) -> int:
    """Return the channels of a layer at a width."""
    return max(1, round(channels * width))


def init_layer(layer: nn.Conv2d | nn.Linear, init: str, bias: float) -> None:
    """Set a layer's initial weights: N(0, 0.01) and a bias (paper), or He's and biases 0 (kaiming)."""
    assert layer.bias is not None
    if init == "paper":
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(layer.bias, bias)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


# Called with (in_chans, width).
BackboneFactory = Callable[[int, float], Backbone]

_FACTORIES: dict[str, BackboneFactory] = {}


def register_backbone(name: str) -> Callable[[BackboneFactory], BackboneFactory]:
    """Decorate a Backbone class, or a function, called with (in_chans, width): build_net and model.name know it.

    Raises:
        UserError: if the name is that of a network of Table 1 or of timm.
    """
    if name in SPECS or name in PRESETS or name.startswith(PREFIX):
        raise UserError(f"{name} is a name of another network; register the backbone under a name of its own")

    def register(factory: BackboneFactory) -> BackboneFactory:
        _FACTORIES[name] = factory
        return factory

    return register


def create_backbone(name: str, in_chans: int = 3, width: float = 1.0) -> Backbone:
    """Return a new backbone, of Table 1 or a registered one.

    Raises:
        UserError: if no backbone has this name.
    """
    if name in SPECS or name in _FACTORIES:
        factory = partial(PaperBackbone, SPECS[name]) if name in SPECS else _FACTORIES[name]
        backbone = factory(in_chans, width)
        backbone.registered_as = name, width
        return backbone
    names = ", ".join([*SPECS, *_FACTORIES])
    raise UserError(
        f"there is no network {name!r}; choose among {names}, timm's as timm/NAME, or name the module of your own in "
        "plugins="
    )
