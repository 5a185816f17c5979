"""Arguments and results of a program's operators, as the JSON of a .pt2 file has them."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

# torch._export.serde.schema: the numbers of ScalarType, MemoryFormat and Layout.
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_LAYOUTS = {7: torch.strided}

# The kinds of arguments that are numbers and words; those that are lists of numbers or of names.
_CONSTANTS: dict[str, tuple[type, ...]] = {
    "as_int": (int,), "as_float": (int, float), "as_bool": (bool,), "as_string": (str,),
}  # fmt: skip
_NUMBERED: dict[str, dict[int, Any]] = {
    "as_scalar_type": DTYPES, "as_memory_format": _MEMORY_FORMATS, "as_layout": _LAYOUTS,
}  # fmt: skip
_LISTS = ("as_ints", "as_floats", "as_bools", "as_sym_ints", "as_sym_floats", "as_tensors", "as_optional_tensors")


class Name(NamedTuple):
    """An argument that is the value of this name."""

    name: str


def check_text(value: Any) -> str:
    """Return a name; raise ValueError if it is not text."""
    if not isinstance(value, str):
        raise ValueError("a name is not text")
    return value


def read_argument(given: dict[str, Any]) -> Any:
    """Return a constant, or a value's name, or a list of them."""
    ((kind, value),) = given.items()
    if kind == "as_none":
        return None
    if kind in _CONSTANTS:
        if type(value) not in _CONSTANTS[kind]:
            raise ValueError(f"an argument {kind} of another type")
        return value
    if kind == "as_device":
        # Whatever device the network was on, it runs on the CPU here.
        return "cpu"
    if kind in _NUMBERED:
        return _NUMBERED[kind][value]
    if kind in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        return _read_element(value)
    if kind in _LISTS:
        return [_read_element(element) for element in value]
    raise ValueError(f"an argument of kind {kind}")


def _read_element(element: Any) -> Any:
    """Return a value's name, or a number or truth value, alone or as an element of a list."""
    if isinstance(element, int | float):
        return element
    ((kind, value),) = element.items()
    if kind in ("name", "as_name"):
        return Name(check_text(value))
    if kind == "as_tensor":
        return _read_element(value)
    if kind == "as_none":
        return None
    if kind in ("as_int", "as_float", "as_bool") and isinstance(value, int | float):
        return value
    raise ValueError(f"an argument of kind {kind}")


def read_result(given: dict[str, Any]) -> str | list[str] | None:
    """Return the name of a result, or of each of a list of them; None for one that nothing uses."""
    ((kind, value),) = given.items()
    if kind == "as_none":
        return None
    found = [_read_element(each) for each in (value if kind == "as_tensors" else [value])]
    if not all(isinstance(each, Name) for each in found):
        raise ValueError("a result without a name")
    names = [each.name for each in found]
    return names if kind == "as_tensors" else names[0]


def list_names(arguments: list[Any]) -> Iterator[str]:
    """List the names of values among arguments, and in lists of them."""
    for argument in arguments:
        if isinstance(argument, Name):
            yield argument.name
        elif isinstance(argument, list):
            yield from list_names(argument)


def fill(argument: Any, values: Mapping[str, Any]) -> Any:
    """Replace names by their values."""
    if isinstance(argument, Name):
        return values[argument.name]
    return [fill(each, values) for each in argument] if isinstance(argument, list) else argument
