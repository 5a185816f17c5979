"""LRN, the pyramid and windows on the device, against float64 on the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls import LocalResponseNorm, SpatialPyramidPool, pool_windows
from tests.gpu.conftest import assert_near

pytestmark = pytest.mark.gpu

LAYOUTS = [torch.contiguous_format, torch.channels_last]
# Of bfloat16 and float16 the spacing of numbers near 1: LRN computes in float32 and rounds once, which is half of it.
# Of float32 eight spacings: a sum has five terms, and a GPU's square roots may be off by two of the last bits.
TOLERANCES = {torch.float32: 2**-20, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DTYPES = list(TOLERANCES)


def run(layer: Callable[[Tensor], Tensor], maps: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs, and the gradient of the maps."""
    maps = maps.detach().requires_grad_()
    output = layer(maps)
    return output.detach(), torch.autograd.grad(output, maps, gradient)[0]


def run_exactly(layer: Callable[[Tensor], Tensor], maps: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return run(layer, maps.double().cpu(), gradient.double().cpu())


def draw_activations(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, layout: torch.memory_format):
    """Draw maps as they come after a ReLU, and the gradient that comes back; large enough for LRN to matter."""
    maps = (50 * torch.randn(shape)).relu().to(device, dtype).to(memory_format=layout)
    return maps, torch.randn(shape).to(device, dtype).to(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lrn(device: torch.device, is_gpu: bool, dtype: torch.dtype, layout: torch.memory_format) -> None:
    # On a GPU more values than a block has, so that it is cut.
    shape = (16, 96, 110, 110) if is_gpu else (2, 24, 9, 11)
    maps, gradient = draw_activations(shape, device, dtype, layout)
    found, exact = run(LocalResponseNorm(5), maps, gradient), run_exactly(nn.LocalResponseNorm(5), maps, gradient)
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == dtype
        assert ours.is_contiguous(memory_format=layout)
        assert_near(ours, theirs, TOLERANCES[dtype])


def test_lrn_of_squares_that_overflow(device: torch.device) -> None:
    maps = (1000 * torch.randn(2, 8, 3, 3)).half()
    assert_near(LocalResponseNorm()(maps.to(device)), nn.LocalResponseNorm(5)(maps.double()), TOLERANCES[torch.float16])


def test_lrn_of_other_layouts(device: torch.device) -> None:
    maps = torch.randn(2, 7, 6, 10, device=device)
    for strange in (maps.transpose(2, 3), maps[:, ::2], maps[..., 1:7], maps[:0]):
        found = LocalResponseNorm(3, 0.5)(strange)
        exact = nn.LocalResponseNorm(3, 0.5)(strange.double().cpu())
        torch.testing.assert_close(found.double().cpu(), exact, rtol=1e-6, atol=1e-6)


def level_by_level(levels: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return lambda maps: torch.cat([F.adaptive_max_pool2d(maps, n).flatten(1) for n in levels], 1)


def draw_distinct(images: int, channels: int, height: int, width: int) -> Tensor:
    """Draw maps of whole numbers, of which none comes twice in a map: exact in any type up to 256 cells."""
    return torch.rand(images, channels, height * width).argsort(-1).view(images, channels, height, width)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3, 2, 1), (5,)])
@pytest.mark.parametrize("cells", [(13, 13), (10, 10), (18, 14), (1, 7), (3, 2)])
def test_pyramid(
    device: torch.device, is_gpu: bool, cells: tuple[int, int], levels: tuple[int, ...], dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:  # fmt: skip
    images, channels = (16, 256) if is_gpu else (2, 3)
    maps = draw_distinct(images, channels, *cells).to(device, dtype).to(memory_format=layout)
    # Small whole numbers: their sums are exact in any type and order.
    gradient = torch.randint(-8, 9, (images, channels * sum(n * n for n in levels)), device=device).to(dtype)
    found, exact = run(SpatialPyramidPool(levels), maps, gradient), run_exactly(level_by_level(levels), maps, gradient)
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours.double().cpu(), theirs)


def test_pyramid_of_ties(device: torch.device) -> None:
    # Zeros after a ReLU tie: the gradient of a bin goes to one of its maxima, whole.
    maps = torch.randint(-3, 2, (4, 8, 13, 13)).relu().float().to(device)
    gradient = torch.randint(-8, 9, (4, 8 * 50), device=device).float()
    pooled, back = run(SpatialPyramidPool(), maps, gradient)
    assert torch.equal(pooled.cpu(), level_by_level((6, 3, 2, 1))(maps.cpu()))
    by_channel = [part.view(4, 8, -1).sum(2) for part in gradient.split([8 * n * n for n in (6, 3, 2, 1)], 1)]
    assert torch.equal(back.sum((2, 3)), torch.stack(by_channel).sum(0))


