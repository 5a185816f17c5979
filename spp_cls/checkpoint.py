"""A network and its recipe in a file, and back."""

import json
import pickle
import warnings
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spp_cls.errors import UserError
from spp_cls.models.net import NetRecipe, SPPNet

RECIPE_KEY = "net_recipe"

# A training module keeps its network under this name, so its weights carry it as a prefix.
NET_PREFIX = "net."

# What a folder holds that python -m spp_cls.export wrote, by the names that timm looks for.
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def recipe_to_plain(recipe: NetRecipe) -> dict[str, Any]:
    """Turn a recipe into the plain values that a checkpoint carries."""
    return asdict(recipe)


def recipe_from_plain(plain: dict[str, Any]) -> NetRecipe:
    """Turn the plain values that a file carries, from JSON too, back into a recipe.

    Raises:
        UserError: they have fields that this version does not know.
    """
    unknown = plain.keys() - {field.name for field in fields(NetRecipe)}
    if unknown:
        raise UserError(f"the file's recipe has unknown fields ({', '.join(sorted(unknown))}); update spp_cls")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return NetRecipe(**values)


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
        with warnings.catch_warnings():
            # Of a pickle that is none of torch's, which is refused just after.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
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
    weights = {
        key.removeprefix(NET_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(NET_PREFIX)
    }
    return _net_with_weights(recipe_from_plain(checkpoint[RECIPE_KEY]), weights)


def net_from_folder(folder: Path) -> SPPNet:
    """Rebuild the network of a folder with config.json and model.safetensors, in evaluation mode.

    Raises:
        UserError: the folder lacks one of the two, or they are none that python -m spp_cls.export wrote.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"there is no {name} in {folder}; give a checkpoint, or a folder that spp_cls.export wrote")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        architecture, options = config["architecture"], config["model_args"]
        weights = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder} is not an export of spp_cls; give a folder that python -m spp_cls.export wrote"
        ) from error
    name = architecture.removesuffix("_spp")
    pooling = "none" if name == architecture else "spp"
    return _net_with_weights(recipe_from_plain({"name": name, "pooling": pooling, **options}), weights)


def _net_with_weights(recipe: NetRecipe, weights: dict[str, Tensor]) -> SPPNet:
    net = SPPNet(recipe)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the file's weights do not fit its recipe, {recipe.name}") from error
    return net.eval()


def training_sizes(checkpoint: dict[str, Any]) -> str:
    """Return the sizes that a checkpoint's network was trained on, as they stand in the configuration."""
    sizes = checkpoint.get("datamodule_hyper_parameters", {}).get("sizes", "unknown")
    return sizes if isinstance(sizes, str) else " ".join(map(str, sizes))


def load_net(path: str | Path) -> SPPNet:
    """Rebuild a network from a checkpoint or an exported safetensors folder alone, on the CPU, in evaluation mode.

    Raises:
        UserError: there is no such file, or it is none of this package.
    """
    path = Path(path)
    if path.name == WEIGHTS_FILE:
        path = path.parent
    return net_from_folder(path) if path.is_dir() else net_from_checkpoint(load_checkpoint(path))
