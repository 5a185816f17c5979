"""What a network of timm is: found by running it without weights, on the meta device."""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spp_cls.cli.errors import UserError, shorten
from spp_cls.models.timm_models import PREFIX, create_model, find_preprocessing
from spp_cls.models.tracing.geometry import Geometry, Tracer, trace_geometry

# Sides are tried that lie so many units beyond a multiple of 64 pixels, the unit being the multiple that is tried.
_RESTS = ((1, 2), (3, 5), (7, 8), (9, 16), (15, 31), (21, 42))
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


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


@cache
def _create_twin(architecture: str) -> Any:
    """Return a network's twin without weights, whose layers are run for their shapes alone."""
    with torch.device("meta"):
        return create_model(architecture, 3).eval()


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
        raise UserError(f"{refusal}: {shorten(error)}") from error
    size = max(64, -(-find_preprocessing(architecture).input_size // 64) * 64)
    first = _run(twin, size, size + 64)
    if isinstance(first, Exception):
        raise UserError(f"{refusal}: it refuses {size} x {size + 64} pixels ({shorten(first)})")
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
def count_cells(architecture: str, size: int, multiple: int) -> int:
    """Return the cells along a side of the last map, for `size` pixels; 0 where the image is too small."""
    padded = size + -size % multiple
    if padded < 1:
        return 0
    maps = _run(_create_twin(architecture), padded, padded)
    # Dimension 2 is a side of the map in both layouts.
    return 0 if isinstance(maps, Exception) else int(maps.shape[2])


def _find_smallest_input(architecture: str, multiple: int) -> int:
    """Find the smallest side by halving, as a larger image never has fewer cells."""
    none, some = 0, 1
    while count_cells(architecture, some, multiple) < 1:
        none, some = some, 2 * some
    while some - none > 1:
        middle = (none + some) // 2
        none, some = (none, middle) if count_cells(architecture, middle, multiple) else (middle, some)
    return some
