"""Local response normalisation against torch's."""

import pytest
import torch
from torch import nn
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode

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


def test_other_layouts() -> None:
    maps = torch.randn(2, 7, 6, 10, dtype=torch.float64)
    for strange in (maps.transpose(2, 3), maps[:, ::2], maps[..., 1:7], maps[:0]):
        ours = LocalResponseNorm(3, 0.5)(strange.detach().requires_grad_())
        torch.testing.assert_close(ours, nn.LocalResponseNorm(3, 0.5)(strange), rtol=1e-12, atol=1e-12)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, gradient = torch.randn(2, 3, 7, 5, 9, dtype=torch.float64)[:, :2]
    expected = nn.LocalResponseNorm(5, 0.5)(maps.requires_grad_())
    for layout in (torch.contiguous_format, torch.channels_last):
        for block in (1, 20, 100, 1000):
            monkeypatch.setattr("spp_cls.models.lrn._CPU_BLOCK", block)
            laid_out = maps.detach().to(memory_format=layout).requires_grad_()
            ours = LocalResponseNorm(5, 0.5)(laid_out)
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(
                torch.autograd.grad(ours, laid_out, gradient)[0],
                torch.autograd.grad(expected, maps, gradient, retain_graph=True)[0],
                rtol=1e-12,
                atol=1e-12,
            )


class Passes(TorchDispatchMode):
    """Count the operations that go through values, and the most values of a new tensor that is no result."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        name = function.overloadpacket.__name__
        if isinstance(result, torch.Tensor) and not function.is_view and name not in ("empty_like", "detach"):
            self.count += name not in ("new_empty", "new_full", "fill_")
            if function._overloadname != "out":
                self.largest = max(self.largest, result.numel())
        return result


def test_passes_over_a_block_stay_few() -> None:
    # Without a compiler the time is that of the passes over blocks: the squares into the sum 1, the sum 3, the power
    # 3, the product 1; backward, the same but for 2 products more in front of a second sum, and the result.
    maps = torch.randn(2, 96, 20, 20).to(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(maps)
    with Passes() as forward:
        normalised = LocalResponseNorm()(maps)
    with Passes() as backward:
        torch.autograd.grad(normalised, maps, gradient)
    assert (forward.count, backward.count) == (8, 14)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_temporaries_are_no_larger_than_a_block(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spp_cls.models.lrn._CPU_BLOCK", 96 * 50)
    maps = torch.randn(8, 96, 20, 20).to(memory_format=layout).requires_grad_()
    gradient = torch.randn_like(maps)
    with Passes() as passes:
        torch.autograd.grad(LocalResponseNorm()(maps), maps, gradient)
    # Four channels of padding.
    assert 0 < passes.largest <= (96 + 4) * 50


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_compiler_makes_three_kernels(layout: torch.memory_format) -> None:
    # One for the forward pass; two for the backward, whose second one sums over what the first has made.
    torch.compiler.reset()
    metrics.reset()
    maps = torch.randn(2, 24, 9, 9).to(memory_format=layout).requires_grad_()
    normalised = torch.compile(LocalResponseNorm(), dynamic=False)(maps)
    assert metrics.generated_kernel_count == 1
    torch.autograd.grad(normalised, maps, torch.ones_like(normalised))
    assert metrics.generated_kernel_count == 3


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
