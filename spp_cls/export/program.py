"""Runs the program of a .pt2 file without torch.export.load, which evaluates text of the file as Python.

A program is a list of operators, each applied to earlier values and to constants. Here the operators come from a fixed
list, and of the rest of the file only numbers, names and raw weights are read.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from spp_cls.cli.reading import check_archive, parse_json
from spp_cls.export.arguments import DTYPES, check_text, fill, list_names, read_argument, read_result
from spp_cls.export.operators import ASSERTIONS, find_operator

# All that torch.export.save writes for a network: raw weights, JSON, and the program as JSON.
_PARTS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/\w+|archive_format|archive_version|byteorder|version|\.data/.+"
)

# Major version of the program's JSON, as torch 2.15 writes it.
_SCHEMA = 8

# The number of a keyword argument.
_KEYWORD = 2

# What reading a file may raise that torch.export did not write, or that is damaged.
DAMAGE = (BadZipFile, OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)

# What may go wrong where a program does not fit its input or itself; operators raise them too.
RUN_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, ArithmeticError, MemoryError)


class _Step(NamedTuple):
    """An operator, its arguments, the names of its results (one, a list of them, or none), and what is used up then."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    results: list[str | list[str] | None]
    used_up: tuple[str, ...]


class Program:
    """The program of a .pt2 file and its weights, on the CPU.

    `extra` are the entries that the writer added, as text.

    Raises:
        DAMAGE: if torch.export did not write the file, it is damaged, or its program needs other operators.
    """

    def __init__(self, path: Path) -> None:
        with ZipFile(path) as archive:
            check_archive(archive)
            root = archive.namelist()[0].partition("/")[0] + "/"
            parts = {name.removeprefix(root): name for name in archive.namelist()}
            self._check_parts(archive, parts)
            self.extra = {
                part.removeprefix("extra/"): archive.read(name).decode()
                for part, name in parts.items()
                if part.startswith("extra/")
            }
            program = parse_json(archive.read(parts["models/model.json"]))
            if program["schema_version"]["major"] != _SCHEMA:
                raise ValueError("another version of the format")
            graph = program["graph_module"]["graph"]
            tensors = _read_tensors(archive, parts, "weights") | _read_tensors(archive, parts, "constants")
        signature = program["graph_module"]["signature"]
        self._values: dict[str, Tensor] = {}
        self._input = ""
        for spec in signature["input_specs"]:
            ((kind, given),) = spec.items()
            name = given["arg"]["as_tensor"]["name"] if kind == "user_input" else given["arg"]["name"]
            if kind == "user_input" and not self._input:
                self._input = check_text(name)
            elif kind in ("parameter", "buffer", "tensor_constant"):
                self._values[check_text(name)] = tensors[given[f"{kind}_name"]]
            else:
                raise ValueError(f"an input of kind {kind}")
        (output,) = signature["output_specs"]
        self._output = check_text(output["user_output"]["arg"]["as_tensor"]["name"])
        self._steps = _read_steps(graph["nodes"], keep={self._output, *self._values})

    @staticmethod
    def _check_parts(archive: ZipFile, parts: Mapping[str, str]) -> None:
        """Refuse an archive with pickles or compiled code in it: this class reads none, but others would."""
        for part in parts:
            if not _PARTS.fullmatch(part):
                raise ValueError(f"unknown part {part}")
        if archive.getinfo(parts["data/sample_inputs/model.pt"]).file_size:
            raise ValueError("pickled sample inputs")

    def __call__(self, images: Tensor) -> Tensor:
        """Run the program.

        Raises:
            RUN_ERRORS: if it does not fit the images or itself.
        """
        values: dict[str, Any] = {**self._values, self._input: images}
        for step in self._steps:
            arguments = [fill(argument, values) for argument in step.arguments]
            found = step.run(*arguments, **{name: fill(option, values) for name, option in step.options.items()})
            results = [found] if len(step.results) == 1 else found
            for name, result in zip(step.results, results, strict=True):
                if isinstance(name, str):
                    values[name] = result
                elif name is not None:
                    values |= zip(name, result, strict=True)
            for name in step.used_up:
                del values[name]
        logits = values[self._output]
        if not isinstance(logits, Tensor):
            raise ValueError("the program returns no tensor")
        return logits


def _read_tensors(archive: ZipFile, parts: Mapping[str, str], kind: str) -> dict[str, Tensor]:
    """Read the raw weights or constants of an archive, by their names in the program."""
    tensors = {}
    contents: dict[str, bytearray] = {}
    for name, entry in parse_json(archive.read(parts[f"data/{kind}/model_{kind}_config.json"]))["config"].items():
        file = entry["path_name"]
        if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", file):
            raise ValueError(f"pickled value {name}")
        meta = entry["tensor_meta"]
        sizes, strides, (offset,) = (
            [_check_int(number["as_int"]) for number in numbers]
            for numbers in (meta["sizes"], meta["strides"], [meta["storage_offset"]])
        )
        dtype = DTYPES[meta["dtype"]]
        if file not in contents:
            contents[file] = bytearray(archive.read(parts[f"data/{kind}/{file}"]))
        content = contents[file]
        values = torch.frombuffer(content, dtype=dtype) if content else torch.zeros(0, dtype=dtype)
        # PyTorch compares sizes and strides with the number of values.
        tensor = values.as_strided(sizes, strides, offset)
        if tensor.numel() > values.numel():
            raise ValueError(f"{name} is larger than its part of the file")
        tensors[name] = tensor
    return tensors


def _check_int(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("a size is no whole number")
    return value


def _read_steps(nodes: list[Any], keep: set[str]) -> list[_Step]:
    """Read the operators of a program; `keep` are the values that outlive their last use."""
    steps: list[_Step] = []
    for node in reversed(nodes):
        target = check_text(node["target"])
        if target in ASSERTIONS:
            continue
        run = find_operator(target)
        arguments: list[Any] = []
        options: dict[str, Any] = {}
        for given in node["inputs"]:
            value = read_argument(given["arg"])
            if given["kind"] == _KEYWORD:
                options[check_text(given["name"])] = value
            else:
                arguments.append(value)
        results = [read_result(result) for result in node["outputs"]]
        used = {*list_names([*arguments, *options.values()])}
        made = {name for result in results for name in ([result] if isinstance(result, str) else result or [])}
        # Read from the end on: a value that is not kept yet is used here for the last time.
        used_up = tuple((used | made) - keep)
        keep |= used
        steps.append(_Step(run, tuple(arguments), options, results, used_up))
    return steps[::-1]
