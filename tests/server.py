"""The other side of tests/forking.py: a process that has imported the libraries, and forks one for each command."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.conftest import REPOSITORY, Result

Strike = tuple[str, int, int]


def number_processes(number: int) -> list[dict[str, str]]:
    """Return the variables from which Lightning knows the processes of a run, and where they meet."""
    if number == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(number)}
    return [common | {"NODE_RANK": "0", "LOCAL_RANK": str(rank)} for rank in range(number)]


class Server:
    """Starts commands one after the other; several servers, several at a time."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forking"],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._read() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def start(
        self,
        folder: Path,
        *arguments: str,
        output: Path,
        errors: Path | None = None,
        environment: Mapping[str, str] | None = None,
        processes: int = 1,
        strikes: Sequence[Strike] = (),
        after: float | None = None,
        number: int = 9,
    ) -> int:
        """Run `python argument ...` in a folder to its end, or until a signal is sent after some seconds.

        Return the status. A script such as train.py is the repository's. Several `processes` are those of one run, as
        Lightning starts them: rank 0 starts no others then.
        """
        environments = [dict(environment or {}) | ranks for ranks in number_processes(processes)]
        program = str(REPOSITORY / arguments[0]) if arguments[0].endswith(".py") else arguments[0]
        request = {
            "folder": str(folder), "output": str(output), "errors": str(errors or output), "strikes": strikes,
            "arguments": [program, *arguments[1:]], "environments": environments,
        }  # fmt: skip
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        process = int(self._read())
        if after is not None:
            time.sleep(after)
            # Workers go with it, as when a machine goes away; it may have ended.
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(process, number)
        return int(self._read())

    def run(
        self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, processes: int = 1
    ) -> Result:
        """Run a command to its end; return its status and what it printed."""
        paths = output, errors = folder / ".stdout", folder / ".stderr"
        for path in paths:
            path.unlink(missing_ok=True)
        status = self.start(
            folder, *arguments, output=output, errors=errors, environment=environment, processes=processes
        )
        printed = Result(arguments, status, output.read_text(), errors.read_text())
        for path in paths:
            path.unlink()
        return printed
