"""Pooling: a feature map of any size, or a window of it, becomes a vector of one length."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torchvision.ops import roi_pool

from spp_cls.cli.errors import UserError


class SpatialPyramidPool(nn.Module):
    """Max pooling into n x n bins for each pyramid level n, whatever the size of the map.

    Along an axis of a cells, bin i of a level of n holds the cells from floor(i * a / n) up to, not including,
    ceil((i + 1) * a / n): the paper's appendix, "mapping a window to feature maps". Bins overlap where n does not
    divide a. At 13 cells (levels 6, 4, 3, 2, 1) and 18 cells (6, 3, 2, 1) they equal the sliding windows of
    section 2.3. N x C x H x W maps give N x (C * sum of n * n), the levels in the order given, each flattened
    channel first. The gradient of a bin goes to one cell that holds its maximum.

    Raises:
        UserError: if there is no level, or one below 1.
    """

    def __init__(self, levels: Sequence[int] = (6, 3, 2, 1)) -> None:
        super().__init__()
        _check_levels(levels)
        self.levels = tuple(levels)

    @property
    def bins(self) -> int:
        """Bins a channel, over all levels: 50 for (6, 3, 2, 1)."""
        return sum(n * n for n in self.levels)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool N x C x H x W maps, H and W at least 1.

        Raises:
            UserError: if they are on Apple's GPU.
        """
        _check_device(maps.device.type)
        if maps.device.type == "cpu":
            # Torch's pooling takes many channels at once only in this layout, which is worth a copy.
            maps = maps.contiguous(memory_format=torch.channels_last)
        return _PoolLevels.apply(maps, self.levels)

    def pool_windows(self, maps: Tensor, windows: Tensor) -> Tensor:
        """Pool K windows of N x C x H x W maps, as the function pool_windows does."""
        return pool_windows(maps, windows, self.levels)

    def extra_repr(self) -> str:
        """Show the levels in the module's repr."""
        return f"levels={self.levels}"


class AveragePool(nn.Module):
    """The mean over the map, whatever its size: what residual networks and their successors end in.

    N x C x H x W maps give N x C. It has the interface of SpatialPyramidPool, with one bin.
    """

    bins = 1
    levels = (1,)

    def forward(self, maps: Tensor) -> Tensor:
        """Average N x C x H x W maps."""
        return maps.mean((2, 3))

    def pool_windows(self, maps: Tensor, windows: Tensor) -> Tensor:
        """Average K windows of N x C x H x W maps: K x C. `windows` are as in the function pool_windows."""
        # Differences of sums over all cells above and to the left; as float64, or the maps' own digits would be lost.
        sums = F.pad(maps.double().cumsum(2).cumsum(3), (1, 0, 1, 0)).permute(0, 2, 3, 1)
        image, x0, y0, x1, y1 = windows.unbind(1)
        total = sums[image, y1 + 1, x1 + 1] - sums[image, y0, x1 + 1] - sums[image, y1 + 1, x0] + sums[image, y0, x0]
        return (total / ((x1 - x0 + 1) * (y1 - y0 + 1))[:, None]).to(maps.dtype)


# What can stand between a backbone and a head.
Pooling = SpatialPyramidPool | AveragePool


def pool_windows(maps: Tensor, windows: Tensor, levels: Sequence[int]) -> Tensor:
    """Pool many windows of a batch of feature maps at once, each as SpatialPyramidPool would pool it cut out.

    `maps` are N x C x H x W. `windows` are K x 5 whole numbers: the map in the batch, then the first and last cell,
    x0, y0, x1, y1, both within the map. Gives K x (C * sum of n * n). NaN counts as infinity. Paper: appendix,
    "mapping a window to feature maps".

    Raises:
        UserError: if there is no level, or one below 1, or the maps are on Apple's GPU.
    """
    _check_levels(levels)
    _check_device(maps.device.type)
    # A maximum is exact in any type, and roi_pool has no bfloat16. It overlooks NaN, which must not be hidden.
    dtype = torch.promote_types(maps.dtype, torch.float32)
    values, rois = maps.to(dtype).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf), windows.to(dtype)
    grids: dict[int, Tensor] = {}
    for n, finer in find_finer_levels(levels).items():
        grids[n] = F.max_pool2d(grids[finer], finer // n) if finer else _pool_level(values, rois, n)
    return torch.cat([grids[n].flatten(1) for n in levels], dim=1).to(maps.dtype)


def _check_levels(levels: Sequence[int]) -> None:
    if not levels or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in levels):
        raise UserError(f"pyramid levels are whole numbers from 1 up, such as (6, 3, 2, 1); got {levels!r}")


def _check_device(kind: str) -> None:
    """Refuse Apple's GPU: in some versions of torch its pooling has other bins, without a word (pytorch#190064)."""
    if kind == "mps":
        raise UserError("the pyramid cannot be trusted on Apple's GPU (mps); move network and images to the CPU")


def _pool_level(maps: Tensor, windows: Tensor, n: int) -> Tensor:
    """Pool K windows of N x C x H x W maps into n x n bins: K x C x n x n."""
    pooled = roi_pool(maps, windows, n)
    kind = np.dtype(np.float64 if maps.dtype == torch.float64 else np.float32)
    if _has_exact_bins(max(maps.shape[-2:]), n, kind):
        return pooled
    # A few bins of large windows begin or end a cell too early or too late.
    for number, (image, x0, y0, x1, y1) in enumerate(windows.int().tolist()):
        if not (_are_bins_exact(x1 - x0 + 1, n, kind) and _are_bins_exact(y1 - y0 + 1, n, kind)):
            exact = F.adaptive_max_pool2d(maps[image : image + 1, :, y0 : y1 + 1, x0 : x1 + 1], n)
            pooled = pooled.index_copy(0, torch.tensor([number], device=maps.device), exact)
    return pooled


