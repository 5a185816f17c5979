"""Errors of the user, and how a command ends with one: one line on stderr, status 1."""

import errno
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TypeVar

Returned = TypeVar("Returned")

# Failures of the machine, not of the program.
_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.EIO,
}  # fmt: skip


class UserError(ValueError):
    """An error that the user can mend; its message says in one line what is wrong and what to do.

    Commands print it without a traceback and exit with status 1. Every other exception is a bug.
    """


class FailedError(Exception):
    """The reason why a command cannot go on, in one line."""


def end_in_one_line(action: Callable[[], Returned]) -> Returned:
    """Run a command; print a user error or a failure of the disk on one line, and exit with status 1."""
    try:
        return catch_user_errors(action)
    except FailedError as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(1)


def catch_user_errors(action: Callable[[], Returned]) -> Returned:
    """Run a command.

    Raises:
        FailedError: if it ends in a user error or a failure of the disk.
    """
    try:
        return action()
    except UserError as error:
        raise FailedError(format_error(error)) from error
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        # For a move, filename2 is the destination.
        path = error.filename2 or error.filename or "a file"
        raise FailedError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error


def suggest(name: str, known: Iterable[str]) -> str:
    """Return what to write instead of an unknown name: the closest known one, or all of them."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def format_error(error: UserError) -> str:
    """Return the message of an error without the traceback that a worker process puts before it."""
    last = str(error).strip().splitlines()[-1]
    return re.sub(r"^([A-Za-z_]\w*\.)+[A-Za-z_]\w*: ", "", last)
