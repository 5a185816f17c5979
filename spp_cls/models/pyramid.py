"""Spatial pyramid pooling: a feature map of any size becomes a vector of one length."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_pool

from spp_cls.errors import UserError


class SpatialPyramidPool(nn.Module):
    """Max pooling into n x n bins for each pyramid level n, whatever the size of the map.

    Along an axis of a cells, bin i of a level of n holds the cells from floor(i * a / n) up to, not including,
    ceil((i + 1) * a / n): the paper's appendix, "mapping a window to feature maps". Bins overlap where n does not
    divide a. At 13 cells (levels 6, 4, 3, 2, 1) and 18 cells (6, 3, 2, 1) they equal the sliding windows of
    section 2.3. N x C x H x W maps give N x (C * sum of n * n), the levels in the order given, each flattened
    channel first.

    Raises:
        UserError: no level, or one under 1.
    """

    def __init__(self, levels: Sequence[int] = (6, 3, 2, 1)) -> None:
        super().__init__()
        if not levels or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in levels):
            raise UserError(f"pyramid levels are whole numbers from 1 up, such as (6, 3, 2, 1); got {levels!r}")
        self.levels = tuple(levels)

    @property
    def bins(self) -> int:
        """Bins a channel, over all levels: 50 for (6, 3, 2, 1)."""
        return sum(n * n for n in self.levels)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool N x C x H x W maps, H and W at least 1."""
        return torch.cat([F.adaptive_max_pool2d(maps, n).flatten(1) for n in self.levels], dim=1)

    def extra_repr(self) -> str:
        """Show the levels in the module's repr."""
        return f"levels={self.levels}"


def pool_windows(maps: Tensor, windows: Tensor, levels: Sequence[int]) -> Tensor:
    """Pool many windows of a batch of feature maps at once, each as SpatialPyramidPool would pool it cut out.

    `maps` are N x C x H x W. `windows` are K x 5 whole numbers: the map in the batch, then the first and last cell,
    x0, y0, x1, y1, both within the map. Gives K x (C * sum of n * n). Paper: appendix, "mapping a window to feature
    maps".
    """
    # A maximum is exact in any type, and roi_pool has no bfloat16.
    values, rois = maps.float(), windows.to(dtype=torch.float32)
    if maps.dtype == torch.float64:
        values, rois = maps, windows.to(dtype=torch.float64)
    grids: dict[int, Tensor] = {}
    for n in sorted(set(levels), reverse=True):
        # floor(2i * a / 6) = floor(i * a / 3): bins of a level that divides a finer one are unions of its bins.
        finer = next((m for m in grids if m % n == 0), None)
        grids[n] = roi_pool(values, rois, n) if finer is None else F.max_pool2d(grids[finer], finer // n)
    return torch.cat([grids[n].flatten(1) for n in levels], dim=1).to(maps.dtype)
