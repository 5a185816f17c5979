"""The geometry of a feature map, traced through the operations of a network that is no chain of layers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from spp_cls.cli.errors import UserError
from spp_cls.models.tracing.spans import RULES, Span, Spans, join, slide_both

Shape = tuple[int, int]

# Added to the height: no two sides of a map are equal, so that height and width are found in tensors of any layout.
_WIDER = 192
_LARGEST = 1 << 15
# Sides of blocks of cells that networks move into channels.
_BLOCKS = (2, 4, 8)


class Geometry(NamedTuple):
    """Pixels from cell to cell, the pixel under the centre of the first cell, and the side of a cell's field in pixels.

    The field are the pixels that a cell depends on through convolutions, pools and paddings; the centre is its middle.
    """

    stride: int
    first_centre: float
    field: int


def trace_geometry(run: Callable[[Tensor], Tensor], size: int, in_chans: int = 3) -> Geometry:
    """Return the geometry of the maps that `run` makes of images of about `size` pixels, on the meta device.

    The images are larger than `size` by multiples of 64 pixels, so that the field of a cell in the middle lies inside
    them. What mixes all cells of a map, such as attention or squeeze-and-excitation, leaves a cell where it is.

    Raises:
        UserError: if the maps have no single stride, or an operation whose geometry is unknown makes them.
    """
    while size <= _LARGEST:
        tracer = Tracer(torch.zeros(1, in_chans, size, size + _WIDER, device="meta"))
        with torch.no_grad(), tracer:
            maps = run(tracer.images)
        found = {
            _measure(span, pixels) for span, pixels in zip(tracer.find_spans(maps), (size, size + _WIDER), strict=True)
        }
        if None not in found:
            if len(found) > 1:
                raise UserError(f"the geometry differs along height and width: {found}")
            return found.pop()  # type: ignore[return-value]
        size += size // 64 * 64
    raise UserError(f"a cell of the map depends on more than {_LARGEST} pixels")


def _measure(span: Span, size: int) -> Geometry | None:
    """Measure the geometry in the middle of an axis; None if a field there reaches over the image."""
    middle = span.shape[1] // 2
    first, last = span[:, middle : middle + 2]
    if len(first) < 2 or min(first) <= 0 or max(last) >= size - 1:
        return None
    centres = (first + last) / 2
    stride = centres[1] - centres[0]
    if stride != round(stride) or stride < 1:
        raise UserError(f"the cells of the map have no single stride: two neighbours are {stride} pixels apart")
    return Geometry(int(stride), float(centres[0] - stride * middle), int(last[0] - first[0]) + 1)


class Tracer(TorchDispatchMode):
    """Follows `images`, N x C x H x W, through operations: which pixels each cell of each tensor depends on.

    A tensor either has the height and width of a map as two neighbouring dimensions, or remembers the maps that it was
    made of, until one of its successors has their height and width again: as tokens do, or windows of attention.
    `used` holds the identities of all tensors that operations had as arguments.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.used: set[int] = set()
        pixels = tuple(np.tile(np.arange(side, dtype=np.float64), (2, 1)) for side in images.shape[-2:])
        self._axes: Any = WeakTensorKeyDictionary()
        self._maps: Any = WeakTensorKeyDictionary()
        self._set(images, 2, {_get_shape(images, 2): (pixels[0], pixels[1])})

    def find_spans(self, maps: Tensor) -> Spans:
        """Return the fields of N x C x h x w maps along both axes.

        Raises:
            UserError: if the operations that led to the maps are not known.
        """
        if self._axes.get(maps) != 2:
            raise UserError("its maps are made by operations whose geometry is unknown")
        return self._get(maps)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.used.update(map(id, inputs))
        rule = RULES.get(func.overloadpacket)
        for output in tree_leaves(outputs):
            if not isinstance(output, Tensor):
                continue
            if rule and self._axes.get(inputs[0]) is not None:
                axis = self._axes[inputs[0]]
                spans = rule(self._get(inputs[0]), _get_shape(output, axis), axis - inputs[0].ndim, args)
                if spans:
                    self._set(output, axis, {_get_shape(output, axis): spans})
                    continue
            self._follow(inputs, output)
        return outputs

    def _get(self, tensor: Tensor) -> Spans:
        axis = self._axes[tensor]
        return self._maps[tensor][_get_shape(tensor, axis)]

    def _set(self, tensor: Tensor, axis: int | None, maps: dict[Shape, Spans]) -> None:
        self._axes[tensor], self._maps[tensor] = axis, maps

    def _follow(self, inputs: Sequence[Tensor], output: Tensor) -> None:
        """Find the maps of the inputs in an output of any other operation."""
        known = [tensor for tensor in inputs if tensor in self._maps]
        # A gate that was made of a whole map says nothing of the place of the cells that it multiplies.
        placed = [tensor for tensor in known if self._axes[tensor] is not None]
        for members in (placed, known):
            maps = _join_maps(self._maps[tensor] for tensor in members)
            for shape, spans in maps.items():
                axis = _find_axis(output, shape, [self._axes[tensor] for tensor in members])
                if axis is not None:
                    self._set(output, axis, {shape: spans})
                    return
        for shape, spans in _join_maps(self._maps[tensor] for tensor in known).items():
            for side in _BLOCKS:
                blocks = (shape[0] // side, shape[1] // side)
                if output.ndim == 4 and output.shape[0] == 1 and _get_shape(output, 2) == blocks:
                    self._set(output, 2, {blocks: slide_both(spans, blocks, (side,) * 2, (side,) * 2)})
                    return
        if known:
            self._set(output, None, _join_maps(self._maps[tensor] for tensor in known))


def _join_maps(several: Iterable[dict[Shape, Spans]]) -> dict[Shape, Spans]:
    """Join the fields of maps of one shape: a cell depends on what any of them depends on."""
    joined: dict[Shape, Spans] = {}
    for maps in several:
        for shape, spans in maps.items():
            before = joined.get(shape, spans)
            joined[shape] = (join(before[0], spans[0]), join(before[1], spans[1]))
    return joined


def _get_shape(tensor: Tensor, axis: int) -> Shape:
    return tensor.shape[axis], tensor.shape[axis + 1]


def _find_axis(tensor: Tensor, shape: Shape, likely: Sequence[int | None]) -> int | None:
    """Find where a tensor has height and width as neighbouring dimensions."""
    found = [axis for axis in range(tensor.ndim - 1) if _get_shape(tensor, axis) == shape]
    return next((axis for axis in found if axis in likely), found[0] if found else None)
