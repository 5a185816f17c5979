"""Checkpoints that are there whole or not at all."""

import errno
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the earlier one, reads it back, and only then puts it in the earlier one's place.

    Raises:
        OSError: it cannot be written or read back, with the path; the earlier checkpoint is as it was.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint that `weights_only` loads."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        # torch's own writer hides the system's error; a buffer lets it through.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            with part.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            _read_back(part)
            os.replace(part, path)
            _sync_folder(path.parent)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error


def _read_back(path: Path) -> None:
    """Compare the bytes with their check sums, and see that they are plain data."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise OSError(errno.EIO, f"it cannot be read back ({error})") from error
    if damaged:
        raise OSError(errno.EIO, f"it cannot be read back ({damaged} is damaged)")


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
