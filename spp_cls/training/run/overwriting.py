"""How new results take the place of old ones in a run folder: all of them, at the new run's first checkpoint."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from spp_cls.cli.errors import UserError
from spp_cls.cli.files import replace_atomically

# The files of a run that overwrites another, until it has written its first checkpoint.
_FIRST = ".first-"
_LAST = "last.ckpt"


class Overwriting:
    """Old results in a run folder, which go only when the new run's first checkpoint is on the disk.

    Until then the old files keep their names and the new ones have others. From then on the new run is the one in the
    folder: the old files are removed and the new ones get their names. A run that is killed anywhere in between leaves
    notes, by which the next start completes the change, or takes it back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._notes = folder / ".overwriting.json"
        self._first = folder / f"{_FIRST}{_LAST}"

    @property
    def is_pending(self) -> bool:
        """Whether a run began to overwrite the results and has no checkpoint yet."""
        return self._notes.exists() and not self._first.exists()

    @property
    def is_unfinished(self) -> bool:
        """Whether a run has its first checkpoint, but not all files have their names yet."""
        return self._first.exists()

    def begin(self, results: Sequence[Path], logs: Sequence[Path]) -> None:
        """Note the old files, before the new run writes any; `logs` are the files of the folder's loggers."""
        old = self._list_old() if self.is_pending else [path for path in (*results, *logs) if path.exists()]
        self._remove_new(old, logs)
        if old:
            with replace_atomically(self._notes) as unfinished:
                unfinished.write_text(json.dumps({"old": [str(path.relative_to(self.folder)) for path in old]}))

    def find_place(self, path: Path) -> Path:
        """Return where a new file is to be written: at `path`, unless old results are there still."""
        return path.with_name(f"{_FIRST}{path.name}") if self.is_pending else path

    def finish(self) -> None:
        """Complete the change, if there is a first checkpoint; without one nothing happens."""
        if not self._first.exists():
            return
        for path in self._list_old():
            if path != self.folder / _LAST:
                path.unlink(missing_ok=True)
        # From here on there are no old files to remove but the checkpoint, which the last line replaces.
        self._notes.unlink(missing_ok=True)
        for path in self._list_first():
            if path != self._first:
                os.replace(path, path.with_name(path.name.removeprefix(_FIRST)))
        os.replace(self._first, self.folder / _LAST)

    def take_back(self, logs: Sequence[Path]) -> None:
        """Remove what a run wrote that has no checkpoint."""
        if self.is_pending:
            self._remove_new(self._list_old(), logs)
            self._notes.unlink()

    def _remove_new(self, old: Collection[Path], logs: Sequence[Path]) -> None:
        for path in (*self._list_first(), *(path for path in logs if path not in old)):
            path.unlink(missing_ok=True)

    def _list_old(self) -> list[Path]:
        if not self._notes.exists():
            return []
        try:
            names = json.loads(self._notes.read_text())["old"]
            paths = [self.folder / name for name in names]
            if any(".." in path.parts or not path.is_relative_to(self.folder) for path in paths):
                raise ValueError("a file outside the folder")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self._notes} is damaged ({type(error).__name__}); remove it, if the results in {self.folder} are "
                "those of one run"
            ) from error
        return paths

    def _list_first(self) -> list[Path]:
        # Folders below, but that of the metrics, may be those of other runs.
        return sorted([*self.folder.glob(f"{_FIRST}*"), *self.folder.glob(f"csv/{_FIRST}*")])
