"""Backbones of timm: any of its networks that gives a feature map for images of any size."""

from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants
from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls.cli.errors import UserError
from spp_cls.models.backbone import Backbone
from spp_cls.models.geometry import Geometry, Tracer, trace_geometry

PREFIX = "timm/"

# Sides are tried that lie so many units beyond a multiple of 64 pixels, the unit being the multiple that is tried.
_RESTS = ((1, 2), (3, 5), (7, 8), (9, 16), (15, 31), (21, 42))
# Seconds that the Hugging Face Hub may take to answer at all.
_PATIENCE = 5

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


class Preprocessing(NamedTuple):
    """What a network's published weights were trained with: mean and std of pixels of 0..255, and the crop."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int
    interpolation: str


class Traits(NamedTuple):
    """What was found by running a network on the meta device.

    The map's channels, and whether they come last; the pixels that image sides are padded to a multiple of; the names
    of the layers behind the map; the geometry, and the smallest side that leaves a cell.
    """

    channels: int
    is_channels_last: bool
    multiple: int
    unused: tuple[str, ...]
    geometry: Geometry
    smallest_input: int


class TimmBackbone(Backbone):
    """A network of timm up to the map that it usually pools, its `forward_features`; the layers behind are left out.

    Where branches of a network fit together only at sides of certain multiples (HRNet, DLA), images of other sizes are
    padded with zeros, the mean colour, at the right and below. The geometry is traced, once for each name.

    Raises:
        UserError: if timm has no such network, it gives no map for images of any size, or its weights cannot be loaded.
    """

    def __init__(self, name: str, in_chans: int = 3, pretrained: bool = False) -> None:
        super().__init__()
        self.name = name
        self.traits = find_traits(_get_architecture(name))
        self.model = _load_model(name, in_chans) if pretrained else _create_model(name, in_chans)
        for layer in self.traits.unused:
            # Parameters without a gradient would stop several processes.
            self.model.set_submodule(layer, nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        """Map N x in_chans x H x W images to the last feature map."""
        maps = self.model.forward_features(_pad_to_multiple(images, self.traits.multiple))
        return maps.permute(0, 3, 1, 2) if self.traits.is_channels_last else maps

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        return self.traits.channels

    @property
    def stride(self) -> int:
        """Pixels from the centre of a cell of the last map to that of the next."""
        return self.traits.geometry.stride

    @property
    def first_centre(self) -> float:
        """Pixel under the centre of the first cell, where sides are timm's own or differ by multiples of the stride."""
        return self.traits.geometry.first_centre

    def map_size(self, size: int) -> int:
        """Cells along a side of the last map, for `size` pixels; 0 where the image is too small."""
        return _count_cells(_get_architecture(self.name), size, self.traits.multiple)

    @property
    def smallest_input(self) -> int:
        """Smallest image side, in pixels, that leaves one cell."""
        return self.traits.smallest_input


def find_preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing that timm states for a network, of the pretrained tag in its name or the default one.

    Raises:
        UserError: if timm has no such network or tag.
    """
    architecture = _get_architecture(name)
    cfg = timm.get_pretrained_cfg(name.removeprefix(PREFIX)) or timm.get_pretrained_cfg(architecture)
    if cfg is None:
        raise UserError(f"timm states no preprocessing of {name}; set model.mean, model.std and model.input_size")
    mean, std = (tuple(round(255 * value, 4) for value in values) for values in (cfg.mean, cfg.std))
    return Preprocessing(mean, std, cfg.input_size[-1], cfg.interpolation)


def _get_architecture(name: str) -> str:
    """Return the name of a network without prefix and tag.

    Raises:
        UserError: if timm has no such network, or no such tag of it.
    """
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists its networks"
        raise UserError(f"timm has no network {architecture!r}; {hint}")
    if tag:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
        if tag not in tags:
            raise UserError(f"timm has no weights {tag!r} of {architecture}; there are {', '.join(tags) or 'none'}")
    return architecture


def _create_model(name: str, in_chans: int, pretrained: bool = False) -> Any:
    return timm.create_model(name.removeprefix(PREFIX), pretrained=pretrained, in_chans=in_chans, num_classes=0)


def _load_model(name: str, in_chans: int) -> Any:
    """Create a network with timm's weights, from the local cache or, where it can be reached, the Hub."""
    is_connected, offline = _is_hub_reachable(), constants.HF_HUB_OFFLINE
    # Its client would try again and again for most of a minute, on a line each.
    constants.HF_HUB_OFFLINE = offline or not is_connected
    try:
        return _create_model(name, in_chans, pretrained=True)
    except Exception as error:  # timm, the Hub's client and its transport each have their own
        why = _first_line(error) if is_connected else f"{constants.ENDPOINT} cannot be reached"
        raise UserError(
            f"the weights of {name} cannot be loaded ({why}); connect once, name a tag that has weights, or set "
            "model.pretrained=false"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _is_hub_reachable() -> bool:
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True


def _pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    if multiple == 1:
        return images
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))


