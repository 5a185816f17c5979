"""Exported networks: what an ONNX or a .pt2 file says of itself, and running it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spp_cls.cli.errors import UserError, shorten
from spp_cls.cli.reading import is_file, parse_json
from spp_cls.data.transforms.crops import compute_min_side
from spp_cls.export.program import DAMAGE, RUN_ERRORS, Program
from spp_cls.models.checkpoint import (
    CONFIG_KEY,
    OLD_CONFIG_KEY,
    convert_config_to_dict,
    convert_old_config,
    create_config_from_dict,
)
from spp_cls.models.config import NetConfig
from spp_cls.models.net import SPPNet, create_net

# Names of an exported network's input and output.
INPUT, OUTPUT = "images", "logits"

# The entries of an exported file's metadata, each as JSON.
_PREPROCESSING, _CLASS_NAMES = "preprocessing", "class_names"
METADATA_KEYS = (_PREPROCESSING, _CLASS_NAMES, CONFIG_KEY)

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportedNet:
    """An exported file, opened.

    `net` is the network it was made from without its weights, for questions of size and classes. `run` maps
    N x in_chans x H x W float32 images, (pixels - mean) / std, to N x num_classes logits.
    """

    net: SPPNet
    run: Run


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
        "interpolation": f"{config.interpolation}, antialiased",
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
        KeyError, ValueError: if make_metadata did not make it.
    """
    if OLD_CONFIG_KEY in metadata:
        # Exports of version 0.1 divide their input by the std themselves.
        values = {**convert_old_config(parse_json(metadata[OLD_CONFIG_KEY])), "std": ()}
    else:
        values = parse_json(metadata[CONFIG_KEY])
        if not isinstance(values, dict):
            raise ValueError("its network is not a group of fields")
    return create_config_from_dict({**values, "class_names": parse_json(metadata[_CLASS_NAMES])})


def open_exported(path: Path) -> ExportedNet:
    """Open an .onnx or .pt2 file.

    Raises:
        UserError: if there is no such file, python -m spp_cls.export did not write it, or onnxruntime is missing.
            `run` raises it if the program does not take the images, or returns no logits of the network's classes.
    """
    if not is_file(path):
        raise UserError(f"there is no file {path}; give a checkpoint or an export")
    metadata, run = _open_onnx(path) if path.suffix == ".onnx" else _open_torch(path)
    try:
        config = read_config(metadata)
    except (KeyError, ValueError) as error:
        raise _make_refusal(path, error) from error
    with torch.device("meta"):
        net = create_net(config)

    def run_checked(images: Tensor) -> Tensor:
        try:
            logits = run(images)
        except RUN_ERRORS as error:
            raise _make_refusal(path, error) from error
        if logits.shape != (len(images), config.num_classes) or not logits.isfinite().all():
            raise _make_refusal(path, "its output is not a number for each class")
        return logits

    return ExportedNet(net, run_checked)


def import_for_onnx(name: str) -> ModuleType:
    """Import one of the packages for ONNX.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f'ONNX needs {name}; install it with: pip install "spp_cls[export]"') from error


def _make_refusal(path: Path, reason: object) -> UserError:
    return UserError(
        f"{path} is not an export of spp_cls ({shorten(reason)}); give a file that python -m spp_cls.export wrote"
    )


def _open_onnx(path: Path) -> tuple[Mapping[str, str], Run]:
    runtime, onnx = import_for_onnx("onnxruntime"), import_for_onnx("onnx")
    options = runtime.SessionOptions()
    # Not a second format that it knows, which may hold what has not been looked at.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Its own messages come beside the exceptions.
    options.log_severity_level = 4
    try:
        model = onnx.load(path, load_external_data=False)
        _check_onnx(model)
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's and protobuf's exceptions have no common class but this
        raise _make_refusal(path, error) from error

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
        except Exception as error:  # as above
            raise RuntimeError(str(error)) from error

    return {entry.key: entry.value for entry in model.metadata_props}, run


def _check_onnx(model: Any) -> None:
    """Raise ValueError for what no export of ours has.

    That is weights in other files, operators of other domains (which may read files), functions, and graphs within
    operators, which are branches and loops.
    """
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        raise ValueError("functions, training graphs or sparse weights")
    if {each.domain for each in (*model.opset_import, *graph.node)} - {"", "ai.onnx"}:
        raise ValueError("operators of another domain")
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    if any(attribute.HasField("g") or attribute.graphs or attribute.ref_attr_name for attribute in attributes):
        raise ValueError("graphs within operators")
    tensors = [attribute.t for attribute in attributes if attribute.HasField("t")]
    lists = [tensor for attribute in attributes for tensor in attribute.tensors]
    if any(tensor.data_location or tensor.external_data for tensor in (*graph.initializer, *tensors, *lists)):
        raise ValueError("weights in other files")
    if any(attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in attributes):
        raise ValueError("sparse weights")
    weights = {tensor.name for tensor in graph.initializer}
    if [each.name for each in graph.input if each.name not in weights] != [INPUT]:
        raise ValueError("other inputs")
    if [each.name for each in graph.output] != [OUTPUT]:
        raise ValueError("other outputs")


def _open_torch(path: Path) -> tuple[Mapping[str, str], Run]:
    try:
        program = Program(path)
    except DAMAGE as error:
        raise _make_refusal(path, error) from error
    return program.extra, program
