"""Fine-tuning: a network that starts from the weights of another, and parts of it that stay as they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spp_cls.cli.errors import UserError, suggest
from spp_cls.cli.schema import has_type
from spp_cls.models.checkpoint import load_net
from spp_cls.models.config import NetConfig
from spp_cls.models.net import SPPNet

# Weights are of use only in the layers, and at the scale of the input, that they were learned with.
_SAME = ("name", "width", "in_chans", "std")

# Of more layers of the backbone only the number is told.
_MOST_NAMES = 12


@torch.no_grad()
def init_from(net: SPPNet, path: str | Path) -> str:
    """Copy the weights of all layers that fit from another network; return a line that says which.

    `path` is a checkpoint or an exported safetensors folder. The running statistics of norms go with their layers. A
    layer of another shape stays new, and so do the first fc layer if the network there pools other bins, and the
    classifier if the classes differ. Where the pyramids have the same levels in another order, the weights are put in
    that order.

    Raises:
        UserError: if there is no network at `path`, or its name, width, input channels or std differ.
    """
    other = load_net(path)
    differences = [
        f"model.{field} is {getattr(net.config, field)}, but {getattr(other.config, field)} there"
        for field in _SAME
        if _get_identity(net.config, field) != _get_identity(other.config, field)
    ]
    if differences:
        raise UserError(f"init_from={path} is another network: {'; '.join(differences)}; set the same values")
    bins = _match_bins(net, other)
    layers_there = dict(other.named_modules())
    loaded: list[str] = []
    new: list[str] = []
    # The layer that the bins go to.
    first_fc = next((layer for layer in net.head.modules() if isinstance(layer, nn.Linear)), None)
    for name, layer in net.named_modules():
        values = _get_values(layer)
        if not values:
            continue
        sources = _get_values(other.get_submodule(name)) if name in layers_there else {}
        if layer is net.get_classifier() and (difference := _compare_classes(net.config, other.config)):
            new.append(f"{name} ({difference})")
        elif _get_shapes(values) != _get_shapes(sources):
            new.append(f"{name} (another shape)")
        elif layer is first_fc and bins is None:
            new.append(f"{name} (other bins)")
        else:
            for key, value in values.items():
                value.copy_(sources[key][:, bins] if layer is first_fc and key == "weight" else sources[key])
            loaded.append(name)
    return f"Loaded from {path}: {_list_names(loaded)}; new: {_list_names(new)}"


def _get_values(layer: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a layer itself, those that checkpoints have."""
    buffers = {key: value for key, value in layer._buffers.items() if key not in layer._non_persistent_buffers_set}
    return {key: value for key, value in {**layer._parameters, **buffers}.items() if value is not None}


def _get_shapes(values: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in values.items()}


def _list_names(names: list[str]) -> str:
    """List the names of layers; of many in the backbone, their number."""
    inside = [name for name in names if name.startswith("backbone.")]
    shown = [f"{len(inside)} layers of backbone"] if len(inside) > _MOST_NAMES else inside
    return ", ".join([*shown, *(name for name in names if name not in inside)]) or "nothing"


def _get_identity(config: NetConfig, field: str) -> Any:
    """Return the value of a field; of the name of a network of timm, not which weights it once started from."""
    value = getattr(config, field)
    return value.partition(".")[0] if field == "name" and config.is_from_timm else value


def freeze(net: SPPNet, names: str | Sequence[str] | None) -> str | None:
    """Take parts of a network out of training, such as `backbone`; return a line that says how much.

    Their parameters get no gradient, and they stay in evaluation mode: norms keep their statistics.

    Raises:
        UserError: if the network has no part of a name.
    """
    chosen: Any = [names] if isinstance(names, str) else names or []
    if not has_type(chosen, list[str]):
        raise UserError(f"freeze is a name or a list of names, such as backbone, not {names!r}")
    parts = dict(net.named_modules())
    for name in chosen:
        if name not in parts or not name:
            raise UserError(f"freeze: the network has no part {name!r}; {suggest(name, [*filter(None, parts)])}")
        parts[name].requires_grad_(False)
    # The parts go into evaluation mode.
    net.train(net.training)
    total = sum(parameter.numel() for parameter in net.parameters())
    frozen = sum(parameter.numel() for parameter in net.parameters() if not parameter.requires_grad)
    return f"Frozen: {', '.join(chosen)}; {frozen:,} of {total:,} parameters" if chosen else None


def _match_bins(net: SPPNet, other: SPPNet) -> Tensor | None:
    """Map each value that a network pools to its index in another network; None if their bins differ."""
    levels, other_levels = net.pool.levels, other.pool.levels
    if type(net.pool) is not type(other.pool) or sorted(levels) != sorted(other_levels):
        return None
    blocks: dict[int, list[Tensor]] = {n: [] for n in levels}
    sizes = [other.num_features * n * n for n in other_levels]
    for n, block in zip(other_levels, torch.arange(sum(sizes)).split(sizes), strict=True):
        blocks[n].append(block)
    return torch.cat([blocks[n].pop(0) for n in levels])


def _compare_classes(own: NetConfig, other: NetConfig) -> str:
    """Return how the classes of two networks differ; nothing if they do not."""
    if own.num_classes != other.num_classes:
        return f"{own.num_classes} classes, {other.num_classes} there"
    if own.class_names and other.class_names and own.class_names != other.class_names:
        return "other classes"
    return ""
