"""A network in operations that every exporter and runtime has, for images of any size."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls.models.lrn import LocalResponseNorm
from spp_cls.models.net import SPPNet
from spp_cls.models.pyramid import SpatialPyramidPool, finer_levels


class PortableNorm(nn.Module):
    """LocalResponseNorm as one expression, without a gradient of its own; equal within rounding."""

    def __init__(self, norm: LocalResponseNorm) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = norm.size, norm.alpha, norm.beta, norm.k

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise N x C x H x W maps."""
        channels = maps.shape[1]
        squares = F.pad(maps * maps, (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2))
        total = squares.narrow(1, 0, channels)
        for first in range(1, self.size):
            total = total + squares.narrow(1, first, channels)
        return maps * (total * (self.alpha / self.size) + self.k).pow(-self.beta)


class PortablePool(nn.Module):
    """SpatialPyramidPool as gathered cells and maxima, as ONNX has no pooling into n bins; equal bit for bit."""

    def __init__(self, pool: SpatialPyramidPool) -> None:
        super().__init__()
        self.levels = pool.levels

    def forward(self, maps: Tensor) -> Tensor:
        """Pool N x C x H x W maps, H and W at least 1, to N x (C * sum of n * n)."""
        grids: dict[int, Tensor] = {}
        for n, finer in finer_levels(self.levels).items():
            if finer:
                grids[n] = F.max_pool2d(grids[finer], finer // n)
            else:
                grids[n] = _bin_maxima(_bin_maxima(maps, n, 2), n, 3)
        return torch.cat([grids[n].flatten(1) for n in self.levels], dim=1)


def _bin_maxima(maps: Tensor, n: int, axis: int) -> Tensor:
    """Take the maximum over the cells from floor(i * a / n) up to ceil((i + 1) * a / n) of each bin i, along an axis.

    a is the number of cells along the axis, and n the number of bins.
    """
    cells = maps.shape[axis]
    bins = torch.arange(n, device=maps.device)
    first = bins * cells // n
    last = ((bins + 1) * cells + n - 1) // n - 1
    # No bin has more cells than this; in a shorter one the last cell stands in again, which changes no maximum.
    longest = cells // n + 2
    places = torch.minimum(first[:, None] + torch.arange(longest, device=maps.device), last[:, None])
    return maps.index_select(axis, places.flatten()).unflatten(axis, (n, longest)).amax(axis + 1)


def portable(net: SPPNet) -> SPPNet:
    """Return a copy of a network for export, in evaluation mode; it shares the weights."""
    twin = copy.deepcopy(net, {id(parameter): parameter for parameter in net.parameters()})
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, LocalResponseNorm):
            twin.set_submodule(name, PortableNorm(layer))
        elif isinstance(layer, SpatialPyramidPool):
            twin.set_submodule(name, PortablePool(layer))
    return twin.eval()
