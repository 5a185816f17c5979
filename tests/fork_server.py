"""Runs train.py again and again in processes of their own, for which the libraries are imported once.

Reads a request a line, {"folder", "output", "overrides", "strikes"}, answers with the process's number at once and
with its status when it has ended. Each of `strikes`, [place, call, signal], lets the run send itself a signal as it
calls a function, `module:name`, for the so-and-so-many-th time.
"""

import importlib
import json
import os
import runpy
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from spp_cls.cli.command import run

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


def child(request: dict[str, Any], task: Any) -> None:
    os.setsid()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["folder"])
    # The same sums in the same order in every run.
    torch.set_num_threads(1)
    sys.argv = [str(REPOSITORY / "train.py"), *request["overrides"]]
    for each in request["strikes"]:
        strike(*each)
    status = 0
    try:
        run(task, REPOSITORY / "conf", "train")
    except SystemExit as leave:
        status = int(leave.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    task = runpy.run_path(str(REPOSITORY / "train.py"))["train"]
    print("ready", flush=True)
    for line in sys.stdin:
        if (process := os.fork()) == 0:
            try:
                child(json.loads(line), task)
            finally:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                os._exit(99)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
