"""The convolutional trunk of a network, and its geometry."""

import math
from collections import OrderedDict

from torch import nn

from spp_cls.errors import UserError
from spp_cls.models.lrn import LocalResponseNorm
from spp_cls.models.specs import Conv, MaxPool, NetSpec, Norm


class Backbone(nn.Sequential):
    """The layers of a spec, named conv1, relu1, norm1, pool1, conv2 and on.

    Images of N x in_chans x H x W give feature maps of N x channels x map_size(H) x map_size(W).
    """

    def __init__(self, spec: NetSpec, in_chans: int = 3) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, stage = in_chans, 0
        for layer in spec.layers:
            if isinstance(layer, Conv):
                stage += 1
                layers[f"conv{stage}"] = nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, layer.padding)
                layers[f"relu{stage}"] = nn.ReLU(inplace=True)
                channels = layer.channels
            elif isinstance(layer, Norm):
                layers[f"norm{stage}"] = LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
            else:
                layers[f"pool{stage}"] = nn.MaxPool2d(layer.kernel, layer.stride, ceil_mode=layer.ceil)
        super().__init__(layers)
        self.spec = spec
        self.channels = channels

    @property
    def _windowed_layers(self) -> list[Conv | MaxPool]:
        return [layer for layer in self.spec.layers if not isinstance(layer, Norm)]

    @property
    def stride(self) -> int:
        """Pixels from the centre of a cell of the last map to that of the next (the paper's S)."""
        return math.prod(layer.stride for layer in self._windowed_layers)

    @property
    def first_centre(self) -> float:
        """Pixel (counted from 0) under the centre of the first cell of the last map."""
        centre, step = 0.0, 1
        for layer in self._windowed_layers:
            centre += ((layer.kernel - 1) / 2 - layer.padding) * step
            step *= layer.stride
        return centre

    def map_size(self, size: int) -> int:
        """Cells along a side of the last map, for `size` pixels; 0 where the image is too small."""
        for layer in self._windowed_layers:
            size = layer.output_size(size)
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

    def check_size(self, height: int, width: int) -> None:
        """Raise UserError if images of height x width pixels leave no cell in the last map."""
        smallest = self.smallest_input
        if height < smallest or width < smallest:
            raise UserError(
                f"an image of {height} x {width} pixels leaves no cell in the last map of {self.spec.name}; "
                f"the smallest side it takes is {smallest}"
            )
