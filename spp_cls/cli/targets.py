"""Parts that others may replace: a node of the configuration names a class or function as `_target_`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, TypeVar, get_type_hints

from hydra.utils import get_object

from spp_cls.cli.errors import UserError, suggest
from spp_cls.cli.schema import describe_type, has_type

Returned = TypeVar("Returned")

TARGET, PARTIAL = "_target_", "_partial_"


def bind_target(node: Mapping[str, Any], name: str) -> partial[Any]:
    """Return what a node's `_target_` names, with the node's other keys bound to its parameters.

    `name` is the node's key, for messages.

    Raises:
        UserError: if there is no such class or function, or a key is not a parameter of it or has another type.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{name} is a group of keys with {name}.{TARGET}, not {node!r}")
    path = node.get(TARGET)
    if not isinstance(path, str):
        raise UserError(f"{name}.{TARGET} is not set; give the class or function, such as my_module.MyClass")
    target = import_target(path, f"{name}.{TARGET}")
    keys = {key: value for key, value in node.items() if key not in (TARGET, PARTIAL)}
    try:
        parameters = inspect.signature(target).parameters
    except ValueError as error:
        raise UserError(f"{name}.{TARGET}={path} does not list its parameters; wrap it in a function") from error
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = _type_hints(target)
    for key, value in keys.items():
        if key not in parameters and not takes_any:
            raise UserError(
                f"{path} has no parameter {key}; {suggest(key, parameters)} (~{name}.{key} takes the key out; "
                f"start one of your own from {name.partition('.')[0]}=custom)"
            )
        if key in hints and not has_type(value, hints[key]):
            raise UserError(f"{name}.{key} is {describe_type(hints[key])}, not {value!r}")
    return partial(target, **keys)


def _type_hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        # Annotations may name what is imported for type checkers only.
        return {}


def import_target(path: str, name: str) -> Callable[..., Any]:
    """Import a class or function by its dotted path, the value of the key `name`.

    Raises:
        UserError: if it cannot be imported, or is not a class or function.
    """
    try:
        target = get_object(path)
    except Exception as error:  # importing runs the code of the module
        raise UserError(f"{name}={path} cannot be imported: {_last_line(error)}") from error
    if not callable(target):
        raise UserError(f"{name}={path} is not a class or function")
    return target


def call_target(node: Mapping[str, Any], name: str, *arguments: Any) -> Any:
    """Call what a node's `_target_` names with `arguments` and the node's other keys.

    With `_partial_: true` the function itself is returned, the keys bound to its parameters.

    Raises:
        UserError: as bind_target does; or if the call refuses its arguments (TypeError, ValueError).
    """
    target = bind_target(node, name)
    return target if node.get(PARTIAL) else call_bound(target, name, *arguments)


def call_bound(target: partial[Any], name: str, *arguments: Any) -> Any:
    """Call what bind_target returned; TypeError and ValueError are errors of the user.

    Raises:
        UserError: if the call refuses its arguments.
    """
    try:
        return target(*arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {_last_line(error)}") from error


def try_out(action: Callable[[], Returned], name: str) -> Returned:
    """Use a part that the user has chosen for the first time, before a run needs it.

    Raises:
        UserError: if it raises any error.
    """
    try:
        return action()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: {type(error).__name__}: {_last_line(error)}; give other values or another") from error


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def import_plugins(names: Sequence[str]) -> None:
    """Import the modules that register a user's own backbones.

    Raises:
        UserError: if one of them cannot be imported.
    """
    for name in names:
        try:
            import_module(name)
        except Exception as error:  # importing runs the code of the module
            raise UserError(f"plugins: {name} cannot be imported: {_last_line(error)}") from error
