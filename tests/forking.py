"""Runs train.py and other commands in processes of their own, for which the libraries are imported once.

As a program it reads a request a line, {"folder", "arguments", "output", "errors", "environments", "strikes"}, answers
with the process's number at once and with its status when it has ended. There is a process for each of `environments`;
the answers are about the first, unless another one fails. Each of `strikes`, [place, call, signal], lets
the process send itself a signal as it calls a function, `module:name`, for the so-and-so-many-th time.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

# Seconds for the other processes of a run to end by themselves after one of them failed.
PATIENCE = 5

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


def child(request: dict[str, Any], environment: dict[str, str]) -> None:
    os.setsid()
    for stream, path in ((1, request["output"]), (2, request["errors"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(request["folder"])
    os.environ |= environment
    # Lightning has read it as it was imported.
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", 0))
    # The same sums in the same order in every run.
    torch.set_num_threads(1)
    for each in request["strikes"]:
        strike(*each)
    status = run(*request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_for(processes: list[int]) -> int:
    """Wait for processes to end, and end those that wait for one that failed; return the first status that is not 0."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(processes):
        process, status = os.wait()
        statuses[process] = os.waitstatus_to_exitcode(status)
        if statuses[process] and len(statuses) == 1 < len(processes):
            time.sleep(PATIENCE)
            for other in processes:
                if other not in statuses:
                    # One that has ended meanwhile is still to be waited for, so that its number is nobody else's.
                    os.kill(other, signal.SIGKILL)
    return next((status for status in statuses.values() if status), 0)


def main() -> None:
    for script in ("train.py", "eval.py"):
        runpy.run_path(str(REPOSITORY / script))
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        processes = []
        for environment in request["environments"]:
            if (process := os.fork()) == 0:
                try:
                    child(request, environment)
                finally:
                    sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                    os._exit(99)
            processes.append(process)
        print(processes[0], flush=True)
        print(wait_for(processes), flush=True)


if __name__ == "__main__":
    main()
