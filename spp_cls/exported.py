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

from spp_cls.checkpoint import recipe_from_plain, recipe_to_plain
from spp_cls.data.crops import min_side_of
from spp_cls.errors import UserError
from spp_cls.models.net import NetRecipe, SPPNet

# Names of an exported network's input and output.
INPUT, OUTPUT = "images", "logits"

# The entries of an exported file's metadata, each as JSON.
_PREPROCESSING, _CLASS_NAMES, _RECIPE = "preprocessing", "class_names", "net_recipe"
METADATA_KEYS = (_PREPROCESSING, _CLASS_NAMES, _RECIPE)

# All that torch.export.save writes for a network: raw weights, JSON, and the program as JSON.
_PT2_RECORDS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/\w+|archive_format|archive_version|byteorder|version|\.data/.+"
)


@dataclass(frozen=True)
class ExportedNet:
    """An exported file, opened.

    `net` is the network it was made from without its weights, for questions of size and classes. `run` maps
    N x in_chans x H x W float32 images, pixels of 0..255 minus the mean, to N x num_classes logits.
    """

    net: SPPNet
    run: Callable[[Tensor], Tensor]


def preprocessing(net: SPPNet) -> dict[str, Any]:
    """Describe in plain values what turns an image into a network's input."""
    recipe = net.recipe
    crop, min_side = recipe.input_size, min_side_of(recipe.input_size)
    whole = f"the whole image, or its centre {crop} x {crop}"
    return {
        "layout": "N x channels x height x width, float32",
        "channels": "RGB" if recipe.in_chans == 3 else recipe.in_chans,
        "pixel_range": [0, 255],
        "mean": list(recipe.mean),
        "formula": "pixels minus mean",
        "min_side": min_side,
        "crop": crop,
        "interpolation": "bilinear, antialiased",
        "size_rule": f"shorter side to {min_side}, aspect kept; then "
        + (whole if recipe.pooling == "spp" else f"the centre {crop} x {crop}"),
        "smallest_side": net.backbone.smallest_input if recipe.pooling == "spp" else crop,
    }


def metadata(net: SPPNet) -> dict[str, str]:
    """Return what a file says of the network in it: preprocessing, class names and recipe, each as JSON."""
    recipe = recipe_to_plain(net.recipe)
    values = (preprocessing(net), recipe.pop("class_names"), recipe)
    return {key: json.dumps(value) for key, value in zip(METADATA_KEYS, values, strict=True)}


def recipe_of(found: Mapping[str, str]) -> NetRecipe:
    """Read the recipe back from a file's metadata.

    Raises:
        KeyError, TypeError, ValueError: it is none that `metadata` gave.
    """
    return recipe_from_plain({**json.loads(found[_RECIPE]), "class_names": json.loads(found[_CLASS_NAMES])})


def open_exported(path: Path) -> ExportedNet:
    """Open an .onnx or .pt2 file.

    Raises:
        UserError: there is no such file, it is none that python -m spp_cls.export wrote, or onnxruntime is missing.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a checkpoint or an export")
    found, run = _open_onnx(path) if path.suffix == ".onnx" else _open_torch(path)
    try:
        recipe = recipe_of(found)
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(path) from error
    with torch.device("meta"):
        return ExportedNet(SPPNet(recipe), run)


def onnx_module(name: str) -> ModuleType:
    """Import one of the packages for ONNX.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f'ONNX needs {name}; install it with: pip install "spp_cls[export]"') from error


def _not_ours(path: Path) -> UserError:
    return UserError(f"{path} is not an export of spp_cls; give a file that python -m spp_cls.export wrote")


def _open_onnx(path: Path) -> tuple[Mapping[str, str], Callable[[Tensor], Tensor]]:
    runtime = onnx_module("onnxruntime")
    try:
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class but this
        raise _not_ours(path) from error

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return session.get_modelmeta().custom_metadata_map, run


def _open_torch(path: Path) -> tuple[Mapping[str, str], Callable[[Tensor], Tensor]]:
    try:
        _check_pt2(path)
        found = dict.fromkeys(METADATA_KEYS, "")
        program = torch.export.load(path, extra_files=found)
    except (BadZipFile, RuntimeError, AssertionError, KeyError, TypeError, ValueError) as error:
        raise _not_ours(path) from error
    return found, program.module()


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
