"""The arguments of the small commands: names of files, and key=value of a typed schema."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_origin

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spp_cls.cli.errors import UserError, end_in_one_line, end_when_interrupted, shows_tracebacks, suggest, tracebacks
from spp_cls.cli.schema import check_fields, describe_field, describe_type, get_key, list_types, walk_fields
from spp_cls.cli.terminal import format_table

Options = TypeVar("Options")


@dataclass(frozen=True)
class NoOptions:
    """The keys of a command that has none of its own."""


# The key of every command, which run_tool takes out of the arguments.
_DEBUG = "debug"


def run_tool(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> None:
    """Run a command with its arguments, any error in one line; debug=true shows an unexpected one with its traceback.

    It exits with status 1, or 2 if the error is unexpected.
    """
    given = [argument for argument in arguments if argument.startswith(f"{_DEBUG}=")]
    rest = [argument for argument in arguments if argument not in given]

    def check_and_run() -> None:
        if not set(given) <= {f"{_DEBUG}=true", f"{_DEBUG}=false"}:
            raise UserError(f"{_DEBUG} is true or false, not {given[-1].partition('=')[2]!r}")
        main(rest)

    with end_when_interrupted(), tracebacks(given[-1] == f"{_DEBUG}=true" if given else shows_tracebacks()):
        end_in_one_line(check_and_run)


def parse_arguments(
    schema: type[Options], arguments: Sequence[str], usage: str, example: str
) -> tuple[list[str], Options]:
    """Split the arguments of a command into names of files, and key=value of the dataclass `schema`.

    --help prints `usage`, the keys with their defaults, and `example`, and ends the command. `key(name=...)` names the
    key of a field, such as data.root. A field without a default must be given.

    Raises:
        UserError: if a key is unknown, missing, or has a value of another type or range.
    """
    if any(argument in ("--help", "-h") for argument in arguments):
        print(_help(schema, usage, example))
        sys.exit(0)
    names: list[str] = []
    given: list[str] = []
    for argument in arguments:
        # A file whose name has a = in it is not a key.
        (names if "=" not in argument or os.path.exists(argument) else given).append(argument)
    known = {name: hint for name, _, hint in walk_fields(schema)}
    values: dict[str, Any] = {}
    for argument in given:
        name = argument.partition("=")[0]
        if name not in known:
            raise UserError(f"there is no key {name}; {suggest(name, known)}")
        values[name] = _read_value(argument, known[name])
    options = _build(schema, values)
    check_fields(options)
    return names, options


def parse_keys(schema: type[Options], arguments: Sequence[str], usage: str, example: str) -> Options:
    """Parse the arguments of a command that takes no names of files, as parse_arguments does.

    Raises:
        UserError: as parse_arguments does; or if an argument is not key=value.
    """
    names, options = parse_arguments(schema, arguments, usage, example)
    if names:
        raise UserError(f"{names[0]} is not key=value; --help lists the keys")
    return options


def _read_value(argument: str, hint: Any) -> Any:
    """Read the value of key=value as YAML; what is to be text stays as it was typed."""
    text = argument.partition("=")[2]
    types = list_types(hint)
    if text == "null" and type(None) in types:
        return None
    if str in types and not {int, float} & set(types):
        return text
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{argument} is not a value; write text with special signs in quotes") from error
    value = tree["value"]
    takes_list = any(get_origin(each) is tuple for each in types)
    return [value] if takes_list and not isinstance(value, list) else value


def _build(schema: Any, given: dict[str, Any]) -> Any:
    values: dict[str, Any] = {}
    for each in fields(schema):
        name = get_key(each)
        if name in given:
            values[each.name] = tuple(given[name]) if isinstance(given[name], list) else given[name]
        elif each.default == MISSING:
            raise UserError(f"{name} is not set; give it as {name}=VALUE")
    return schema(**values)


def _help(schema: Any, usage: str, example: str) -> str:
    rows = [
        (
            name,
            "" if each.default == MISSING else _as_yaml(each.default),
            each.metadata.get("help", ""),
            describe_field(each, hint),
        )
        for name, each, hint in walk_fields(schema)
    ]
    rows.append((_DEBUG, "false", "show an unexpected error with its traceback", describe_type(bool)))
    return f"{usage}\n\n{format_table(('key', 'default', 'meaning', 'value'), rows)}\n\nExample: {example}"


def _as_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_as_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
