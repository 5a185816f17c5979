"""Pyramid pooling against loops over the bin formula."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from spp_cls import SpatialPyramidPool, UserError, pool_windows
from spp_cls.models.pyramid import AveragePool, _check_device, gather_gradient


def bins_of(cells: int, n: int) -> list[tuple[int, int]]:
    """First cell and the one after the last, of each bin: floor(i a / n) and ceil((i + 1) a / n), exactly."""
    return [(i * cells // n, -(-(i + 1) * cells // n)) for i in range(n)]


def pooled_by_loops(maps: NDArray, levels: tuple[int, ...]) -> NDArray:
    height, width = maps.shape[-2:]
    parts = []
    for n in levels:
        grid = np.empty((*maps.shape[:2], n, n), maps.dtype)
        for i, (top, bottom) in enumerate(bins_of(height, n)):
            for j, (left, right) in enumerate(bins_of(width, n)):
                grid[:, :, i, j] = maps[:, :, top:bottom, left:right].max((2, 3))
        parts.append(grid.reshape(len(maps), -1))
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3, 2, 1), (5,)])
def test_equals_the_bin_formula_for_every_size(levels: tuple[int, ...]) -> None:
    pool = SpatialPyramidPool(levels)
    random = np.random.default_rng(0)
    for height in range(1, 41):
        for width in range(1, 41):
            maps = random.standard_normal((1, 2, height, width), dtype=np.float32)
            assert np.array_equal(pool(torch.from_numpy(maps)).numpy(), pooled_by_loops(maps, levels))


# Section 2.3 and figure 4: window ceil(a/n), stride floor(a/n), at the sizes where it gives n windows.
@pytest.mark.parametrize(("cells", "levels"), [(13, (6, 4, 3, 2, 1)), (18, (6, 3, 2, 1))])
def test_bins_are_the_sliding_windows_of_the_training_sizes(cells: int, levels: tuple[int, ...]) -> None:
    for n in levels:
        size, stride = math.ceil(cells / n), cells // n
        assert bins_of(cells, n) == [(start, start + size) for start in range(0, cells - size + 1, stride)]


@pytest.mark.parametrize("shape", [(13, 13), (10, 10), (18, 14), (1, 7), (3, 2)])
def test_gradient_goes_to_the_maximum_of_each_bin(shape: tuple[int, int]) -> None:
    levels = (6, 3, 2, 1)
    # All values differ, so that each bin has one maximum.
    maps = torch.randperm(2 * 3 * math.prod(shape)).double().view(2, 3, *shape).requires_grad_()
    pooled = SpatialPyramidPool(levels)(maps)
    weights = torch.randn_like(pooled)
    pooled.backward(weights)
    expected, column = torch.zeros_like(maps), 0
    for n in levels:
        for channel in range(3):
            for top, bottom in bins_of(shape[0], n):
                for left, right in bins_of(shape[1], n):
                    for image in range(2):
                        part = maps[image, channel, top:bottom, left:right]
                        row, cell = divmod(part.argmax().item(), right - left)
                        expected[image, channel, top + row, left + cell] += weights[image, column]
                    column += 1
    # A sum of up to four weights in another order.
    torch.testing.assert_close(maps.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(13, 13), (10, 10), (18, 14), (1, 7), (3, 2), (25, 6)])
@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_gathered_gradient_is_that_of_torch(shape: tuple[int, int], n: int) -> None:
    # What a GPU computes. Whole numbers, so that any order of a sum gives the same bits; half of the cells are zeros,
    # which tie, as after a ReLU.
    maps = torch.randint(-9, 9, (2, 3, *shape)).double().relu().requires_grad_()
    pooled, winners = F.adaptive_max_pool2d(maps, n, return_indices=True)
    gradient = torch.randint(-9, 9, pooled.shape).double()
    expected = torch.autograd.grad(pooled, maps, gradient)[0]
    assert torch.equal(gather_gradient(gradient, winners, *shape), expected)


def test_ties_have_one_winner_a_bin() -> None:
    maps = torch.zeros(1, 1, 18, 18, requires_grad=True)
    SpatialPyramidPool()(maps).sum().backward()
    assert maps.grad is not None
    assert maps.grad.sum() == 50
    # At 18 cells bins of a level do not overlap, so that the winners of the finest level are 36 cells.
    assert (maps.grad > 0).sum() == 36


class Calls(TorchDispatchMode):
    """Keep the sizes of the maps that each kind of operation reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[str, list[int]] = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if not function.is_view and isinstance(arguments[0], torch.Tensor):
            self.read.setdefault(function.overloadpacket.__name__, []).append(arguments[0].shape[-1])
        return function(*arguments, **(keywords or {}))


