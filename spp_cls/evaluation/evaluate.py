"""(net, images, protocols) -> predictions: each view computed once, whatever protocols share it."""

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from spp_cls.data.batch import minus_mean
from spp_cls.data.crops import corner_of
from spp_cls.data.sources import ImageFiles
from spp_cls.errors import UserError
from spp_cls.evaluation.images import Cut, ViewBatch, cut_of, view_batches
from spp_cls.evaluation.predictions import Predictions
from spp_cls.evaluation.views import Protocol, View
from spp_cls.evaluation.windows import window_cells
from spp_cls.models.net import SPPNet


def evaluate(
    net: SPPNet,
    files: ImageFiles,
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
        if net.recipe.pooling == "none" and any(view.on_maps for view in protocol.views):
            raise UserError(
                f"{protocol.name} needs a net that takes any size; {net.recipe.name} without SPP runs crop1 and crop10"
            )


def check_classes(net: SPPNet, files: ImageFiles) -> None:
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

    `images` are the cuts of the views, uint8 N x 3 x h x w. Each scale and flip takes one pass of the convolutions,
    and all windows on its maps one pass of the fc layers. Crops go through the network together, as far as
    `max_pixels` allows.
    """
    window = net.recipe.input_size
    logits: dict[View, Tensor] = {}
    passes: dict[tuple[Cut, bool], list[View]] = defaultdict(list)
    crops: list[View] = []
    for view in sorted(views, key=str):
        if view.on_maps:
            passes[cut_of(view, window), view.flip].append(view)
        else:
            crops.append(view)

    def inputs_of(cut: Cut, flip: bool) -> Tensor:
        return minus_mean(images[cut].flip(-1) if flip else images[cut], net.recipe.mean)

    for (cut, flip), members in passes.items():
        logits.update(_pass_on_maps(net, inputs_of(cut, flip), members))
    if crops:
        together = torch.cat([inputs_of(cut_of(view, window), view.flip) for view in crops])
        parts = [net(part) for part in together.split(max(1, max_pixels // window**2))]
        logits.update(zip(crops, torch.cat(parts).chunk(len(crops)), strict=True))
    return logits


def _pass_on_maps(net: SPPNet, inputs: Tensor, views: Sequence[View]) -> dict[View, Tensor]:
    """Logits of the views of one scale and one flip."""
    maps = net.forward_features(inputs)
    found: dict[View, Tensor] = {}
    windowed = [view for view in views if view.position is not None]
    if windowed:
        cells = [_cells_of(net, view, inputs.shape[-1], inputs.shape[-2], maps) for view in windowed]
        windows = torch.tensor([(n, *box) for box in cells for n in range(len(inputs))], device=maps.device)
        found.update(zip(windowed, net.forward_windows(maps, windows).chunk(len(windowed)), strict=True))
    for view in views:
        if view.position is None:
            found[view] = net.forward_head(maps)
    return found


def _cells_of(net: SPPNet, view: View, width: int, height: int, maps: Tensor) -> tuple[int, int, int, int]:
    assert view.position is not None
    window = net.recipe.input_size
    left, top = corner_of(view.position, width, height, window)
    if view.flip:
        # The same part of the image, where the mirrored image has it.
        left = width - window - left
    stride, centre = net.backbone.stride, net.backbone.first_centre
    x0, x1 = window_cells(left, left + window, stride, centre, maps.shape[-1])
    y0, y1 = window_cells(top, top + window, stride, centre, maps.shape[-2])
    return x0, y0, x1, y1


def _to_device(batch: ViewBatch, fabric: Fabric) -> dict[Cut, Tensor]:
    return {cut: fabric.to_device(images) for cut, images in batch.images.items()}
