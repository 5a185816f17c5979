"""A network and its configuration in a file, and back."""

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spp_cls.cli.errors import UserError
from spp_cls.models.net import NetConfig, SPPNet, create_net

CONFIG_KEY = "net_config"

# A training module keeps its network under this name, so its weights carry it as a prefix.
NET_PREFIX = "net."

# What a folder written by python -m spp_cls.export holds, by the names that timm looks for.
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# Version 0.1 kept the configuration under this key, had zf5_tiny as a network and divided by this std for kaiming.
OLD_CONFIG_KEY = "net_recipe"
_OLD_STD = 57.6


def convert_config_to_dict(config: NetConfig) -> dict[str, Any]:
    """Turn a configuration into the plain values that a checkpoint carries."""
    return asdict(config)


def create_config_from_dict(values: Mapping[str, Any]) -> NetConfig:
    """Turn the plain values that a file carries, from JSON too, back into a configuration.

    Raises:
        UserError: if this version does not know a field, or a value cannot be.
    """
    unknown = values.keys() - {field.name for field in fields(NetConfig)}
    if unknown:
        raise UserError(f"the file's network has unknown fields ({', '.join(sorted(unknown))}); update spp_cls")
    return NetConfig(**values)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint as plain data.

    Raises:
        UserError: if there is no such file, or it is not a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; give the path of a .ckpt file")
    refusal = f"{path} is not a checkpoint of spp_cls; give a .ckpt file written by train.py"
    try:
        with warnings.catch_warnings():
            # About pickles that torch.save did not write, which are refused just below.
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
    if not isinstance(checkpoint, dict):
        raise UserError(refusal)
    if OLD_CONFIG_KEY in checkpoint:
        checkpoint[CONFIG_KEY] = convert_old_config(checkpoint.pop(OLD_CONFIG_KEY))
    if CONFIG_KEY not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(refusal)
    return checkpoint


def convert_old_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that version 0.1 wrote in the terms of this version."""
    if values.get("name") == "zf5_tiny":
        values |= {"name": "zf5", "width": 0.25}
    if values.get("init") == "kaiming":
        values["std"] = (_OLD_STD,) * values.get("in_chans", 3)
    return values


def create_net_from_checkpoint(checkpoint: dict[str, Any]) -> SPPNet:
    """Rebuild the network of a checkpoint that load_checkpoint read, in evaluation mode.

    Raises:
        UserError: if the configuration has fields that this version does not know, or the weights do not fit it.
    """
    weights = {
        key.removeprefix(NET_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(NET_PREFIX)
    }
    return _create_net_with_weights(create_config_from_dict(checkpoint[CONFIG_KEY]), weights)


def create_net_from_folder(folder: Path) -> SPPNet:
    """Rebuild the network of a folder with config.json and model.safetensors, in evaluation mode.

    Raises:
        UserError: if one of the two is missing, or python -m spp_cls.export did not write them.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"there is no {name} in {folder}; give a checkpoint, or a folder that spp_cls.export wrote")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        architecture, options = config["architecture"], config["model_args"]
        name = architecture.removesuffix("_spp")
        pooling = "none" if name == architecture else "spp"
        values = {"name": name, "pooling": pooling, **options}
        weights = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder} is not an export of spp_cls; give a folder that python -m spp_cls.export wrote"
        ) from error
    # Version 0.1 wrote no std.
    return _create_net_with_weights(
        create_config_from_dict(values if "std" in values else convert_old_config(values)), weights
    )


def _create_net_with_weights(config: NetConfig, weights: dict[str, Tensor]) -> SPPNet:
    net = create_net(config)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the file's weights do not fit its configuration, {config.name}") from error
    return net.eval()


def describe_training_sizes(checkpoint: dict[str, Any]) -> str:
    """Return the sizes that a checkpoint's network was trained on, as they stand in the configuration."""
    parameters = checkpoint.get("datamodule_hyper_parameters", {})
    sizes, shape = parameters.get("sizes", "unknown"), parameters.get("shape", "crop")
    text = sizes if isinstance(sizes, str) else " ".join(map(str, sizes))
    return text if shape == "crop" else f"{text} {shape}"


def describe_seed(checkpoint: dict[str, Any]) -> str:
    """Return the seed of a checkpoint's training; empty if it does not say."""
    return str(checkpoint.get("datamodule_hyper_parameters", {}).get("seed", ""))


def load_net(path: str | Path) -> SPPNet:
    """Rebuild a network from a checkpoint or an exported safetensors folder alone, on the CPU, in evaluation mode.

    Raises:
        UserError: if there is no such file, or it is not of this package.
    """
    path = Path(path)
    if path.name == WEIGHTS_FILE:
        path = path.parent
    return create_net_from_folder(path) if path.is_dir() else create_net_from_checkpoint(load_checkpoint(path))
