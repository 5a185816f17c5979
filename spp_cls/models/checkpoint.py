"""A network and its configuration in a file, and back."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spp_cls.cli.errors import UserError, shorten
from spp_cls.cli.reading import check_archive, is_file, is_folder, read_json
from spp_cls.cli.schema import create_from_plain, key
from spp_cls.models.config import NetConfig
from spp_cls.models.net import SPPNet, create_net

CONFIG_KEY = "net_config"

# A training module keeps its network under this name, so its weights carry it as a prefix.
NET_PREFIX = "net."

# What a folder written by python -m spp_cls.export holds, by the names that timm looks for.
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# Version 0.1 kept the configuration under this key, had zf5_tiny as a network and divided by this std for kaiming.
OLD_CONFIG_KEY = "net_recipe"
_OLD_STD = 57.6

# What a damaged or crafted file makes zipfile, torch.load and the checks of its contents raise.
_DAMAGE = (
    zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, IndexError,
    AttributeError, AssertionError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class _Data:
    """The data module's arguments in a checkpoint."""

    sizes: str | tuple[int, ...] = key("unknown", least=1)
    shape: str = key("crop")
    seed: int | None = key(None, least=0)


@dataclass(frozen=True)
class _Counts:
    ready: int | None = key(None, least=0, most=2**40)


@dataclass(frozen=True)
class _Progress:
    current: _Counts = key(_Counts())


@dataclass(frozen=True)
class _FitLoop:
    epoch_progress: _Progress = key(_Progress())


@dataclass(frozen=True)
class _Loops:
    fit_loop: _FitLoop = key(_FitLoop())


@dataclass(frozen=True)
class _Training:
    """What a checkpoint says of its training, as far as it is read here."""

    epoch: int | None = key(None, least=0, most=2**40)
    global_step: int | None = key(None, least=0, most=2**60)
    data: _Data = key(_Data(), name="datamodule_hyper_parameters")
    loops: _Loops = key(_Loops())


@dataclass(frozen=True)
class _Exported:
    """What is read of an exported folder's config.json, beside the fields of NetConfig in model_args."""

    architecture: str = key()
    model_args: dict[str, Any] = key()


def convert_config_to_dict(config: NetConfig) -> dict[str, Any]:
    """Turn a configuration into the plain values that a checkpoint carries."""
    return asdict(config)


def create_config_from_dict(values: Any) -> NetConfig:
    """Turn the plain values that a file carries, from JSON too, back into a configuration.

    Raises:
        UserError: if this version does not know a field, or a value cannot be.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise UserError("the file's network is not a group of fields")
    unknown = values.keys() - {field.name for field in fields(NetConfig)}
    if unknown:
        raise UserError(f"the file's network has unknown fields ({', '.join(sorted(unknown))}); update spp_cls")
    return NetConfig(**values)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint as plain data.

    Its network, its weights and what this package reads of the rest have the right types.

    Raises:
        UserError: if there is no such file, or it is not a checkpoint of this package.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(f"there is no checkpoint {path}; give the path of a .ckpt file")
    try:
        with warnings.catch_warnings():
            # About pickles that torch.save did not write, which are refused just below.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            with zipfile.ZipFile(path) as archive:
                check_archive(archive)
                # PyTorch does not compare the weights with their check sums.
                if archive.testzip():
                    raise ValueError("it is damaged")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError("it is not a dictionary")
        if OLD_CONFIG_KEY in checkpoint:
            checkpoint[CONFIG_KEY] = convert_old_config(checkpoint.pop(OLD_CONFIG_KEY))
        _check_weights(checkpoint["state_dict"], path)
        create_config_from_dict(checkpoint[CONFIG_KEY])
        create_from_plain(_Training, checkpoint)
    except _DAMAGE as error:
        # PyTorch's own message names a way to run the file's code.
        reason = "it holds more than plain data" if isinstance(error, pickle.UnpicklingError) else shorten(error)
        raise UserError(
            f"{path} is not a checkpoint of spp_cls ({reason}); give a .ckpt file written by train.py"
        ) from error
    return checkpoint


def _check_weights(weights: Any, path: Path) -> None:
    """Raise ValueError if something is no tensor of weights, or claims more memory than the file has."""
    if not isinstance(weights, dict):
        raise ValueError("its weights are no dictionary")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError("its weights are not tensors by name")
        # A stride of zero makes one number a tensor of any size.
        if value.layout != torch.strided or value.device.type != "cpu" or value.nbytes > path.stat().st_size:
            raise ValueError(f"{name} is not a tensor of the file's own numbers")


def convert_old_config(values: Any) -> dict[str, Any]:
    """Return the configuration that version 0.1 wrote in the terms of this version.

    Raises:
        UserError: as create_config_from_dict does.
    """
    if isinstance(values, Mapping) and values.get("name") == "zf5_tiny":
        values = {**values, "name": "zf5", "width": 0.25}
    config = create_config_from_dict(values)
    if config.init == "kaiming":
        config = replace(config, std=(_OLD_STD,) * config.in_chans)
    return convert_config_to_dict(config)


def create_net_from_checkpoint(checkpoint: dict[str, Any]) -> SPPNet:
    """Rebuild the network of a checkpoint that load_checkpoint read, in evaluation mode.

    Raises:
        UserError: if no backbone has its name, or the weights do not fit it.
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
        if not is_file(folder / name):
            raise UserError(f"there is no {name} in {folder}; give a checkpoint, or a folder that spp_cls.export wrote")
    try:
        found = create_from_plain(_Exported, read_json(folder / CONFIG_FILE))
        name = found.architecture.removesuffix("_spp")
        pooling = "none" if name == found.architecture else "spp"
        values = {"name": name, "pooling": pooling, **found.model_args}
        # Version 0.1 wrote no std.
        config = create_config_from_dict(values if "std" in values else convert_old_config(values))
        weights = load_file(folder / WEIGHTS_FILE)
        _check_weights(weights, folder / WEIGHTS_FILE)
    except (SafetensorError, *_DAMAGE) as error:
        raise UserError(
            f"{folder} is not an export of spp_cls ({shorten(error)}); "
            "give a folder that python -m spp_cls.export wrote"
        ) from error
    return _create_net_with_weights(config, weights)


