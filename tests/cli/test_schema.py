"""Typed values and the arguments of the small commands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from spp_cls import UserError
from spp_cls.cli.arguments import parse_arguments
from spp_cls.cli.files import replace_atomically
from spp_cls.cli.schema import check_fields, has_type, key
from spp_cls.cli.targets import bind_target, call_target


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, True),
        (True, int, False),
        (3.0, int, False),
        (3, float, True),
        (True, float, False),
        (float("nan"), float, False),
        (float("inf"), float, False),
        ("a", str, True),
        (None, str | None, True),
        (None, str, False),
        ((1, 2), tuple[int, ...], True),
        ([1, 2], tuple[int, ...], True),
        ((1, "a"), tuple[int, ...], False),
        ("ab", tuple[str, ...], False),
        ("spp", Literal["spp", "none"], True),
        ("max", Literal["spp", "none"], False),
        (1, Literal[True], False),
        ({}, dict[str, Any], True),
        ([], dict[str, Any], False),
        (object(), Any, True),
        # As YAML can write them.
        ([1, 2], tuple, True),
        ("ab", tuple, False),
        ("a/b", Path, True),
        (3, Path, False),
    ],
)
def test_types(value: object, hint: Any, expected: bool) -> None:
    assert has_type(value, hint) is expected


@dataclass(frozen=True)
class Inner:
    root: str = key(help="A folder.")
    count: int = key(3, least=1, most=5, help="How many.")


@dataclass(frozen=True)
class Outer:
    data: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Keys:
    root: str = key(name="data.root", help="A folder.")
    count: int = key(3, name="data.count", least=1, most=5, help="How many.")
    rate: float = key(0.5, above=0, below=1, help="A rate.")
    sides: tuple[int, ...] = key((1, 2), least=1, help="Sides.")
    form: Literal["table", "json"] = key("table", help="What is printed.")
    name: str | None = key(None, help="A name.")
    workers: int | str = key("auto", least=0, words=("auto",), help="Workers.")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": 0.0}, "rate is a number above 0 below 1, not 0.0"),
        ({"rate": 1}, "rate is a number above 0 below 1, not 1"),
        ({"sides": (1, 0)}, "sides is a list of whole numbers from 1, not (1, 0)"),
        ({"form": "xml"}, "form is table or json, not 'xml'"),
        ({"name": 3}, "name is text or null, not 3"),
        ({"workers": "all"}, "workers is a whole number from 0 or auto, not 'all'"),
        ({"workers": -1}, "workers is a whole number from 0 or auto, not -1"),
        ({"count": 6}, "data.count is a whole number from 1 to 5, not 6"),
        ({"name": "x" * 5, "rate": "y" * 200}, "rate is a number above 0 below 1, not '" + 76 * "y" + "..."),
    ],
)
def test_ranges(changed: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_fields(Keys(**{"root": "x", **changed}))
    assert str(caught.value) == message


def test_fields_of_dataclasses_in_a_dataclass_are_checked() -> None:
    with pytest.raises(UserError, match=r"^data\.count is a whole number from 1 to 5, not 6$"):
        check_fields(Outer(Inner("x", 6)))


def parse(*arguments: str) -> tuple[list[str], Keys]:
    return parse_arguments(Keys, arguments, "python -m x NAME", "python -m x a")


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, options = parse(
        "b", "data.root=/x=y", "data.count=2", "rate=1e-1", "sides=[3,4]", "name=7", "workers=2", "a"
    )
    assert names == ["b", "a"]
    assert options == Keys("/x=y", 2, 0.1, (3, 4), "table", "7", 2)
    assert parse("data.root=a", "sides=3", "name=null")[1] == Keys("a", sides=(3,))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rate=2").write_text("")
    assert parse("data.root=a", "rate=2")[0] == ["rate=2"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rat=1", "there is no key rat; did you mean rate?"),
        ("x=1", "there is no key x; there are data.root, data.count, rate, sides, form, name, workers"),
        ("data.count=9", "data.count is a whole number from 1 to 5, not 9"),
        ("rate=", "rate is a number above 0 below 1, not None"),
        ("rate=a: b: c", "rate=a: b: c is not a value; write text with special signs in quotes"),
        ("rate=${rate}", "rate is a number above 0 below 1, not '${rate}'"),
    ],
)
def test_arguments_that_are_refused(argument: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse("data.root=a", argument)
    assert str(caught.value) == message


def test_a_key_that_must_be_given() -> None:
    with pytest.raises(UserError, match=r"data\.root is not set; give it as data\.root=VALUE"):
        parse("rate=0.5")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse("--help")
    printed = capsys.readouterr().out
    assert left.value.code == 0
    assert printed.startswith("python -m x NAME\n")
    for part in ("data.count", "3", "How many.", "a whole number from 1 to 5", "Example: python -m x a"):
        assert part in printed


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replace_atomically(path) as unfinished:
            unfinished.write_text("half of the ne")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    with replace_atomically(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
    (tmp_path / "b").touch()
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode
    with pytest.raises(OSError, match="No such file") as caught, replace_atomically(tmp_path / "none/a.txt"):
        pass
    assert caught.value.filename is not None


def scale(value: float, factor: float = 2.0, *, shift: int = 0) -> float:
    """Stand for a part of a user's own."""
    if factor < 0:
        raise ValueError("factor is negative")
    return value * factor + shift


HERE = f"{__name__}.scale"


def test_targets() -> None:
    assert call_target({"_target_": HERE, "factor": 3, "shift": 1}, "part", 2.0) == 7
    assert bind_target({"_target_": HERE}, "part")(4.0) == 8


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, r"part\._target_ is not set"),
        ({"_target_": 3}, r"part\._target_ is not set"),
        ({"_target_": "no.such"}, r"part\._target_=no\.such cannot be imported: .*'no'"),
        ({"_target_": f"{__name__}.HERE"}, "is not a class or function"),
        ({"_target_": HERE, "factr": 1}, r"has no parameter factr; did you mean factor\?"),
        ({"_target_": HERE, "factor": "two"}, r"part\.factor is a number, not 'two'"),
        ({"_target_": HERE, "factor": -1.0}, "part: factor is negative"),
    ],
)
def test_targets_that_are_refused(node: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call_target(node, "part", 1.0)
    assert "\n" not in str(caught.value)