@cache
def _has_exact_bins(most: int, n: int, kind: np.dtype[Any]) -> bool:
    return all(_are_bins_exact(cells, n, kind) for cells in range(1, most + 1))


@cache
def _are_bins_exact(cells: int, n: int, kind: np.dtype[Any]) -> bool:
    """Return whether roi_pool, which multiplies in the type of the maps, finds the borders of n bins along an axis."""
    size = kind.type(cells) / kind.type(n)
    return all(
        math.floor(kind.type(i) * size) == i * cells // n
        and math.ceil(kind.type(i + 1) * size) == -(-(i + 1) * cells // n)
        for i in range(n)
    )


def find_finer_levels(levels: Sequence[int]) -> dict[int, int | None]:
    """Return each level, the finest first, with the next finer level that it divides, if there is one.

    floor(2i * a / 6) = floor(i * a / 3): bins of a level that divides a finer one are unions of its bins.
    """
    finer: dict[int, int | None] = {}
    for n in sorted(set(levels), reverse=True):
        finer[n] = next((m for m in reversed(finer) if m % n == 0), None)
    return finer


class _PoolLevels(torch.autograd.Function):
    """Pool the maps for the levels that divide no other level; pool the bins of those for the rest.

    In the backward pass the gradients of all levels meet in the bins of the finest one before they go to the maps.
    Sums are taken in a fixed order: every run gives the same bits.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, levels: tuple[int, ...]) -> Tensor:
        grids: dict[int, Tensor] = {}
        winners: dict[int, Tensor] = {}
        for n, finer in find_finer_levels(levels).items():
            if finer:
                grids[n], winners[n] = F.max_pool2d(grids[finer], finer // n, return_indices=True)
            else:
                grids[n], winners[n] = F.adaptive_max_pool2d(maps, n, return_indices=True)
        ctx.levels = levels
        ctx.save_for_backward(maps, *winners.values())
        pooled = maps.new_empty(maps.shape[0], maps.shape[1] * sum(n * n for n in levels))
        for n, part in zip(levels, _split_levels(pooled, levels), strict=True):
            part.copy_(grids[n])
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        maps, *winners = ctx.saved_tensors
        finer_of = find_finer_levels(ctx.levels)
        winners_of = dict(zip(finer_of, winners, strict=True))
        sums: dict[int | None, Tensor] = {}
        for n, part in zip(ctx.levels, _split_levels(gradient, ctx.levels), strict=True):
            _accumulate(sums, n, torch.empty_like(winners_of[n], dtype=gradient.dtype).copy_(part))
        for n, finer in reversed(finer_of.items()):
            _accumulate(sums, finer, _scatter_gradient(sums[n], winners_of[n], sums[finer] if finer else maps))
        return sums[None], None


def _accumulate(sums: dict[int | None, Tensor], key: int | None, term: Tensor) -> None:
    sums[key] = sums[key].add_(term) if key in sums else term


def _split_levels(pooled: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """View N x (C * sum of n * n) values as an N x C x n x n grid for each level."""
    channels = pooled.shape[1] // sum(n * n for n in levels)
    parts = pooled.split([channels * n * n for n in levels], dim=1)
    return [part.view(pooled.shape[0], channels, n, n) for part, n in zip(parts, levels, strict=True)]


def _scatter_gradient(gradient: Tensor, winners: Tensor, maps: Tensor) -> Tensor:
    """Add the gradient of each bin to the cell of the map that holds its maximum."""
    if maps.device.type == "cpu":
        return torch.ops.aten.adaptive_max_pool2d_backward(gradient, maps, winners)
    return gather_gradient(gradient, winners, maps.shape[-2], maps.shape[-1])


def gather_gradient(gradient: Tensor, winners: Tensor, height: int, width: int) -> Tensor:
    """Sum for each cell of an N x C x height x width map the gradients of the bins whose maximum it holds.

    `winners` are the flat cell indices of the maxima of n x n bins. On a GPU torch adds with atomic operations, in any
    order; here each cell looks through the few bins that contain it, in a fixed order.
    """
    n = winners.shape[-1]
    total = torch.zeros((*winners.shape[:2], height, width), dtype=gradient.dtype, device=gradient.device)
    cells = torch.arange(height * width, device=gradient.device).view(height, width)
    for rows, within_rows in _list_bins_of_cells(height, n, gradient.device):
        for columns, within_columns in _list_bins_of_cells(width, n, gradient.device):
            won = winners[:, :, rows[:, None], columns] == cells
            won = won & within_rows[:, None] & within_columns
            total = total + torch.where(won, gradient[:, :, rows[:, None], columns], 0)
    return total


def _list_bins_of_cells(size: int, n: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """List for each cell of an axis its first bin, its second and on, and whether there is such a bin."""
    cells = torch.arange(size, device=device)
    # Cell c is in bin i when i * size < (c + 1) * n and (i + 1) * size > c * n.
    first, last = cells * n // size, ((cells + 1) * n - 1) // size
    most = -(-n // size) + 1
    return [((first + step).clamp(max=n - 1), first + step <= last) for step in range(most)]
