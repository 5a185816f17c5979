"""A network in operations that every exporter and runtime has, for images of any size."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls.models.lrn import LocalResponseNorm, normalize_channels
from spp_cls.models.net import SPPNet
from spp_cls.models.pyramid import SpatialPyramidPool, find_finer_levels


class PortableNorm(nn.Module):
    """LocalResponseNorm without its own gradient, which exporters do not know.

    They take torch's too, but as a pooling in three dimensions, which is slower in ONNX Runtime and PyTorch.
    """

    def __init__(self, norm: LocalResponseNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise N x C x H x W maps."""
        return normalize_channels(maps, self.norm.size, self.norm.alpha, self.norm.beta, self.norm.k)


class PortablePool(nn.Module):
    """SpatialPyramidPool as gathered cells and maxima, as ONNX has no pooling into n bins; equal bit for bit."""

    def __init__(self, pool: SpatialPyramidPool) -> None:
        super().__init__()
        self.levels = pool.levels

    def forward(self, maps: Tensor) -> Tensor:
        """Pool N x C x H x W maps, H and W at least 1, to N x (C * sum of n * n)."""
        grids: dict[int, Tensor] = {}
        for n, finer in find_finer_levels(self.levels).items():
            if finer:
                grids[n] = F.max_pool2d(grids[finer], finer // n)
            else:
                grids[n] = _take_bin_maxima(_take_bin_maxima(maps, n, 2), n, 3)
        return torch.cat([grids[n].flatten(1) for n in self.levels], dim=1)


def _take_bin_maxima(maps: Tensor, n: int, axis: int) -> Tensor:
    """Take the maximum of each of n bins along an axis of a cells.

    Bin i holds the cells from floor(i * a / n) up to, not including, ceil((i + 1) * a / n).
    """
    cells = maps.shape[axis]
    bins = torch.arange(n, device=maps.device)
    first = bins * cells // n
    last = ((bins + 1) * cells + n - 1) // n - 1
    # No bin has more cells than this; a shorter one repeats its last cell, which changes no maximum.
    longest = cells // n + 2
    indices = torch.minimum(first[:, None] + torch.arange(longest, device=maps.device), last[:, None])
    return maps.index_select(axis, indices.flatten()).unflatten(axis, (n, longest)).amax(axis + 1)


def make_portable(net: SPPNet) -> SPPNet:
    """Return a copy of a network for export, in evaluation mode; it shares the weights."""
    portable = copy.deepcopy(net, {id(parameter): parameter for parameter in net.parameters()})
    for name, layer in list(portable.named_modules()):
        if isinstance(layer, LocalResponseNorm):
            portable.set_submodule(name, PortableNorm(layer))
        elif isinstance(layer, SpatialPyramidPool):
            portable.set_submodule(name, PortablePool(layer))
    return portable.eval()
