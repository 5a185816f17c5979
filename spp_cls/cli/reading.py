"""Reads what anybody may have written (JSON, YAML, zip archives) within bounds; nothing in it is run or resolved."""

import errno
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import yaml

# Descriptions of networks, runs and data sets are far shorter, ten million class names included.
_MOST_BYTES = 2**28

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def is_file(path: str | Path) -> bool:
    """Return whether there is a regular file, or a link to one; False for a name that no file can have."""
    return stat.S_ISREG(_read_mode(path))


def is_folder(path: str | Path) -> bool:
    """Return whether there is a folder, or a link to one; False for a name that no folder can have."""
    return stat.S_ISDIR(_read_mode(path))


def _read_mode(path: str | Path) -> int:
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
            return 0
        raise
    except ValueError:
        # A null byte, or characters that no name has.
        return 0


def check_regular(path: str | Path) -> None:
    """Refuse what is no regular file before it is opened: a FIFO would wait for a writer, a device has no end.

    Raises:
        OSError: if there is no such file, or it is something else.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}", str(path))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: if it is not JSON, or nested deeper than any of ours.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: if it is not JSON, or longer or nested deeper than any of ours.
        OSError: if it cannot be read.
    """
    return parse_json(_read_text(path))


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain values: no tags, no aliases (which can grow without bound), no interpolations.

    Raises:
        ValueError: if it is not such YAML, or longer or nested deeper than any of ours.
        OSError: if it cannot be read.
    """
    try:
        return yaml.load(_read_text(path), Loader=_PlainLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is not plain YAML: {type(error).__name__}") from error


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("aliases and tags")
        return super().compose_node(parent, index)


def _read_text(path: Path) -> str:
    check_regular(path)
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES} bytes")
    return path.read_text(encoding="utf-8")


def check_archive(archive: zipfile.ZipFile) -> None:
    """Check that a zip archive is one as PyTorch writes them, whose parts cannot be larger than the file.

    Raises:
        ValueError: if a part is compressed, encrypted or named twice, or parts overlap.
    """
    parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1 for part in parts):
        raise ValueError("a part is compressed or encrypted")
    if len({part.filename for part in parts}) < len(parts):
        raise ValueError("two parts have one name")
    if any(part.header_offset < 0 for part in parts):
        raise ValueError("a part begins before the file")
    assert archive.fp is not None
    if sum(part.file_size for part in parts) > archive.fp.seek(0, os.SEEK_END):
        raise ValueError("parts overlap")