def _create_net_with_weights(config: NetConfig, weights: dict[str, Tensor]) -> SPPNet:
    # Shapes first: a configuration that its weights do not fit may ask for more memory than there is.
    with torch.device("meta"):
        expected = create_net(config).state_dict()
    if expected.keys() != weights.keys() or any(
        (value.shape, value.is_floating_point()) != (weights[name].shape, weights[name].is_floating_point())
        for name, value in expected.items()
    ):
        raise UserError(f"the file's weights do not fit its configuration, {config.name}")
    if not all(value.isfinite().all() for value in weights.values()):
        raise UserError("a weight of the file is not a finite number; give another checkpoint")
    net = create_net(config)
    net.load_state_dict(weights)
    return net.eval()


def describe_training_sizes(checkpoint: dict[str, Any]) -> str:
    """Return the sizes that a checkpoint's network was trained on, as they stand in the configuration."""
    data = create_from_plain(_Training, checkpoint).data
    text = data.sizes if isinstance(data.sizes, str) else " ".join(map(str, data.sizes))
    return text if data.shape == "crop" else f"{text} {data.shape}"


def count_epochs(checkpoint: dict[str, Any]) -> int:
    """Return the number of epochs that a checkpoint was trained for.

    Raises:
        UserError: if it does not say.
    """
    training = create_from_plain(_Training, checkpoint)
    if training.epoch is None:
        raise UserError("the checkpoint does not say its epoch; give a .ckpt file written by train.py")
    # Of a checkpoint that was saved after the last epoch, Lightning counts one more.
    begun = training.loops.fit_loop.epoch_progress.current.ready
    return training.epoch + 1 if begun is None else begun


def describe_seed(checkpoint: dict[str, Any]) -> str:
    """Return the seed of a checkpoint's training; empty if it does not say."""
    seed = create_from_plain(_Training, checkpoint).data.seed
    return "" if seed is None else str(seed)


def load_net(path: str | Path) -> SPPNet:
    """Rebuild a network from a checkpoint or an exported safetensors folder alone, on the CPU, in evaluation mode.

    Raises:
        UserError: if there is no such file, or it is not of this package.
    """
    path = Path(path)
    if path.name == WEIGHTS_FILE:
        path = path.parent
    return create_net_from_folder(path) if is_folder(path) else create_net_from_checkpoint(load_checkpoint(path))