def test_the_map_is_read_once() -> None:
    maps = torch.randn(2, 8, 13, 13).to(memory_format=torch.channels_last).requires_grad_()
    with Calls() as calls:
        pooled = SpatialPyramidPool((6, 3, 2, 1))(maps)
        torch.autograd.grad(pooled, maps, torch.randn_like(pooled))
    assert calls.read["adaptive_max_pool2d"] == [13]
    assert calls.read["max_pool2d_with_indices"] == [6, 6, 2]
    # The gradients of coarse levels go to finer bins, and the finest level's, with theirs, to the map.
    assert calls.read["adaptive_max_pool2d_backward"] == [1, 2, 3, 6]
    reads_of_maps = {k: sizes.count(13) for k, sizes in calls.read.items() if 13 in sizes and k != "new_empty"}
    assert reads_of_maps == {"adaptive_max_pool2d": 1}


def test_layout_and_type() -> None:
    pool, maps = SpatialPyramidPool(), torch.randn(2, 8, 13, 11)
    expected = pool(maps)
    assert torch.equal(pool(maps.to(memory_format=torch.channels_last)), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = pool(maps.bfloat16())
    assert half.dtype == torch.bfloat16
    # Rounding keeps the order, so that the maximum of rounded values is the rounded maximum.
    assert torch.equal(half, expected.bfloat16())


def test_exports_with_dynamic_sizes() -> None:
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(SpatialPyramidPool(), (torch.randn(2, 4, 13, 13),), dynamic_shapes=(dynamic,))
    for shape in ((3, 4, 10, 10), (2, 4, 18, 31), (5, 4, 7, 2)):
        maps = torch.randn(shape)
        assert np.array_equal(program.module()(maps).numpy(), pooled_by_loops(maps.numpy(), (6, 3, 2, 1)))


@pytest.mark.slow
def test_compiles() -> None:
    pool = SpatialPyramidPool()
    compiled = torch.compile(pool, dynamic=False)
    for cells in (13, 10):
        maps = torch.randn(2, 4, cells, cells)
        assert torch.equal(compiled(maps), pool(maps))


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3, 2, 1), (5,), (2, 6, 4)])
def test_windows_are_pooled_as_if_cut_out(levels: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    maps = random.standard_normal((3, 4, 23, 17), dtype=np.float32)
    windows, expected = [], []
    for _ in range(300):
        image = random.integers(3)
        x0, x1 = sorted(random.integers(0, 17, 2))
        y0, y1 = sorted(random.integers(0, 23, 2))
        windows.append((image, x0, y0, x1, y1))
        cut = maps[image : image + 1, :, y0 : y1 + 1, x0 : x1 + 1]
        expected.append(pooled_by_loops(cut, levels)[0])
    pooled = pool_windows(torch.from_numpy(maps), torch.tensor(np.array(windows)), levels)
    assert np.array_equal(pooled.numpy(), np.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_of_long_windows(dtype: torch.dtype) -> None:
    # roi_pool computes its bins in the type of the maps; a ramp shows the last cell of each bin, its negative the
    # first. There are cells before the window and behind it, which no bin may hold.
    for cells in range(1, 200):
        ramp = torch.arange(-1, cells + 1, dtype=dtype).view(1, 1, 1, cells + 2)
        whole = torch.tensor([[0, 1, 0, cells, 0]])
        for n in (*range(1, 9), 11, 13):
            last = pool_windows(ramp, whole, (n,)).view(n, n)[0]
            first = -pool_windows(-ramp, whole, (n,)).view(n, n)[0]
            found = list(zip(first.int().tolist(), (last.int() + 1).tolist(), strict=True))
            assert found == bins_of(cells, n), (cells, n)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_overflow_is_not_hidden_by_pooling(value: float) -> None:
    maps = torch.rand(1, 2, 9, 8)
    maps[0, 1, 4, 3] = value
    windows = torch.tensor([[0, 0, 0, 7, 8], [0, 3, 4, 3, 4], [0, 4, 0, 7, 8]])
    for pool in (SpatialPyramidPool((3, 1)), AveragePool()):
        pooled = pool.pool_windows(maps, windows)
        assert [bool(each.isfinite().all()) for each in pooled][:2] == [False, False]
    # Windows without that cell are as they were.
    pooled = SpatialPyramidPool((3, 1)).pool_windows(maps, windows)
    assert torch.equal(pooled[2:], SpatialPyramidPool((3, 1))(maps[:, :, :, 4:]))


def test_windows_have_gradients_and_keep_the_type() -> None:
    maps = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    windows = torch.tensor([[0, 1, 2, 6, 7], [1, 0, 0, 7, 8], [0, 3, 3, 3, 3]])
    assert torch.autograd.gradcheck(lambda values: pool_windows(values, windows, (3, 2, 1)), maps)
    assert pool_windows(maps.detach().bfloat16(), windows, (2,)).dtype == torch.bfloat16


def test_apples_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot be trusted on Apple's GPU"):
        _check_device("mps")
