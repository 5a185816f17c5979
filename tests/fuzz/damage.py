"""Damage to files: bytes cut, flipped, zeroed and inserted; fields removed, retyped, renamed, nested; code planted."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Random = np.random.Generator

Files = dict[str, bytes]

# Takes the place of a value that is nested too deep for a parser; put_deep turns it into text.
DEEP = "\x00deep\x00"


class Format(NamedTuple):
    """A kind of file.

    `damage` returns the files with one of them damaged. `open` opens them as commands do, in a folder, and returns
    what it found, or raises UserError. What is found is right if it is what `open` finds in the whole files, or
    `is_right` says so, because nothing in the file tells.
    """

    damage: Callable[[Files, Random, str], Files]
    open: Callable[[Path], Any]
    is_right: Callable[[Any], bool] = lambda found: False


class Evil:
    """A pickle of it runs code when it is read."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return eval, (self.code,)


def damage_bytes(data: bytes, random: Random) -> bytes:
    """Cut, flip, zero, insert or repeat bytes; half of the time among the last, where zips have their index."""
    size = max(1, len(data))
    start = size - min(size, 3000) if random.random() < 0.5 else 0
    place = int(random.integers(start, size))
    length = int(random.integers(1, 40))
    found = bytearray(data)
    match int(random.integers(7)):
        case 0:
            del found[place:]
        case 1 | 2:
            for _ in range(int(random.integers(1, 5))):
                where = int(random.integers(start, size))
                found[where : where + 1] = bytes([found[where] ^ 1 << int(random.integers(8))]) if data else b"x"
        case 3:
            found[place : place + length] = bytes(len(found[place : place + length]))
        case 4:
            found[place:place] = random.bytes(length)
        case 5:
            del found[place : place + length]
        case _:
            found[place:place] = found[place : place + length]
    return bytes(found)


def list_values(code: str) -> list[Any]:
    """List values that are seldom right: other types, extremes, nested, text that some reader would run."""
    return [
        None, True, False, 0, 1, -1, 7, 2**31, -(2**63), 10**30, 1.5, -0.5, math.nan, math.inf, "", "x", "x" * 5000,
        "\ud800", [], {}, [[]], [1, "a"], {"a": {}}, DEEP, "../../canary", "/etc/passwd", "a/b", "\x00", code,
        f"${{oc.env:HOME}}{code}", [code], {code: code},
    ]  # fmt: skip


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List the paths to all values in dictionaries and lists."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, each in value.items():
            yield from walk(each, (*path, name))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from walk(each, (*path, number))


def damage_plain(value: Any, random: Random, code: str, extra: list[Any] = []) -> Any:  # noqa: B006
    """Return plain values with one to three of them removed, replaced, nested, renamed or repeated."""
    value = copy_plain(value)
    for _ in range(int(random.integers(1, 4))):
        paths = list(walk(value))
        if not paths:
            return value
        # Short paths are few, and matter as much.
        depth = int(random.choice(sorted({len(path) for path in paths})))
        among = [path for path in paths if len(path) == depth]
        *parents, last = among[int(random.integers(len(among)))]
        holder = value
        for name in parents:
            holder = holder[name]
        pool = [*list_values(code), *extra]
        match int(random.integers(6)):
            case 0:
                del holder[last]
            case 1:
                holder[last] = [[[holder[last]]]]
            case 2 if isinstance(holder, dict):
                holder[str(last) + "_"] = holder.pop(last)
            case 3 if isinstance(holder, list):
                holder.insert(last, holder[last])
            case _:
                holder[last] = pool[int(random.integers(len(pool)))]
    return value


def copy_plain(value: Any) -> Any:
    """Copy dictionaries and lists; tuples become lists."""
    if isinstance(value, dict):
        return {name: copy_plain(each) for name, each in value.items()}
    return [copy_plain(each) for each in value] if isinstance(value, list | tuple) else value


def to_json(value: Any) -> bytes:
    """Write values as JSON, those that are DEEP nested a hundred thousand times."""
    text = json.dumps(value)
    return text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def damage_json(data: bytes, random: Random, code: str) -> bytes:
    """Damage the values of a JSON file, or one time in four its bytes."""
    if random.random() < 0.25:
        return damage_bytes(data, random)
    return to_json(damage_plain(json.loads(data), random, code))
