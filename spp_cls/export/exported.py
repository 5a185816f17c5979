"""Exported networks: what an ONNX or a .pt2 file says of itself, and running it."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor
from torch.export.pt2_archive import PT2ArchiveReader

from spp_cls.cli.errors import UserError
from spp_cls.data.transforms.crops import compute_min_side
from spp_cls.models.checkpoint import (
    CONFIG_KEY,
    OLD_CONFIG_KEY,
    convert_config_to_dict,
    convert_old_config,
    create_config_from_dict,
)
from spp_cls.models.net import NetConfig, SPPNet, create_net

# Names of an exported network's input and output.
INPUT, OUTPUT = "images", "logits"

# The entries of an exported file's metadata, each as JSON.
_PREPROCESSING, _CLASS_NAMES = "preprocessing", "class_names"
METADATA_KEYS = (_PREPROCESSING, _CLASS_NAMES, CONFIG_KEY)

# All that torch.export.save writes for a network: raw weights, JSON, and the program as JSON.
_PT2_RECORDS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/\w+|archive_format|archive_version|byteorder|version|\.data/.+"
)


@dataclass(frozen=True)
class ExportedNet:
    """An exported file, opened.

    `net` is the network it was made from without its weights, for questions of size and classes. `run` maps
    N x in_chans x H x W float32 images, (pixels - mean) / std, to N x num_classes logits.
    """

    net: SPPNet
    run: Callable[[Tensor], Tensor]


def describe_preprocessing(net: SPPNet) -> dict[str, Any]:
    """Describe in plain values what turns an image into a network's input."""
    config = net.config
    side, min_side = config.input_size, compute_min_side(config.input_size)
    part = f"the whole image, or its centre {side} x {side}" if config.takes_any_size else f"the centre {side} x {side}"
    return {
        "layout": "N x channels x height x width, float32",
        "channels": "RGB" if config.in_chans == 3 else config.in_chans,
        "pixel_range": [0, 255],
        "mean": list(config.mean),
        "std": list(config.std),
        "formula": "(pixels - mean) / std",
        "min_side": min_side,
        "crop": side,
        "interpolation": "bilinear, antialiased",
        "size_rule": f"shorter side to {min_side}, aspect kept; then {part}",
        "smallest_side": net.backbone.smallest_input if config.takes_any_size else side,
    }


def make_metadata(net: SPPNet) -> dict[str, str]:
    """Describe a network for its file: preprocessing, class names and configuration, each as JSON."""
    config = convert_config_to_dict(net.config)
    values = (describe_preprocessing(net), config.pop("class_names"), config)
    return {name: json.dumps(value) for name, value in zip(METADATA_KEYS, values, strict=True)}


def read_config(metadata: Mapping[str, str]) -> NetConfig:
    """Read the network's configuration back from a file's metadata.

    Raises:
        KeyError, TypeError, ValueError: if make_metadata did not make it.
    """
    if OLD_CONFIG_KEY in metadata:
        # Exports of version 0.1 divide their input by the std themselves.
        values = {**convert_old_config(json.loads(metadata[OLD_CONFIG_KEY])), "std": ()}
    else:
        values = json.loads(metadata[CONFIG_KEY])
    return create_config_from_dict({**values, "class_names": json.loads(metadata[_CLASS_NAMES])})


def open_exported(path: Path) -> ExportedNet:
    """Open an .onnx or .pt2 file.

    Raises:
        UserError: if there is no such file, python -m spp_cls.export did not write it, or onnxruntime is missing.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a checkpoint or an export")
    metadata, run = _open_onnx(path) if path.suffix == ".onnx" else _open_torch(path)
    try:
        config = read_config(metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise _make_refusal(path) from error
    with torch.device("meta"):
        return ExportedNet(create_net(config), run)


def import_for_onnx(name: str) -> ModuleType:
    """Import one of the packages for ONNX.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f'ONNX needs {name}; install it with: pip install "spp_cls[export]"') from error


def _make_refusal(path: Path) -> UserError:
    return UserError(f"{path} is not an export of spp_cls; give a file that python -m spp_cls.export wrote")


def _open_onnx(path: Path) -> tuple[Mapping[str, str], Callable[[Tensor], Tensor]]:
    runtime = import_for_onnx("onnxruntime")
    try:
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class but this
        raise _make_refusal(path) from error

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return session.get_modelmeta().custom_metadata_map, run


def _open_torch(path: Path) -> tuple[Mapping[str, str], Callable[[Tensor], Tensor]]:
    try:
        _check_pt2(path)
        # PyTorch adds the names that the file has, but not to an empty dictionary.
        metadata = dict.fromkeys(METADATA_KEYS, "")
        program = torch.export.load(path, extra_files=metadata)
    except (BadZipFile, RuntimeError, AssertionError, KeyError, TypeError, ValueError) as error:
        raise _make_refusal(path) from error
    return metadata, program.module()


def _check_pt2(path: Path) -> None:
    """Raise ValueError for an archive with pickles or compiled code in it, which torch.export.load would run.

    It unpickles without a restriction where the archive tells it to, and tries an older layout with other names.
    """
    archive = PT2ArchiveReader(str(path))
    with ZipFile(path) as file:
        names = [name.partition("/")[2] for name in file.namelist()]
    for name in (*names, *archive.get_file_names()):
        if not _PT2_RECORDS.fullmatch(name):
            raise ValueError(f"unknown record {name}")
    if archive.read_bytes("data/sample_inputs/model.pt"):
        raise ValueError("pickled sample inputs")
    for name in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
        for entry in json.loads(archive.read_string(name))["config"].values():
            if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
                raise ValueError(f"pickled value {entry['path_name']}")
