"""From a window in the image to cells of the feature map."""

import math


def find_cells(start: int, stop: int, stride: int, first_centre: float, cells: int) -> tuple[int, int]:
    """Return the first and last cell of a map whose centres lie strictly inside a window, along one axis.

    The window reaches from pixel border `start` to `stop`; the centre of cell j is pixel first_centre + stride * j.
    Both cells are clamped to a map of `cells` cells, and a window that holds no centre gets the nearest cell. Paper:
    appendix, "mapping a window to feature maps", with the offset that the paddings bring.
    """
    first = math.floor((start - first_centre) / stride) + 1
    last = math.ceil((stop - first_centre) / stride) - 1
    if first > last:
        first = last = round(((start + stop) / 2 - first_centre) / stride)
    return min(max(first, 0), cells - 1), min(max(last, 0), cells - 1)
