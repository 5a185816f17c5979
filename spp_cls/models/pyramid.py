"""Spatial pyramid pooling: a feature map of any size becomes a vector of one length."""

from collections.abc import Callable, Sequence
from typing import Any

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
    channel first. The gradient of a bin goes to one cell that holds its maximum.

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
        return _pyramid(self.levels, lambda n: _MaxOfBins.apply(maps, n))

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
    return _pyramid(levels, lambda n: roi_pool(values, rois, n)).to(maps.dtype)


def _pyramid(levels: Sequence[int], pool: Callable[[int], Tensor]) -> Tensor:
    """Pool each level, the maps themselves only where no finer level can be divided.

    floor(2i * a / 6) = floor(i * a / 3): bins of a level that divides a finer one are unions of its bins.
    """
    grids: dict[int, Tensor] = {}
    for n in sorted(set(levels), reverse=True):
        finer = next((m for m in reversed(grids) if m % n == 0), None)
        grids[n] = pool(n) if finer is None else F.max_pool2d(grids[finer], finer // n)
    return torch.cat([grids[n].flatten(1) for n in levels], dim=1)


class _MaxOfBins(torch.autograd.Function):
    """Adaptive max pooling to n x n whose gradient is the same, bit for bit, in every run on every device."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, n: int) -> Tensor:
        values, winners = F.adaptive_max_pool2d(maps, n, return_indices=True)
        ctx.save_for_backward(maps, winners)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        maps, winners = ctx.saved_tensors
        if maps.device.type == "cpu":
            return torch.ops.aten.adaptive_max_pool2d_backward(gradient, maps, winners), None
        return gather_gradient(gradient, winners, maps.shape[-2], maps.shape[-1]), None


def gather_gradient(gradient: Tensor, winners: Tensor, height: int, width: int) -> Tensor:
    """Give each cell of an N x C x height x width map the gradients of the bins that it won.

    `winners` are the flat cell numbers of the maxima of n x n bins. On a GPU, torch's own adds with atomic
    operations, in any order; here each cell asks the few bins it is in, in a fixed order.
    """
    n = winners.shape[-1]
    total = torch.zeros((*winners.shape[:2], height, width), dtype=gradient.dtype, device=gradient.device)
    cells = torch.arange(height * width, device=gradient.device).view(height, width)
    for rows, within_rows in _bins_of_cells(height, n, gradient.device):
        for columns, within_columns in _bins_of_cells(width, n, gradient.device):
            won = winners[:, :, rows[:, None], columns] == cells
            won = won & within_rows[:, None] & within_columns
            total = total + torch.where(won, gradient[:, :, rows[:, None], columns], 0)
    return total


def _bins_of_cells(size: int, n: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each cell of an axis its first bin, second and on, and whether there is such a bin."""
    cells = torch.arange(size, device=device)
    # Cell c is in bin i when i * size < (c + 1) * n and (i + 1) * size > c * n.
    first, last = cells * n // size, ((cells + 1) * n - 1) // size
    most = -(-n // size) + 1
    return [((first + step).clamp(max=n - 1), first + step <= last) for step in range(most)]