@pytest.mark.parametrize("layer", [LocalResponseNorm(5), SpatialPyramidPool()], ids=["lrn", "pyramid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_run_gives_the_same_bits(
    device: torch.device, is_gpu: bool, layer: nn.Module, dtype: torch.dtype
) -> None:
    # Fails where an operation has no deterministic implementation; new memory holds NaN, so that none of it is read.
    torch.use_deterministic_algorithms(True)
    shape = (32, 256, 13, 13) if is_gpu else (2, 6, 13, 13)
    maps = torch.randn(shape).relu().to(device, dtype)
    gradient = torch.randn(layer(maps).shape).to(device, dtype)
    first = run(layer, maps, gradient)
    assert all(values.isfinite().all() for values in first)
    for _ in range(3):
        for values, before in zip(run(layer, maps, gradient), first, strict=True):
            assert torch.equal(values, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows(device: torch.device, is_gpu: bool, dtype: torch.dtype) -> None:
    levels = (6, 3, 2, 1)
    images, channels, height, width = (4, 64, 14, 18) if is_gpu else (2, 3, 14, 18)
    maps = draw_distinct(images, channels, height, width).to(device, dtype).to(memory_format=torch.channels_last)
    corners = [torch.randint(side, (200, 2)).sort(1).values for side in (width, height)]
    windows = torch.stack([torch.randint(images, (200,)), *(c[:, i] for i in (0, 1) for c in corners)], 1)

    def cut_out(values: Tensor) -> Tensor:
        parts = [values[n : n + 1, :, y0 : y1 + 1, x0 : x1 + 1] for n, x0, y0, x1, y1 in windows.tolist()]
        return torch.cat([level_by_level(levels)(part) for part in parts])

    gradient = torch.randint(-8, 9, (200, channels * 50), device=device).to(dtype)
    exact, exact_back = run_exactly(cut_out, maps, gradient)
    found, back = run(lambda values: pool_windows(values, windows.to(device), levels), maps, gradient)
    assert torch.equal(found.double().cpu(), exact)
    # A thousand small whole numbers meet in a cell: exact in float32, in which they are summed, then rounded.
    assert_near(back, exact_back, TOLERANCES[dtype])


def test_bins_of_long_windows(device: torch.device) -> None:
    # roi_pool computes its bins in float32; a ramp shows the last cell of each bin, its negative the first.
    longest = 200
    ramp = torch.arange(longest, dtype=torch.float32, device=device).view(1, 1, 1, longest)
    windows = torch.tensor([[0, 0, 0, cells - 1, 0] for cells in range(1, longest + 1)], device=device)
    for n in (1, 2, 3, 4, 5, 6, 8):
        last = pool_windows(ramp, windows, (n,)).view(-1, n, n)[:, 0]
        first = -pool_windows(-ramp, windows, (n,)).view(-1, n, n)[:, 0]
        cells, bins = torch.arange(1, longest + 1)[:, None], torch.arange(n)
        assert torch.equal(first.long().cpu(), bins * cells // n)
        assert torch.equal(last.long().cpu() + 1, -(-(bins + 1) * cells // n))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_lrn(device: torch.device, is_gpu: bool, backend: str, layout: torch.memory_format) -> None:
    compiled = torch.compile(LocalResponseNorm(5), dynamic=False, backend=backend)
    for side in (55, 44) if is_gpu else (9, 7):
        maps, gradient = draw_activations((8 if is_gpu else 2, 24, side, side), device, torch.float32, layout)
        exact = run_exactly(nn.LocalResponseNorm(5), maps, gradient)
        for ours, theirs in zip(run(compiled, maps, gradient), exact, strict=True):
            # A compiler may take square roots in another way.
            assert_near(ours, theirs, 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_pyramid(device: torch.device, backend: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    compiled = torch.compile(SpatialPyramidPool(), dynamic=False, backend=backend)
    for cells in (13, 10):
        maps = draw_distinct(2, 8, cells, cells).to(device, dtype).to(memory_format=layout)
        gradient = torch.randint(-8, 9, (2, 8 * 50), device=device).to(dtype)
        exact = run_exactly(level_by_level((6, 3, 2, 1)), maps, gradient)
        for ours, theirs in zip(run(compiled, maps, gradient), exact, strict=True):
            assert torch.equal(ours.double().cpu(), theirs)
