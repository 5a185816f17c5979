"""Local response normalisation against torch's."""

import pytest
import torch
from torch import nn

from spp_cls import LocalResponseNorm


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize(("alpha", "beta", "k"), [(1e-4, 0.75, 1.0), (0.3, 0.75, 2.0), (0.3, 0.5, 1.0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_torch(
    size: int, alpha: float, beta: float, k: float, layout: torch.memory_format
) -> None:
    maps = (10 * torch.randn(3, 7, 5, 4, dtype=torch.float64)).to(memory_format=layout).requires_grad_()
    gradient = torch.randn_like(maps)
    ours, theirs = (cls(size, alpha, beta, k)(maps) for cls in (LocalResponseNorm, nn.LocalResponseNorm))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ours.is_contiguous(memory_format=layout)
    for ours_gradient in torch.autograd.grad(ours, maps, gradient):
        torch.testing.assert_close(
            ours_gradient, torch.autograd.grad(theirs, maps, gradient)[0], rtol=1e-12, atol=1e-12
        )
        assert ours_gradient.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("size", [4, 5])
def test_gradcheck(size: int) -> None:
    maps = torch.randn(2, 6, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LocalResponseNorm(size, 0.5, 0.75, 1.0), maps)


def test_half_precision_is_computed_in_float32() -> None:
    # Squares of these overflow float16.
    maps = (1000 * torch.randn(2, 8, 3, 3)).half()
    expected = nn.LocalResponseNorm(5)(maps.float()).half()
    assert torch.equal(LocalResponseNorm()(maps), expected)


@pytest.mark.slow
def test_compiles() -> None:
    norm = LocalResponseNorm()
    compiled = torch.compile(norm, dynamic=False)
    maps = (50 * torch.randn(2, 12, 9, 9)).requires_grad_()
    gradient = torch.randn_like(maps)
    # The compiler may take the square roots in another way.
    torch.testing.assert_close(compiled(maps), norm(maps), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(maps), maps, gradient)[0],
        torch.autograd.grad(norm(maps), maps, gradient)[0],
        rtol=1e-5,
        atol=1e-5,
    )
