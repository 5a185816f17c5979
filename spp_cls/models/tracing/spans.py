"""How operations move the pixels that the cells of a map depend on: one rule for each that changes a map's size."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Along one axis, the first and the last pixel that each cell depends on: 2 x cells; inf and -inf for a cell of padding.
Span = NDArray[np.float64]
# Along the height and along the width.
Spans = tuple[Span, Span]

_ATEN = torch.ops.aten


def join(*spans: Span) -> Span:
    """Join fields of the same cells: a cell depends on what any of them says."""
    return np.stack([np.min([span[0] for span in spans], axis=0), np.max([span[1] for span in spans], axis=0)])


def _slide(span: Span, cells: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> Span:
    """Join the fields under a window that slides over an axis and stops at `cells` places."""
    length = (cells - 1) * stride + dilation * (kernel - 1) + 1
    padded = _pad(span, padding, max(0, length - padding - span.shape[1]))
    taps = [padded[:, tap * dilation : tap * dilation + (cells - 1) * stride + 1 : stride] for tap in range(kernel)]
    return join(*taps)


def _pad(span: Span, before: int, after: int) -> Span:
    """Add cells that depend on no pixel; negative numbers take cells away."""
    none = np.array([[np.inf], [-np.inf]])
    cut = span[:, max(0, -before) : span.shape[1] + min(0, after)]
    return np.concatenate([none.repeat(max(0, before), 1), cut, none.repeat(max(0, after), 1)], axis=1)


def slide_both(
    spans: Spans,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Spans:
    """Join the fields under a window that slides over a map and stops at height x width places, the `shape`."""
    rows, columns = (
        _slide(spans[i], shape[i], *(_get_side(value, i) for value in (kernel, stride, padding, dilation)))
        for i in (0, 1)
    )
    return rows, columns


def _get_side(value: Any, axis: int) -> int:
    sides = [value] if isinstance(value, int) else list(value)
    return int(sides[axis] if len(sides) > 1 else sides[0])


# A rule gets the fields of an operation's first input, the height and width of its output, the dimension of the
# height counted from the last, and the operation's arguments; it returns the fields of the output, None for "as they
# were, where height and width are the same".
Rule = Callable[[Spans, Sequence[int], int, Sequence[Any]], Spans | None]


def _fill(given: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    return [*given, *defaults[len(given) :]]


def _convolve(spans: Spans, shape: Sequence[int], axis: int, args: Sequence[Any]) -> Spans | None:
    _, weight, _, stride, padding, dilation, is_transposed, *_ = args
    if is_transposed or axis != -2 or weight.ndim != 4:
        return None
    return slide_both(spans, shape, weight.shape[-2:], stride, padding, dilation)


def _max_pool(spans: Spans, shape: Sequence[int], axis: int, args: Sequence[Any]) -> Spans:
    stride, padding, dilation = _fill(args[2:5], ([], 0, 1))
    return slide_both(spans, shape, args[1], stride or args[1], padding, dilation)


def _avg_pool(spans: Spans, shape: Sequence[int], axis: int, args: Sequence[Any]) -> Spans:
    stride, padding = _fill(args[2:4], ([], 0))
    return slide_both(spans, shape, args[1], stride or args[1], padding)


def _pad_zeros(spans: Spans, shape: Sequence[int], axis: int, args: Sequence[Any]) -> Spans:
    # Pairs, from the last dimension on.
    amounts = [*args[1], 0, 0, 0, 0, 0, 0, 0, 0]
    rows, columns = (_pad(spans[i], *amounts[2 * (-axis - 1 - i) :][:2]) for i in (0, 1))
    return rows, columns


def _pad_by(mode: Any) -> Rule:
    def pad(spans: Spans, shape: Sequence[int], axis: int, args: Sequence[Any]) -> Spans:
        left, right, top, bottom = args[1]
        rows, columns = (
            np.stack([np.pad(ends, amounts, mode=mode) for ends in span])
            for span, amounts in zip(spans, ((top, bottom), (left, right)), strict=True)
        )
        return rows, columns

    return pad


def _take(spans: Spans, shape: Sequence[int], axis: int, args: Sequence[Any]) -> Spans | None:
    dim, start, end, step = _fill(args[1:5], (0, None, None, 1))
    which = (dim - args[0].ndim if dim >= 0 else dim) - axis
    if which not in (0, 1):
        return None
    rows, columns = (span[:, start:end:step] if i == which else span for i, span in enumerate(spans))
    return rows, columns


def _repeat(spans: Spans, shape: Sequence[int], axis: int, args: Sequence[Any]) -> Spans:
    rows, columns = (
        span[:, np.arange(cells) * span.shape[1] // cells] for span, cells in zip(spans, shape, strict=True)
    )
    return rows, columns


def _interpolate(spans: Spans, shape: Sequence[int], axis: int, args: Sequence[Any]) -> Spans:
    def interpolate(span: Span, cells: int) -> Span:
        places = (np.arange(cells) + 0.5) * span.shape[1] / cells - 0.5
        below, above = (np.clip(ends, 0, span.shape[1] - 1).astype(int) for ends in (np.floor(places), np.ceil(places)))
        return join(span[:, below], span[:, above])

    return interpolate(spans[0], shape[0]), interpolate(spans[1], shape[1])


def _fold_blocks(spans: Spans, shape: Sequence[int], axis: int, args: Sequence[Any]) -> Spans:
    return slide_both(spans, shape, (args[1],) * 2, (args[1],) * 2)


RULES: dict[Any, Rule] = {
    _ATEN.convolution: _convolve,
    _ATEN.max_pool2d_with_indices: _max_pool,
    _ATEN.avg_pool2d: _avg_pool,
    _ATEN.constant_pad_nd: _pad_zeros,
    _ATEN.reflection_pad2d: _pad_by("reflect"),
    _ATEN.replication_pad2d: _pad_by("edge"),
    _ATEN.slice: _take,
    _ATEN.upsample_nearest2d: _repeat,
    _ATEN.upsample_bilinear2d: _interpolate,
    _ATEN.upsample_bicubic2d: _interpolate,
    _ATEN.pixel_unshuffle: _fold_blocks,
    _ATEN.pixel_shuffle: _repeat,
}
