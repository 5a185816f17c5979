"""Files that are there whole or not at all, and files that one process at a time may change."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Give the path of a new file beside `path` to write to; after the block it takes the place of `path`.

    Its content is on the disk before it gets the name, so that a crash or a loss of power leaves the old file or the
    new one. If the block raises, the new file is removed and the old one stays as it is.

    Raises:
        OSError: if the new file cannot be written or moved, or `path` is no file; its filename is `path`.
    """
    unfinished: Path | None = None
    if path.exists() and not path.is_file():
        # A device, such as /dev/null: the new file would take its place.
        raise OSError(errno.EEXIST, "it is there already and is no file", str(path))
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=path.suffix)
        os.close(handle)
        unfinished = Path(name)
        # mkstemp lets nobody else read its files.
        unfinished.chmod(0o666 & ~_umask())
        yield unfinished
        _synchronise(unfinished)
        os.replace(unfinished, path)
        _synchronise(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if unfinished:
            unfinished.unlink(missing_ok=True)


def lock_file(file: IO[Any], wait: bool = False) -> None:
    """Lock a file that is open for writing, until this process closes it or ends.

    The lock is the process's own (POSIX): workers that it forks do not hold it, and so it is free at once when the
    process is killed. It is lost when the process closes any other descriptor of the same file.

    Raises:
        OSError: if another process holds the lock (EACCES or EAGAIN; with `wait` never), or if the file system has no
            locks.
    """
    fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _umask() -> int:
    # The only way to read it is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
