"""Starting a network from the weights of another one."""

from pathlib import Path

from torch import nn

from spp_cls.checkpoint import load_net
from spp_cls.errors import UserError
from spp_cls.models.net import NetRecipe, SPPNet

# Weights mean something only among the layers, and for the scale of input, that they were learned with.
_SAME = ("name", "in_chans", "init")


def init_from(net: SPPNet, path: str | Path) -> str:
    """Copy into a network all layers of another one that fit; return a line on what was and was not loaded.

    `path` is a checkpoint or an exported safetensors folder. The classifier stays new where the classes differ, and a
    layer of another shape too, such as the first fc layer under another pyramid.

    Raises:
        UserError: the file is no network, or one whose layers are others.
    """
    other = load_net(path)
    differences = [
        f"model.{field} is {getattr(net.recipe, field)}, there {getattr(other.recipe, field)}"
        for field in _SAME
        if getattr(net.recipe, field) != getattr(other.recipe, field)
    ]
    if differences:
        raise UserError(f"init_from={path} is another network: {'; '.join(differences)}; set the same")
    loaded: list[str] = []
    new: list[str] = []
    for name, layer in net.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        source = other.get_submodule(name)
        if layer is net.get_classifier() and (difference := _difference_of_classes(net.recipe, other.recipe)):
            new.append(f"{name} ({difference})")
        elif not isinstance(source, type(layer)) or source.weight.shape != layer.weight.shape:
            new.append(f"{name} (another shape)")
        else:
            layer.load_state_dict(source.state_dict())
            loaded.append(name)
    return f"Loaded from {path}: {', '.join(loaded) or 'nothing'}; new: {', '.join(new) or 'nothing'}"


def _difference_of_classes(own: NetRecipe, other: NetRecipe) -> str:
    if own.num_classes != other.num_classes:
        return f"{own.num_classes} classes, there {other.num_classes}"
    if own.class_names and other.class_names and own.class_names != other.class_names:
        return "other classes"
    return ""
