"""A network and its recipe in a file, and back."""

import pickle
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from spp_cls.errors import UserError
from spp_cls.models.net import NetRecipe, SPPNet

RECIPE_KEY = "net_recipe"

# A training module keeps its network under this name, so its weights carry it as a prefix.
NET_PREFIX = "net."


def recipe_to_plain(recipe: NetRecipe) -> dict[str, Any]:
    """Turn a recipe into the plain values that a checkpoint carries."""
    return asdict(recipe)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint as plain data.

    Raises:
        UserError: there is no such file, or it is no checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; give the path of a .ckpt file")
    refusal = f"{path} is not a checkpoint of spp_cls; give a .ckpt file that train.py wrote"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        UnicodeDecodeError,
    ) as error:
        raise UserError(refusal) from error
    if not isinstance(checkpoint, dict) or RECIPE_KEY not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(refusal)
    return checkpoint


def net_from_checkpoint(checkpoint: dict[str, Any]) -> SPPNet:
    """Rebuild the network of a checkpoint that load_checkpoint read, in evaluation mode.

    Raises:
        UserError: the recipe has fields that this version does not know, or the weights do not fit it.
    """
    plain = checkpoint[RECIPE_KEY]
    unknown = plain.keys() - {field.name for field in fields(NetRecipe)}
    if unknown:
        raise UserError(f"the checkpoint's recipe has unknown fields ({', '.join(sorted(unknown))}); update spp_cls")
    net = SPPNet(NetRecipe(**plain))
    weights = {
        key.removeprefix(NET_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(NET_PREFIX)
    }
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the checkpoint's weights do not fit its recipe, {plain['name']}") from error
    return net.eval()


def training_sizes(checkpoint: dict[str, Any]) -> str:
    """Return the sizes that a checkpoint's network was trained on, as they stand in the configuration."""
    sizes = checkpoint.get("datamodule_hyper_parameters", {}).get("sizes", "unknown")
    return sizes if isinstance(sizes, str) else " ".join(map(str, sizes))


def load_net(path: str | Path) -> SPPNet:
    """Rebuild a network from the file alone, on the CPU, in evaluation mode.

    Raises:
        UserError: there is no such file, or it is no checkpoint of this package.
    """
    return net_from_checkpoint(load_checkpoint(path))
