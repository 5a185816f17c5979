"""(net, images, protocols) -> predictions: each view computed once, whatever protocols share it."""

import sys
from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from spp_cls.data.batch import minus_mean
from spp_cls.data.crops import corner_of
from spp_cls.data.sources import ImageSource
from spp_cls.errors import UserError
from spp_cls.evaluation.images import Cut, ViewBatch, cut_of, min_side, view_batches
from spp_cls.evaluation.predictions import Predictions
from spp_cls.evaluation.views import Protocol, View
from spp_cls.evaluation.windows import window_cells
from spp_cls.models.net import SPPNet
from spp_cls.models.pyramid import pool_windows

# Pooled views that go through the fc layers at once: enough to be limited by arithmetic, 400 MB at most.
_MOST_VECTORS = 4096


def evaluate(
    net: SPPNet,
    files: ImageSource,
    protocols: Sequence[Protocol],
    fabric: Fabric,
    max_pixels: int = 8_000_000,
    num_workers: int = 0,
    progress: bool = True,
) -> dict[str, Predictions]:
    """Score every image once under each protocol; the net is on the fabric's device, in evaluation mode.

    Images are shared among the fabric's processes without padding, and every process gets the predictions of all,
    in the order of `files`. `max_pixels` bounds the images of one pass through the network.

    Raises:
        UserError: a protocol that a net without SPP cannot run, or files of other classes than the net's.
        UndecodableImageError: an image is damaged.
    """
    check_protocols(net, protocols)
    check_classes(net, files)
    views = {view for protocol in protocols for view in protocol.views}
    window = net.recipe.input_size
    cuts = {cut_of(view, window) for view in views}
    # Neighbours in a data set often share a shape, and the processes should share the shapes out evenly.
    indices = range(fabric.global_rank, len(files), fabric.world_size)
    batches = view_batches(files, indices, cuts, window, max_pixels, num_workers)
    parts: dict[str, list[Predictions]] = {protocol.name: [] for protocol in protocols}
    bar = tqdm(
        total=len(indices),
        unit=" images",
        desc="Testing",
        disable=not (progress and fabric.is_global_zero),
        dynamic_ncols=True,
        # stderr is for what goes wrong.
        file=sys.stdout,
    )
    with bar, torch.inference_mode():
        wrong = seen = 0
        for batch in batches:
            with fabric.autocast():
                logits = view_logits(net, _to_device(batch, fabric), views, max_pixels)
            scores = {view: each.float().softmax(1) for view, each in logits.items()}
            for protocol in protocols:
                mean = torch.stack([scores[view] for view in protocol.views]).mean(0)
                parts[protocol.name].append(Predictions.of(mean, batch.labels, batch.indices))
            first = parts[protocols[0].name][-1]
            wrong += len(batch.labels) - first.right(1)
            bar.update(len(batch.labels))
            seen += len(batch.labels)
            bar.set_postfix_str(f"{protocols[0].name} top-1 error {100 * wrong / seen:.2f} %")
    results = {name: Predictions.gathered(some, fabric.world_size) for name, some in parts.items()}
    for name, predictions in results.items():
        assert len(predictions) == len(files), f"{name} saw {len(predictions)} of {len(files)} images"
    return results


def check_protocols(net: SPPNet, protocols: Sequence[Protocol]) -> None:
    """Raise UserError if the network cannot run a protocol."""
    for protocol in protocols:
        for side in {min_side(view, net.recipe.input_size) for view in protocol.views}:
            # The other side of an image is no shorter.
            net.backbone.check_size(side, side)
        if net.recipe.pooling == "none" and any(view.on_maps for view in protocol.views):
            raise UserError(
                f"{protocol.name} needs a net that takes any size; {net.recipe.name} without SPP runs crop1 and crop10"
            )


def check_classes(net: SPPNet, files: ImageSource) -> None:
    """Raise UserError if the classes of a data set are not those that the network was trained on."""
    if len(files.class_names) != net.num_classes:
        raise UserError(
            f"the data set in {files.root} has {len(files.class_names)} classes, the checkpoint {net.num_classes}; "
            "set data and data.root to the data set it was trained on"
        )
    known = net.recipe.class_names
    if known is not None and known != files.class_names:
        stranger = next(a for a, b in zip(files.class_names, known, strict=True) if a != b)
        raise UserError(
            f"class {stranger} of {files.root} is not among the checkpoint's; "
            "set data and data.root to the data set it was trained on"
        )


def view_logits(net: SPPNet, images: dict[Cut, Tensor], views: Collection[View], max_pixels: int) -> dict[View, Tensor]:
    """Return the logits, N x classes, of each view of N images of one shape.

    `images` are the cuts of the views, uint8 N x 3 x h x w. The convolutions see each scale and flip once, no more
    than `max_pixels` (or one image) at a time; the fc layers see all views of all images together, as their weights
    are what takes time to read.
    """
    views_of: dict[Cut, list[View]] = defaultdict(list)
    for view in sorted(views, key=str):
        views_of[cut_of(view, net.recipe.input_size)].append(view)
    ordered: list[View] = []
    pooled: list[Tensor] = []
    for cut, members in views_of.items():
        pooled.append(_pooled(net, images[cut], members, max_pixels))
        ordered += members
    logits = [net.head(part) for part in torch.cat(pooled).split(_MOST_VECTORS)]
    return dict(zip(ordered, torch.cat(logits).chunk(len(ordered)), strict=True))


def _pooled(net: SPPNet, images: Tensor, views: Sequence[View], max_pixels: int) -> Tensor:
    """Pool views of one cut of N images: V * N vectors, the images of the first view first."""
    flips = sorted({view.flip for view in views})
    inputs = minus_mean(torch.cat([images.flip(-1) if flip else images for flip in flips]), net.recipe.mean)
    height, width = inputs.shape[-2:]
    most = max(1, max_pixels // (height * width))
    maps = torch.cat([net.forward_features(part) for part in inputs.split(most)])
    if not views[0].on_maps:
        # One crop, and perhaps its mirror image, each a view as it is.
        return net.pool(maps)
    windows = []
    for view in views:
        box = _cells_of(net, view, width, height, maps)
        first = flips.index(view.flip) * len(images)
        windows += [(first + number, *box) for number in range(len(images))]
    return pool_windows(maps, torch.tensor(windows, device=maps.device), net.pool.levels)


def _cells_of(net: SPPNet, view: View, width: int, height: int, maps: Tensor) -> tuple[int, int, int, int]:
    """First and last cell of a view in the map of its image of width x height pixels: x0, y0, x1, y1."""
    columns, rows = maps.shape[-1], maps.shape[-2]
    if view.position is None:
        return 0, 0, columns - 1, rows - 1
    window = net.recipe.input_size
    left, top = corner_of(view.position, width, height, window)
    if view.flip:
        # The same part of the image, where the mirrored image has it.
        left = width - window - left
    stride, centre = net.backbone.stride, net.backbone.first_centre
    x0, x1 = window_cells(left, left + window, stride, centre, columns)
    y0, y1 = window_cells(top, top + window, stride, centre, rows)
    return x0, y0, x1, y1


def _to_device(batch: ViewBatch, fabric: Fabric) -> dict[Cut, Tensor]:
    return {cut: fabric.to_device(images) for cut, images in batch.images.items()}