@cache
def _create_twin(architecture: str) -> Any:
    """Return a network's twin without weights, whose layers are run for their shapes alone."""
    with torch.device("meta"):
        return _create_model(architecture, 3).eval()


@cache
def find_traits(architecture: str) -> Traits:
    """Run a network's twin, and return what it shows.

    Raises:
        UserError: if it does not give a map of images of any size.
    """
    refusal = f"{PREFIX}{architecture} has no feature map of free size"
    try:
        twin = _create_twin(architecture)
    except Exception as error:  # as the layers of any network raise
        raise UserError(f"{refusal}: {_first_line(error)}") from error
    size = max(64, -(-find_preprocessing(architecture).input_size // 64) * 64)
    first = _run(twin, size, size + 64)
    if isinstance(first, Exception):
        raise UserError(f"{refusal}: it refuses {size} x {size + 64} pixels ({_first_line(first)})")
    if not isinstance(first, Tensor) or first.ndim != 4:
        kind = f"values of shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise UserError(f"{refusal}: it gives {kind}, such as tokens, and no N x channels x height x width map")
    is_channels_last = first.shape[1] != twin.num_features and first.shape[-1] == twin.num_features
    multiple = _find_multiple(twin, size)
    if multiple is None:
        raise UserError(f"{refusal}: it refuses sides that are not multiples of 64 pixels, and more")

    tracer = Tracer(torch.zeros(1, 3, size, size + 64, device="meta"))
    with torch.no_grad(), tracer:
        twin.forward_features(tracer.images)
    try:
        geometry = trace_twin(architecture, find_preprocessing(architecture).input_size, is_channels_last)
    except UserError as error:
        raise UserError(f"{refusal} that can be traced: {error}") from error
    channels = first.shape[-1 if is_channels_last else 1]
    unused, smallest = _list_unused(twin, tracer.used), _find_smallest_input(architecture, multiple)
    return Traits(channels, is_channels_last, multiple, unused, geometry, smallest)


@cache
def trace_twin(architecture: str, size: int, is_channels_last: bool) -> Geometry:
    """Return the geometry of a network for images whose sides differ from `size` by multiples of 64 pixels.

    Raises:
        UserError: if it cannot be traced.
    """

    def run(images: Tensor) -> Tensor:
        maps = _create_twin(architecture).forward_features(images)
        return maps.permute(0, 3, 1, 2) if is_channels_last else maps

    # The field of a cell of most networks is smaller.
    return trace_geometry(run, 1024 + size % 64)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _run(twin: Any, height: int, width: int) -> Any:
    """Return the twin's features of an image, or the error that it raised."""
    try:
        with torch.no_grad():
            return twin.forward_features(torch.zeros(1, 3, height, width, device="meta"))
    except Exception as error:  # as the layers of any network raise
        return error


def _find_multiple(twin: Any, size: int) -> int | None:
    """Return the smallest number of pixels, a power of two, whose multiples the network takes as sides."""
    for multiple in _MULTIPLES:
        sides = {(size + multiple * a % 64, size + multiple * b % 64) for a, b in _RESTS}
        if not any(isinstance(_run(twin, *each), Exception) for each in sides):
            return multiple
    return None


def _list_unused(twin: nn.Module, used: set[int]) -> tuple[str, ...]:
    """List the outermost layers with parameters of which none was used."""
    unused: list[str] = []
    for name, layer in twin.named_modules():
        parameters = list(layer.parameters())
        is_inside = any(name.startswith(f"{outer}.") for outer in unused)
        if name and parameters and not is_inside and used.isdisjoint(map(id, parameters)):
            unused.append(name)
    return tuple(unused)


@cache
def _count_cells(architecture: str, size: int, multiple: int) -> int:
    padded = size + -size % multiple
    if padded < 1:
        return 0
    maps = _run(_create_twin(architecture), padded, padded)
    # Dimension 2 is a side of the map in both layouts.
    return 0 if isinstance(maps, Exception) else int(maps.shape[2])


def _find_smallest_input(architecture: str, multiple: int) -> int:
    """Find the smallest side by halving, as a larger image never has fewer cells."""
    none, some = 0, 1
    while _count_cells(architecture, some, multiple) < 1:
        none, some = some, 2 * some
    while some - none > 1:
        middle = (none + some) // 2
        none, some = (none, middle) if _count_cells(architecture, middle, multiple) else (middle, some)
    return some
