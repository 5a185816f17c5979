"""Signals that ask a run to save and leave."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# A terminal's Ctrl-C; schedulers, containers and spot machines; SLURM before a time limit (sbatch --signal=USR1@120);
# submitit's jobs on SLURM, before a time limit or where others need the machine.
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Notes that the run was asked to stop, for someone who looks between two steps; a second SIGINT leaves at once.

    Processes that are forked meanwhile, which read images, take no notice of these signals.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take the signals over, again if somebody else has meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _ASKING:
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def handler_before(self, stop: signal.Signals) -> Callable[[int, FrameType | None], Any] | None:
        """Return what handles a signal where this is not installed, such as submitit's handler; None for Python's."""
        before = self._before.get(stop)
        return before if callable(before) and before is not signal.default_int_handler else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if number == signal.SIGINT and self.received == signal.SIGINT:
            _tell("left at once; the last checkpoint stands")
            os._exit(128 + number)
        self.received = signal.Signals(number)
        _tell(f"{self.received.name}: saving and leaving after this step")


def _tell(line: str) -> None:
    # Python's own buffers may be in use where the signal came.
    os.write(sys.stderr.fileno(), f"\n{line}\n".encode())
