"""Typed keys: what a key's value may be, and the one line that a user reads when it is not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from spp_cls.cli.errors import UserError

Schema = TypeVar("Schema")


def key(
    default: Any = MISSING,
    *,
    help: str = "",
    words: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    name: str | None = None,
) -> Any:
    """Declare a field of a schema: its default, a line of help, the words it may be and the range of its numbers.

    Without a default it is MISSING, as OmegaConf has it: a value must be given. `name` is the key of the field if it is
    not the field's name: data.root beside a key data.
    """
    limits = {"least": least, "most": most, "above": above, "below": below, "name": name}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return field(default=default, metadata={"help": help, "words": tuple(words), **given})


def get_key(each: Field[Any]) -> str:
    """Return the key of a field."""
    return str(each.metadata.get("name", each.name))


def walk_fields(schema: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """List the keys of a dataclass and of those in it, with dots: each with its field and its type."""
    hints = get_type_hints(schema)
    for each in fields(schema):
        name, hint = f"{prefix}{get_key(each)}", hints[each.name]
        if is_dataclass(hint):
            yield from walk_fields(hint, f"{name}.")
        else:
            yield name, each, hint


def check_fields(values: Any, prefix: str = "") -> None:
    """Check each field of a dataclass against its type and range, nested dataclasses too.

    Raises:
        UserError: if a value has another type or lies outside its range; `prefix` stands before the field's name.
    """
    hints = get_type_hints(type(values))
    for each in fields(values):
        value = getattr(values, each.name)
        if is_dataclass(value):
            check_fields(value, f"{prefix}{get_key(each)}.")
        else:
            _check_field(each, hints[each.name], value, prefix)


def _check_field(each: Field[Any], hint: Any, value: Any, prefix: str) -> None:
    if not has_type(value, hint) or not _in_range(value, each.metadata):
        raise UserError(f"{prefix}{get_key(each)} is {describe_field(each, hint)}, not {_show(value)}")


def create_from_plain(schema: type[Schema], values: Any, name: str = "") -> Schema:
    """Build a dataclass from the plain values of a file, lists and dictionaries of dataclasses in it too.

    What the schema does not name is left out: a later version may have written it.

    Raises:
        UserError: if a field is missing, or a value has another type or lies outside its range.
    """
    created = _convert(schema, values, name)
    assert isinstance(created, schema)
    return created


def _convert(hint: Any, value: Any, name: str) -> Any:
    """Turn a plain value into what an annotation asks for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise UserError(f"{name or 'the whole'} is not a group of fields")
        hints, prefix = get_type_hints(hint), f"{name}." if name else ""
        given = {
            each.name: _convert(hints[each.name], value[get_key(each)], f"{prefix}{get_key(each)}")
            for each in fields(hint)
            if get_key(each) in value
        }
        for each in fields(hint):
            if each.name in given:
                _check_field(each, hints[each.name], given[each.name], prefix)
            elif each.default == MISSING:
                raise UserError(f"{prefix}{get_key(each)} is missing")
        return hint(**given)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, f"{name}[{number}]") for number, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UserError(f"{name} has a name that is not text")
        return {key: _convert(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    return value


def describe_field(each: Field[Any], hint: Any) -> str:
    """Describe what a field may be: "a whole number from 0", "spp or none"."""
    limits = [
        f"{word} {each.metadata[name]}"
        for name, word in (("least", "from"), ("above", "above"), ("most", "to"), ("below", "below"))
        if name in each.metadata
    ]
    kinds = [
        " ".join([_describe(option), *(limits if option not in (bool, str, NoneType, Any) else [])])
        for option in list_types(hint)
        if not (option is str and each.metadata.get("words"))
    ]
    if hint is Any and limits:
        kinds = [f"a value whose numbers are {' '.join(limits)}"]
    return " or ".join([*kinds, *each.metadata.get("words", ())])


def describe_type(hint: Any) -> str:
    """Describe what a value of an annotation may be."""
    return " or ".join(map(_describe, list_types(hint)))


def has_type(value: Any, hint: Any) -> bool:
    """Return whether a value has the type of an annotation; every value has one that is not understood here."""
    return any(_is_of(value, option) for option in list_types(hint))


def list_types(hint: Any) -> tuple[Any, ...]:
    """List the types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


# What stands for types that YAML cannot write.
_WRITTEN: dict[Any, tuple[type, ...]] = {tuple: (tuple, list), Path: (Path, str)}


def _is_of(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any or (not isinstance(origin or hint, type) and origin is not Literal):
        return True
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(hint))
    if origin in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and all(has_type(item, get_args(hint)[0]) for item in value)
    if origin is not None:
        return isinstance(value, origin)
    if hint in (int, float):
        # NaN and the infinities are not sizes, rates or counts.
        is_number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return is_number and abs(value) < float("inf")
    return isinstance(value, _WRITTEN.get(hint, hint))


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (tuple, list, Sequence):
        return f"a list of {_describe(arguments[0]).removeprefix('a ')}s"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return names.get(hint, "any value" if hint is Any else getattr(hint, "__name__", str(hint)))


def _in_range(value: Any, limits: Mapping[str, Any]) -> bool:
    if isinstance(value, list | tuple):
        return all(_in_range(item, limits) for item in value)
    if isinstance(value, str):
        return not limits.get("words") or value in limits["words"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return (
        limits.get("least", value) <= value <= limits.get("most", value)
        and ("above" not in limits or value > limits["above"])
        and ("below" not in limits or value < limits["below"])
    )


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Nested without end, or a number of thousands of digits; only files have such values.
        return f"a {type(value).__name__} that is too large"
    return text if len(text) <= 80 else f"{text[:77]}..."
