"""Local response normalisation across channels, with its gradient in closed form."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LocalResponseNorm(nn.Module):
    """Divide each cell by a power of the mean square over `size` neighbouring channels.

    The meaning of torch.nn.LocalResponseNorm: y = x / (k + alpha / size * sum of squares) ** beta. Maps of
    N x C x H x W give maps of the same shape, type and memory layout. Half precision is computed in float32. For the
    gradient it keeps its input alone, which the ReLU before it keeps anyway. Sums are taken in a fixed order: every
    run gives the same bits.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise N x C x H x W maps."""
        if not maps.is_contiguous() and not maps.is_contiguous(memory_format=torch.channels_last):
            maps = maps.contiguous()
        return _Normalise.apply(maps, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """Show the constants in the module's repr."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class _Normalise(torch.autograd.Function):
    """With d = k + alpha / size * W(x^2), W the sum over the window: y = x * d^-beta, and

    dx = g * d^-beta - 2 * alpha * beta / size * x * W'(g * x * d^(-beta - 1)), W' the window mirrored.

    A compiler gets these as expressions and fuses them. Without one, in _cut_into_blocks.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        ctx.save_for_backward(maps)
        ctx.constants = size, alpha, beta, k
        if torch.compiler.is_compiling():
            return normalize_channels(maps, size, alpha, beta, k)
        result = torch.empty_like(maps)
        for x, y in _cut_into_blocks(maps, result):
            torch.mul(x, _compute_scale(_compute_block_denominator(x, size, alpha, k), beta), out=y)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (maps,) = ctx.saved_tensors
        size, alpha, beta, k = ctx.constants
        factor = -2 * alpha * beta / size
        if torch.compiler.is_compiling():
            values = _raise_to_float32(maps)
            denominator = _compute_denominator(values, size, alpha, k)
            direct = _raise_to_float32(gradient) * _compute_scale(denominator, beta)
            spread = _sum_shifted(direct * values / denominator, (size - 1) // 2, size // 2)
            return (direct + spread * values * factor).to(maps.dtype), None, None, None, None
        result = torch.empty_like(maps)
        for x, g, dx in _cut_into_blocks(maps, gradient, result):
            denominator = _compute_block_denominator(x, size, alpha, k)
            direct = _compute_scale(denominator, beta).mul_(g)
            padded, inside = _pad_block(x, size, (size - 1) // 2, 0.0)
            torch.div(direct * x, denominator, out=inside)
            torch.addcmul(direct, x, _sum_windows(padded, size, x.shape[1]), value=factor, out=dx)
        return result, None, None, None, None


def normalize_channels(maps: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Normalise N x C x H x W maps as LocalResponseNorm does, in one expression, which compilers and exporters fuse."""
    values = _raise_to_float32(maps)
    return (values * _compute_scale(_compute_denominator(values, size, alpha, k), beta)).to(maps.dtype)


def _raise_to_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _compute_scale(denominator: Tensor, beta: float) -> Tensor:
    if beta == 0.75:
        # Two square roots cost a fraction of a general power.
        root = denominator.rsqrt()
        return root.sqrt().mul_(root)
    return denominator.pow(-beta)


def _compute_denominator(values: Tensor, size: int, alpha: float, k: float) -> Tensor:
    # For an even size torch's window reaches one channel further down than up.
    return _sum_shifted(values * values, size // 2, (size - 1) // 2) * (alpha / size) + k


def _sum_shifted(values: Tensor, below: int, above: int) -> Tensor:
    """Sum over the channels from c - below to c + above, as far as there are any: one expression."""
    total = values
    for offset in range(1, min(below, values.shape[1] - 1) + 1):
        total = total + F.pad(values[:, :-offset], (0, 0, 0, 0, offset, 0))
    for offset in range(1, min(above, values.shape[1] - 1) + 1):
        total = total + F.pad(values[:, offset:], (0, 0, 0, 0, 0, offset))
    return total


# Values of a block: on the CPU its temporaries stay in the cache, elsewhere they take little memory.
_CPU_BLOCK = 2**19
_BLOCK = 2**24


def _cut_into_blocks(maps: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut N x C x H x W maps of one layout into blocks, seen as outer x C x inner, which lie in memory in this order.

    The first ones are float32 or better; the last one, the result, is as it is.
    """
    channels = maps.shape[1]
    if maps.is_contiguous():
        views = [tensor.contiguous().flatten(2) for tensor in (maps, *others)]
    else:
        views = [_to_channels_last(tensor).permute(0, 2, 3, 1).reshape(-1, channels, 1) for tensor in (maps, *others)]
    outer, _, inner = views[0].shape
    block = _CPU_BLOCK if maps.device.type == "cpu" else _BLOCK
    inner_step = max(1, min(inner, block // channels))
    outer_step = max(1, block // (channels * inner_step))
    for start in range(0, outer, outer_step):
        for first in range(0, inner, inner_step):
            *given, result = (v[start : start + outer_step, :, first : first + inner_step] for v in views)
            yield *map(_raise_to_float32, given), result


def _to_channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _pad_block(x: Tensor, size: int, below: int, fill: float) -> tuple[Tensor, Tensor]:
    """Return an outer x (C + size - 1) x inner tensor, and the part of it that holds C channels; the rest is `fill`."""
    outer, channels, inner = x.shape
    padded = x.new_empty(outer, channels + size - 1, inner)
    padded[:, :below] = fill
    padded[:, below + channels :] = fill
    return padded, padded[:, below : below + channels]


def _compute_block_denominator(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    # With k / size in each of the terms of the sum, and in those that are missing at the ends, one pass is saved.
    padded, inside = _pad_block(x, size, size // 2, k / size)
    torch.addcmul(x.new_full((), k / size), x, x, value=alpha / size, out=inside)
    return _sum_windows(padded, size, x.shape[1])


def _sum_windows(padded: Tensor, size: int, channels: int) -> Tensor:
    """Sum each `size` successive channels.

    The block is one row of numbers, in which neighbouring channels lie `inner` apart: adding it to itself, shifted,
    is several times faster than adding slices. What runs over from one pixel's channels into the next one's is left
    out at the end.
    """
    outer, _, inner = padded.shape
    sums = _sum_successive(padded.view(-1), size, inner)
    return sums.as_strided((outer, channels, inner), padded.stride())


def _sum_successive(row: Tensor, size: int, step: int) -> Tensor:
    if size == 1:
        return row
    half = size // 2
    part = _sum_successive(row, half, step)
    total = part[: len(part) - half * step] + part[half * step :]
    if size % 2:
        last = row[(size - 1) * step :]
        total = total[: len(last)].add_(last)
    return total
