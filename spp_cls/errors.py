"""The one kind of error that is the caller's to mend, and how a command ends with it: on one line."""

import errno
import re
import sys
from collections.abc import Callable
from typing import TypeVar

Returned = TypeVar("Returned")

# Failures of the machine, not of the program.
_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.EIO,
}  # fmt: skip


class UserError(ValueError):
    """A mistake in what was asked for; its message says in one line what is wrong and what to do.

    The command lines print it without a traceback and exit with status 1. Every other exception is a bug.
    """


class FailedError(Exception):
    """The end of a command by something that its user can mend; the message is one line."""


def one_line(action: Callable[[], Returned]) -> Returned:
    """Run a command; print a mistake of the caller or a failure of the disk on one line, and exit with 1."""
    try:
        return tried(action)
    except FailedError as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(1)


def tried(action: Callable[[], Returned]) -> Returned:
    """Run a part of a command.

    Raises:
        FailedError: a mistake of the caller, or a failure of the disk.
    """
    try:
        return action()
    except UserError as error:
        raise FailedError(error_line(error)) from error
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        # Of a move the second name is where to.
        place = error.filename2 or error.filename or "a file"
        raise FailedError(
            f"cannot write {place}: {error.strerror}; free some space or choose another folder"
        ) from error


def error_line(error: UserError) -> str:
    """Return the message of an error; one from a worker process has a traceback around it, which is left out."""
    last = str(error).strip().splitlines()[-1]
    return re.sub(r"^([A-Za-z_]\w*\.)+[A-Za-z_]\w*: ", "", last)
