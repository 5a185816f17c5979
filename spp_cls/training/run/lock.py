"""The lock of a run folder: one run at a time, and none that has ended, however it ended."""

import errno
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

from spp_cls.cli.errors import UserError
from spp_cls.cli.files import lock_file

_log = logging.getLogger(__name__)

# The most that a refused run waits for the owner's name, which its message is better with.
_SECONDS_TO_WRITE = 2


class RunLock:
    """Keeps other runs out of a folder; the first process of a run holds it for all of them.

    The system gives it back when that process ends, SIGKILL included.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Take the lock, unless this object has it already; return whether it was taken now.

        On a file system without locks there is a warning, and the run goes on without one.

        Raises:
            UserError: if another run holds the lock.
            OSError: if its file cannot be written.
        """
        if self._file:
            return False
        path = self.folder / ".lock"
        # Not cut to nothing before the lock is held: it says who holds it.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", errors="replace")
        try:
            lock_file(file)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                with file:
                    owner = _read_owner(file)
                raise UserError(
                    f"another run is training in {self.folder}{f' ({owner})' if owner else ''}; wait for its end, or "
                    "choose another name=..."
                ) from error
            _log.warning("%s cannot be locked (%s); start no other run in this folder", self.folder, error.strerror)
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock back, if this object has it."""
        if self._file:
            self._file.close()
            self._file = None


def _read_owner(file: IO[str]) -> str:
    """Return what the owner of the lock wrote; it does so just after it has taken the lock."""
    deadline = time.monotonic() + _SECONDS_TO_WRITE
    while not (owner := file.read(200).strip()) and time.monotonic() < deadline:
        time.sleep(0.01)
        file.seek(0)
    return owner
