"""Runs train.py and other commands in processes of their own, for which the libraries are imported once.

As a program it reads a request a line, {"folder", "arguments", "output", "errors", "environment", "strikes"}, answers
with the process's number at once and with its status when it has ended. Each of `strikes`, [place, call, signal], lets
the process send itself a signal as it calls a function, `module:name`, for the so-and-so-many-th time.
"""

import importlib
import json
import os
import runpy
import sys
import traceback
from functools import wraps
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parent.parent


def strike(place: str, call: int, number: int) -> None:
    """Have the call of a function that is the `call`-th send this process a signal before it does anything."""
    module, _, name = place.partition(":")
    *owners, function = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, function)
    calls = 0

    @wraps(original)
    def struck(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    setattr(owner, function, struck)


def run(program: str, *arguments: str) -> int:
    """Do as `python program argument ...` or `python -m module argument ...`; return the status."""
    try:
        if program == "-m":
            module, *sys.argv[1:] = arguments
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [program, *arguments]
            runpy.run_path(program, run_name="__main__")
    except SystemExit as leave:
        return int(leave.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def child(request: dict[str, Any]) -> None:
    os.setsid()
    for stream, path in ((1, request["output"]), (2, request["errors"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(request["folder"])
    os.environ |= request["environment"]
    # The same sums in the same order in every run.
    torch.set_num_threads(1)
    for each in request["strikes"]:
        strike(*each)
    status = run(*request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    for script in ("train.py", "eval.py"):
        runpy.run_path(str(REPOSITORY / script))
    print("ready", flush=True)
    for line in sys.stdin:
        if (process := os.fork()) == 0:
            try:
                child(json.loads(line))
            finally:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                os._exit(99)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
