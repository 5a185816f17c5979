"""Local response normalisation across channels, with its gradient in closed form."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LocalResponseNorm(nn.Module):
    """Divide each cell by a power of the mean square over `size` neighbouring channels.

    The meaning of torch.nn.LocalResponseNorm: y = x / (k + alpha / size * sum of squares) ** beta. Maps of
    N x C x H x W give maps of the same shape, type and memory layout. Half precision is computed in float32. For the
    gradient it keeps its input alone, which the ReLU before it keeps anyway.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise N x C x H x W maps."""
        return _Normalise.apply(maps, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """Show the constants in the module's repr."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class _Normalise(torch.autograd.Function):
    """With d = k + alpha / size * W(x^2), W the sum over the window: y = x * d^-beta, and

    dx = g * d^-beta - 2 * alpha * beta / size * x * W'(g * x * d^(-beta - 1)), W' the window mirrored.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        ctx.save_for_backward(maps)
        ctx.constants = size, alpha, beta, k

        def normalise(x: Tensor) -> Tensor:
            values = _at_least_float32(x)
            return values * _scale(_denominator(values, size, alpha, k), beta)

        return _by_block(normalise, maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (maps,) = ctx.saved_tensors
        size, alpha, beta, k = ctx.constants

        def differentiate(x: Tensor, g: Tensor) -> Tensor:
            values, slope = _at_least_float32(x), _at_least_float32(g)
            denominator = _denominator(values, size, alpha, k)
            direct = slope * _scale(denominator, beta)
            spread = _window_sum(direct * values / denominator, (size - 1) // 2, size // 2)
            return direct - spread * values * (2 * alpha * beta / size)

        return _by_block(differentiate, maps, gradient), None, None, None, None


# Values of a block on the CPU: the temporaries of one stay in the cache, those of a batch or of a large map do not.
_BLOCK = 2**19


def _by_block(function: Callable[..., Tensor], maps: Tensor, *others: Tensor) -> Tensor:
    """Apply a function of N x C x H x W maps; on a CPU without a compiler, block of rows by block of rows."""
    if torch.compiler.is_compiling() or maps.device.type != "cpu":
        return function(maps, *others).to(maps.dtype)
    result = torch.empty_like(maps)
    _, channels, height, width = maps.shape
    rows = max(1, _BLOCK // max(1, channels * width))
    for image in range(len(maps)):
        for row in range(0, height, rows):
            block = (slice(image, image + 1), slice(None), slice(row, row + rows))
            result[block] = function(maps[block], *(other[block] for other in others))
    return result


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _denominator(values: Tensor, size: int, alpha: float, k: float) -> Tensor:
    # For an even size torch's window reaches one channel further down than up.
    return _window_sum(values * values, size // 2, (size - 1) // 2) * (alpha / size) + k


def _scale(denominator: Tensor, beta: float) -> Tensor:
    if beta == 0.75:
        # Two square roots cost a fraction of a general power.
        root = denominator.rsqrt()
        return root * root.sqrt()
    return denominator.pow(-beta)


def _window_sum(values: Tensor, below: int, above: int) -> Tensor:
    """Sum over the channels from c - below to c + above, as far as there are any."""
    if torch.compiler.is_compiling():
        # One expression, which the compiler fuses with what is around it.
        padded = F.pad(values, (0, 0, 0, 0, below, above))
        return sum(
            (padded.narrow(1, i, values.shape[1]) for i in range(1, below + above + 1)),
            start=padded.narrow(1, 0, values.shape[1]),
        )
    total = values.clone()
    for offset in range(1, below + 1):
        total[:, offset:] += values[:, :-offset]
    for offset in range(1, above + 1):
        total[:, :-offset] += values[:, offset:]
    return total
