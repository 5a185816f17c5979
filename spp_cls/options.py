"""The arguments of commands that need no more than a few keys: key=value, and names of files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spp_cls.errors import UserError


def names_and_options(defaults: Mapping[str, Any], arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split the arguments of a command into plain ones, such as names of files, and key=value ones.

    Raises:
        UserError: as options does; the name of a file that exists is no mistaken key.
    """
    names = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    return names, options(defaults, [argument for argument in arguments if argument not in names])


def words(value: str) -> list[str]:
    """Read a list as Hydra writes it, [a,b], or one word of it."""
    return [word.strip() for word in value.removeprefix("[").removesuffix("]").split(",") if word.strip()]


def options(defaults: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Read key=value arguments of a command that needs no more than a few keys.

    Raises:
        UserError: an argument that is no key=value, or a key that `defaults` lacks.
    """
    given = dict(defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in defaults:
            raise UserError(f"{argument} is none of the keys here; they are {', '.join(f'{k}=' for k in defaults)}")
        given[key] = value
    return given


def required(given: Mapping[str, Any], key: str) -> str:
    """Return what a key was given.

    Raises:
        UserError: it was not.
    """
    if given[key] is None:
        raise UserError(f"{key} is not set; give it as {key}=VALUE")
    return str(given[key])


def whole_number(given: Mapping[str, Any], key: str, most: int = 10_000) -> int:
    """Return a key's value as a number from 1 to `most`.

    Raises:
        UserError: it is none.
    """
    if not str(given[key]).isdecimal() or not 1 <= int(given[key]) <= most:
        raise UserError(f"{key} is a whole number from 1 to {most}, not {given[key]}")
    return int(given[key])
