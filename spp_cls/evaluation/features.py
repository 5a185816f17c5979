"""The evaluator's core: features of many views of images, with each convolution computed once."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from spp_cls.cli.errors import UserError
from spp_cls.data.loading.batch import normalize
from spp_cls.data.transforms.crops import find_corner
from spp_cls.evaluation.images import MAX_PIXELS, Cut, get_cut
from spp_cls.evaluation.protocols import View
from spp_cls.models.backbone import Backbone
from spp_cls.models.net import SPPNet

# Pooled views that go through the fc layers at once: enough to be limited by arithmetic, 400 MB at most.
_MOST_VECTORS = 4096

# The number of the view's flip among those of the cut, and the first and last cell: x0, y0, x1, y1.
Window = tuple[int, int, int, int, int]


@torch.no_grad()
def view_features(
    net: SPPNet,
    images: Mapping[Cut, Tensor],
    views: Collection[View],
    layer: str = "logits",
    max_pixels: int = MAX_PIXELS,
) -> dict[View, Tensor]:
    """Return the outputs of a layer for each view of N images of one shape: N vectors a view.

    `images` are what cut_images made for the views, on any device. `layer` is one of net.layer_names: `map` is the
    view's window of the last feature map, flattened, whose length depends on the view; `pool` are its bins; hidden fc
    layers are taken after ReLU.

    The convolutions see each scale and flip once, no more than `max_pixels` (or one image) at a time. The fc layers
    see all views of all images together, as reading their weights is what takes time.

    Raises:
        UserError: if the network has no such layer, or is in training mode.
    """
    if layer not in net.layer_names:
        raise UserError(f"the network has no layer {layer!r}; choose among {', '.join(net.layer_names)}")
    if net.training:
        raise UserError("the network is in training mode, where dropout changes its outputs; call net.eval() first")
    views_of: dict[Cut, list[View]] = defaultdict(list)
    for view in sorted(set(views), key=str):
        views_of[get_cut(view, net.config.input_size)].append(view)
    features: dict[View, Tensor] = {}
    for cut, members in views_of.items():
        maps = _compute_maps(net, images[cut], members, max_pixels)
        windows = [find_window(net, view, members, images[cut], maps) for view in members]
        is_whole = cut.position is None and not cut.is_warped
        take = _cut_windows if layer == "map" else _pool_windows if is_whole else _pool_crops
        features |= zip(members, take(net, maps, windows, len(images[cut])), strict=True)
    if layer in ("map", "pool"):
        return features
    vectors = torch.cat(list(features.values())).split(_MOST_VECTORS)
    outputs = torch.cat([net.head.forward_to(chunk, layer) for chunk in vectors])
    return dict(zip(features, outputs.chunk(len(features)), strict=True))


def _list_flips(views: Sequence[View]) -> list[bool]:
    return sorted({view.flip for view in views})


def _compute_maps(net: SPPNet, images: Tensor, views: Sequence[View], max_pixels: int) -> Tensor:
    """Map N images of a cut, then their mirror images, as far as views need either."""
    images = images.to(next(net.parameters()).device, non_blocking=True)
    pixels = torch.cat([images.flip(-1) if flip else images for flip in _list_flips(views)])
    inputs = normalize(pixels, net.config.mean, net.config.std)
    most = max(1, max_pixels // (inputs.shape[-2] * inputs.shape[-1]))
    return torch.cat([net.forward_features(chunk) for chunk in inputs.split(most)])


def find_window(net: SPPNet, view: View, views: Sequence[View], images: Tensor, maps: Tensor) -> Window:
    """Find the cells of a view in the maps of its image; `views` are all views of the cut."""
    height, width = images.shape[-2:]
    rows, columns = maps.shape[-2:]
    number = _list_flips(views).index(view.flip)
    if view.position is None or not view.on_maps:
        return number, 0, 0, columns - 1, rows - 1
    side = net.config.input_size
    left, top = find_corner(view.position, width, height, side)
    if view.flip:
        # The same part of the image, where the mirror image has it.
        left = width - side - left
    x0, x1 = find_cells(left, left + side, net.backbone, columns)
    y0, y1 = find_cells(top, top + side, net.backbone, rows)
    return number, x0, y0, x1, y1


def _cut_windows(net: SPPNet, maps: Tensor, windows: Sequence[Window], count: int) -> list[Tensor]:
    """Flatten each window of the maps of `count` images."""
    return [
        maps[number * count : (number + 1) * count, :, y0 : y1 + 1, x0 : x1 + 1].flatten(1)
        for number, x0, y0, x1, y1 in windows
    ]


def _pool_windows(net: SPPNet, maps: Tensor, windows: Sequence[Window], count: int) -> Sequence[Tensor]:
    """Pool each window of the maps of `count` images."""
    rows = [(number * count + image, *cells) for number, *cells in windows for image in range(count)]
    pooled = net.pool.pool_windows(maps, torch.tensor(rows, device=maps.device))
    return pooled.chunk(len(windows))


def _pool_crops(net: SPPNet, maps: Tensor, windows: Sequence[Window], count: int) -> Sequence[Tensor]:
    """Pool the whole maps of `count` crops and, perhaps, of their mirror images."""
    pooled = net.pool(maps).split(count)
    return [pooled[number] for number, *_ in windows]


def find_cells(start: int, stop: int, backbone: Backbone, cells: int) -> tuple[int, int]:
    """Return the first and last cell of a map whose centres are pixels of a window, along one axis.

    The pixels are `start` to `stop` - 1, without `start` where the backbone's windows are open; the centre of cell j is
    pixel first_centre + stride * j. Both cells are clamped to a map of `cells` cells, and a window that holds no centre
    gets the nearest cell. Paper: appendix, "mapping a window to feature maps", whose windows are open, with the offset
    that the paddings bring.
    """
    begin, end = ((border - backbone.first_centre) / backbone.stride for border in (start, stop))
    first = math.floor(begin) + 1 if backbone.windows_are_open else math.ceil(begin)
    last = math.ceil(end) - 1
    if first > last:
        first = last = round((begin + end) / 2)
    return min(max(first, 0), cells - 1), min(max(last, 0), cells - 1)
