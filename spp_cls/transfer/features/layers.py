"""Features of many layers of a network from one pass: inner maps, single pyramid levels, bins, fc layers."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spp_cls.cli.errors import UserError
from spp_cls.data.loading.batch import normalize
from spp_cls.data.transforms.crops import CENTRE
from spp_cls.evaluation.images import Cut
from spp_cls.models.net import SPPNet
from spp_cls.models.pyramid import SpatialPyramidPool

VIEWS = ("crop", "full", "warp")


class Feature(NamedTuple):
    """The outputs of a layer for a view of each image, at a side in pixels.

    crop: the centre square of the network's input size, of the image at min side `side`; full: the whole image at that
    min side; warp: the whole image as a square of `side` x `side`.
    """

    layer: str
    view: str
    side: int

    @property
    def cut(self) -> Cut:
        """What the network sees."""
        return Cut(self.side, CENTRE if self.view == "crop" else None, is_warped=self.view == "warp")

    @property
    def has_length(self) -> bool:
        """Whether the outputs for images of different shapes have one length: maps of whole images do not."""
        return self.view != "full" or not _is_map(self.layer)

    def __str__(self) -> str:
        return f"{self.layer} of {self.view} {self.side}"


def list_layers(net: SPPNet) -> list[str]:
    """List the layers that features can be taken from; other numbers of bins than the network's own can be, too."""
    maps = [f"maps:{name}" for name in net.backbone.list_map_layers()]
    levels = [f"level:{n}" for n in net.pool.levels]
    return [*maps, "map", *levels, *(name for name in net.layer_names if name != "map")]


def choose_features(
    net: SPPNet, layers: Sequence[str], views: Sequence[str], sides: Sequence[int]
) -> tuple[list[Feature], list[Feature]]:
    """Return every combination of layers, views and sides, and apart from them those that have no fixed length.

    Raises:
        UserError: if the network does not have a layer, cannot take a view or side, or a layer has no view left.
    """
    known = list_layers(net)
    for layer in layers:
        if layer not in known and not re.fullmatch(r"level:[1-9]\d?", layer):
            raise UserError(f"the network has no layer {layer!r}; choose among {', '.join(known)}")
        if _is_map(layer) and set(views) == {"full"}:
            raise UserError(
                f"{layer} of whole images has no fixed length; take pool or a level such as level:6, or view=crop"
            )
    for view in views:
        if view not in VIEWS:
            raise UserError(f"there is no view {view!r}; choose among {', '.join(VIEWS)}")
        for side in sides:
            _check_view(net, view, side)
    # One after the other: duplicates are typed by accident.
    every = dict.fromkeys(Feature(layer, view, side) for view in views for side in sides for layer in layers)
    return [each for each in every if each.has_length], [each for each in every if not each.has_length]


def _check_view(net: SPPNet, view: str, side: int) -> None:
    input_size = net.config.input_size
    if view == "crop" and side < input_size:
        raise UserError(f"side={side} is smaller than the crop of {input_size}, which the network was trained on")
    if view == "full" and not net.config.takes_any_size:
        raise UserError(f"view=full needs a net that takes any size; {net.config.name} without SPP takes crop and warp")
    size = input_size if view == "crop" else side
    net.check_size(size, size)


def compute_layers(net: SPPNet, images: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
    """Return the outputs of layers for N images of one shape, uint8 N x 3 x h x w, each N x length.

    Every layer is computed once. Maps are flattened, channel first; convolutions of the paper's networks and hidden fc
    layers are taken after ReLU.

    Raises:
        UserError: if a layer is not used, or gives no map.
    """
    device = next(net.parameters()).device
    inputs = normalize(images.to(device, non_blocking=True), net.config.mean, net.config.std)
    with torch.inference_mode(), _collect_maps(net, layers) as outputs:
        maps = net.forward_features(inputs)
        for layer in layers:
            if layer == "map":
                outputs[layer] = maps.flatten(1)
            elif layer.startswith("level:"):
                outputs[layer] = SpatialPyramidPool([int(layer.removeprefix("level:"))])(maps)
        if deeper := [layer for layer in layers if layer in ("pool", *net.head.layer_names)]:
            pooled = net.pool(maps)
            outputs |= {"pool": pooled, **net.head.forward_layers(pooled, [each for each in deeper if each != "pool"])}
    if unused := [layer for layer in layers if layer not in outputs]:
        raise UserError(f"the network computes its last map without {unused[0]}; choose another layer")
    return {layer: outputs[layer] for layer in layers}


@contextmanager
def _collect_maps(net: SPPNet, layers: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the layers maps:NAME of what the network computes in the block."""
    outputs: dict[str, Tensor] = {}
    known = net.backbone.list_map_layers()

    def keep(layer: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def copy(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise UserError(f"{layer} gives a {type(output).__name__}, no map; choose another layer")
            # The next layer may work in place.
            outputs[layer] = output.flatten(1).clone()

        return module.register_forward_hook(copy)

    handles = [keep(layer, known[layer.removeprefix("maps:")]) for layer in layers if layer.startswith("maps:")]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def measure_lengths(net: SPPNet, features: Collection[Feature]) -> dict[Feature, int]:
    """Return the length of each feature, by running the network on a black image for each view and side."""
    lengths: dict[Feature, int] = {}
    for cut in dict.fromkeys(feature.cut for feature in features):
        members = [feature for feature in features if feature.cut == cut]
        side = net.config.input_size if cut.position else cut.min_side
        outputs = compute_layers(
            net, torch.zeros(1, 3, side, side, dtype=torch.uint8), [each.layer for each in members]
        )
        lengths |= {feature: outputs[feature.layer].shape[1] for feature in members}
    return lengths


def _is_map(layer: str) -> bool:
    return layer == "map" or layer.startswith("maps:")
