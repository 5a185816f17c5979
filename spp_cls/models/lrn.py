"""Local response normalisation across channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LocalResponseNorm(nn.Module):
    """Divide each cell by a power of the mean square over `size` neighbouring channels.

    The meaning of torch.nn.LocalResponseNorm: y = x / (k + alpha / size * sum of squares) ** beta. Maps of
    N x C x H x W give maps of the same shape, type and memory layout. Half precision is computed in float32.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise N x C x H x W maps."""
        values = maps.to(torch.promote_types(maps.dtype, torch.float32))
        # For an even size torch's window reaches one channel further down than up.
        squares = F.pad(values * values, (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2))
        channels = maps.shape[1]
        total = squares.narrow(1, 0, channels)
        for offset in range(1, self.size):
            total = total + squares.narrow(1, offset, channels)
        denominator = total * (self.alpha / self.size) + self.k
        if self.beta == 0.75:
            # Two square roots cost a fraction of a general power.
            root = denominator.rsqrt()
            scale = root * root.sqrt()
        else:
            scale = denominator.pow(-self.beta)
        return (values * scale).to(maps.dtype)

    def extra_repr(self) -> str:
        """Show the constants in the module's repr."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
