"""Signals that ask a run to save and stop."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# A terminal's Ctrl-C; schedulers, containers and spot machines; SLURM before a time limit (sbatch --signal=USR1@120);
# submitit's jobs on SLURM, before a time limit or when they are preempted.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Preemption:
    """Records a signal that asks the run to stop, in `received`, to be looked at between two steps.

    A second SIGINT ends the process at once. Processes that are forked meanwhile, the workers that read images,
    ignore these signals.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._process = os.getpid()
        self._earlier: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Handle the signals, again if another handler was installed since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            earlier = signal.signal(number, self._record)
            self._earlier.setdefault(number, earlier)

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def find_earlier_handler(self, received: signal.Signals) -> Callable[[int, FrameType | None], Any] | None:
        """Return the handler that a launcher such as submitit installed before; None if there is only Python's."""
        earlier = self._earlier.get(received)
        return earlier if callable(earlier) and earlier is not signal.default_int_handler else None

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if number == signal.SIGINT and self.received == signal.SIGINT:
            _print_safely("stopped at once; the last checkpoint is as it was")
            os._exit(128 + number)
        self.received = signal.Signals(number)
        _print_safely(f"{self.received.name}: saving and stopping after this step")


def _print_safely(line: str) -> None:
    # Python's own buffers may be in use where the signal came.
    os.write(sys.stderr.fileno(), f"\n{line}\n".encode())
