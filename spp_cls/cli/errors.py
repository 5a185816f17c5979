"""How a command ends: with one line on stderr and status 1 for errors of the user, status 2 for all others."""

import errno
import io
import os
import platform
import re
import select
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

Returned = TypeVar("Returned")

# Failures of the machine, not of the program.
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DISK_ERRORS = _FULL_DISK | {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO, errno.ENAMETOOLONG,
    errno.ELOOP,
}  # fmt: skip

# Hydra's variable for whole tracebacks. Processes that a command starts inherit it.
_FULL_ERROR = "HYDRA_FULL_ERROR"

# What torch says where another process of the same run has ended, which says why itself.
_LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "remote process exited")

# What torch says on a CPU and on a GPU.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


class UserError(ValueError):
    """An error that the user can mend; its message says in one line what is wrong and what to do.

    Commands print it without a traceback and exit with status 1. Every other exception is a bug.
    """


class FailedError(Exception):
    """The reason why a command cannot go on, in one line, and the status that it exits with."""

    def __init__(self, reason: str, status: int = 1) -> None:
        super().__init__(reason)
        self.status = status


def end_in_one_line(action: Callable[[], Returned], log_folder: Path | None = None) -> Returned:
    """Run a command; print any error on one line, and exit with status 1, or 2 if it is unexpected.

    The traceback of an unexpected error goes into a file in `log_folder`, if there is that folder, or else in the
    temporary folder. With debug=true, or HYDRA_FULL_ERROR=1 in the environment, the error is raised.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is not text is printed as stderr prints it, with backslashes.
        sys.stdout.reconfigure(errors="backslashreplace")

    def run_and_flush() -> Returned:
        returned = action()
        # What cannot be written is an error of the command, and not of Python's end.
        sys.stdout.flush()
        return returned

    try:
        return catch_errors(run_and_flush, log_folder)
    except FailedError as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(failure.status)


@contextmanager
def end_when_interrupted() -> Iterator[None]:
    """Let Ctrl-C end a command with one line, and the status that a shell gives such an end."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def catch_errors(action: Callable[[], Returned], log_folder: Path | None = None) -> Returned:
    """Run a command.

    Raises:
        FailedError: if it ends in an error; but with debug=true an unexpected error itself.
    """
    try:
        return action()
    except UserError as error:
        raise FailedError(format_error(error)) from error
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            # Such as `head`, which has read enough. Python would try once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            # For a move, filename2 is the destination.
            path = error.filename2 or error.filename or "a file"
            full = error.errno in _FULL_DISK
            verb, advice = ("write", "free some space or choose another folder") if full else ("use", "choose another")
            raise FailedError(f"cannot {verb} {path}: {error.strerror}; {advice}") from error
        if shows_tracebacks():
            raise
        if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
            reason = (
                f"memory ran out ({_summarise(error)}); train with a smaller data.batch_size or more "
                "trainer.accumulate_grad_batches, test with a smaller max_pixels"
            )
            raise FailedError(reason) from error
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST_PROCESS):
            raise FailedError("another process of this command has ended, and says why above or below") from error
        raise FailedError(f"unexpected error: {_summarise(error)}; {_log(error, log_folder)}", status=2) from error


def _is_output_closed() -> bool:
    """Return whether nobody reads what is printed any more; other broken pipes lead to processes that ended."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def shows_tracebacks() -> bool:
    """Return whether unexpected errors end in a traceback: with debug=true or HYDRA_FULL_ERROR=1."""
    return os.environ.get(_FULL_ERROR) == "1"


@contextmanager
def tracebacks(shown: bool) -> Iterator[None]:
    """Show or hide the tracebacks of unexpected errors, here and in processes that are started meanwhile."""
    before = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = str(int(shown))
    try:
        yield
    finally:
        del os.environ[_FULL_ERROR]
        if before is not None:
            os.environ[_FULL_ERROR] = before


@contextmanager
def explain_write_errors(path: str | Path, key: str) -> Iterator[None]:
    """Say in one line why the file `path`, the value of a key, cannot be written.

    Raises:
        UserError: if the block raises an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; choose another file with {key}=PATH"
        ) from error


def check_png(path: str, key: str) -> None:
    """Refuse a name for a picture, the value of a key, that promises another format than PNG.

    Raises:
        UserError: if it does.
    """
    if not path.lower().endswith(".png"):
        raise UserError(f"{key}={path}: the picture is a PNG; give it a name that ends in .png")


def _summarise(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    # An error of a worker process begins with the worker's traceback.
    line = lines[-1] if lines[0].startswith("Caught ") else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
    return line if len(line) <= 200 else f"{line[:197]}..."


def _log(error: Exception, folder: Path | None) -> str:
    """Write the traceback of an error into a file of its own; say where it is."""
    text = f"{shlex.join(sys.argv)}\n{_describe_versions()}\n\n{''.join(traceback.format_exception(error))}"
    # A file that cannot be written is no reason for another traceback.
    for place in (folder, Path(tempfile.gettempdir())):
        if place and place.is_dir():
            try:
                handle, name = tempfile.mkstemp(dir=place, prefix="error-", suffix=".log")
                with open(handle, "w", errors="backslashreplace") as file:
                    file.write(text)
            except OSError:
                continue
            return f"the details are in {name}"
    return "debug=true shows the details"


def _describe_versions() -> str:
    names = ("spp_cls", "torch", "pytorch-lightning", "hydra-core")
    try:
        return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])
    except PackageNotFoundError:
        return f"Python {platform.python_version()}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return what to write instead of an unknown name: the closest known one, or all of them."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def shorten(reason: object, length: int = 160) -> str:
    """Return the first line of a reason, such as an exception's, without what is too long for a message."""
    text = next(iter(str(reason).strip().splitlines()), "").rstrip(".") or type(reason).__name__
    return text if len(text) <= length else f"{text[: length - 3]}..."


def format_error(error: UserError) -> str:
    """Return the message of an error without the traceback that a worker process puts before it."""
    last = str(error).strip().splitlines()[-1]
    return re.sub(r"^([A-Za-z_]\w*\.)+[A-Za-z_]\w*: ", "", last)
