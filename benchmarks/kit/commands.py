"""Runs the commands of the kit for GPUs: each in a process of its own, with a time limit and a log."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

REPOSITORY = Path(__file__).resolve().parents[2]

# What a training needs to save before it leaves.
GRACE_SECONDS = 30

# Set by a signal: all commands end, and none starts.
stop = threading.Event()


class Process(Protocol):
    """A process that was started."""

    pid: int

    def poll(self) -> int | None:
        """Return the status of the process, or None while it runs."""


class ForkedProcess:
    """A script in a copy of this process, which has imported the libraries: at toy size that takes most of the time.

    Not for a GPU, which a copy of a process that asked for it cannot use.
    """

    def __init__(self, script: Sequence[str], log: int, environment: Mapping[str, str]) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_run_here, args=(script, log, environment))
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the status of the process, or None while it runs."""
        return self._process.exitcode


def _run_here(command: Sequence[str], log: int, environment: Mapping[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(log, number)
        setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
    os.chdir(REPOSITORY)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = list(command)
    sys.path[0] = str((REPOSITORY / command[0]).parent)
    runpy.run_path(str(REPOSITORY / command[0]), run_name="__main__")


def run_commands(
    commands: Sequence[tuple[Sequence[str], Path]],
    at_once: int,
    deadline: float,
    environment: Mapping[str, str],
    *,
    fork: bool,
) -> list[dict[str, Any]]:
    """Run commands, so many at once, until they end or are out of time, and say how each went.

    What a command prints is added to the log beside it.
    """
    found: list[dict[str, Any]] = [
        {"command": " ".join(command), "log": str(log), "seconds": 0.0, "status": "cut off"}
        for command, log in commands
    ]
    waiting = list(range(len(commands)))
    running: dict[int, tuple[Process, float]] = {}
    while (waiting or running) and time.monotonic() < deadline and not stop.is_set():
        while waiting and len(running) < at_once:
            number = waiting.pop(0)
            running[number] = _start(*commands[number], environment, fork), time.monotonic()
        for number, (process, start) in list(running.items()):
            status = process.poll()
            if status is not None:
                seconds = round(time.monotonic() - start, 1)
                found[number] |= {"status": "failed" if status else "passed", "seconds": seconds, "exit": int(status)}
                del running[number]
        time.sleep(0.1)
    _end([process for process, _ in running.values()])
    for number, (_, start) in running.items():
        found[number]["seconds"] = round(time.monotonic() - start, 1)
    return found


def _start(command: Sequence[str], log: Path, environment: Mapping[str, str], fork: bool) -> Process:
    with log.open("a") as file:
        file.write(f"$ python {' '.join(command)}\n")
        file.flush()
        if fork and command[0].endswith(".py"):
            return ForkedProcess(command, file.fileno(), environment)
        return subprocess.Popen(
            [sys.executable, *command], cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True, env=os.environ | environment,
        )  # fmt: skip


def _end(processes: Sequence[Process]) -> None:
    """Ask processes to stop, then end them and all that they started."""
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    patience = time.monotonic() + GRACE_SECONDS
    while any(process.poll() is None for process in processes) and time.monotonic() < patience:
        time.sleep(0.1)
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        while process.poll() is None:
            time.sleep(0.1)
