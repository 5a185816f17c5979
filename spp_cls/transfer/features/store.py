"""Features on the disk: one .npy file a feature, a manifest, and a mark for each image that is finished."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError
from spp_cls.cli.files import replace_atomically
from spp_cls.transfer.features.layers import Feature

MANIFEST = "manifest.json"
_ITEM = np.dtype("<f4")


class FeatureStore:
    """A folder of features of all images of a data set: float32 images x length in `VIEW-SIDE-LAYER.npy`.

    `identity` names what the features are functions of: network, data, version. Rows are written by their place in the
    file, so that several processes may write and memory does not grow; a file beside each .npy has a byte for each
    image, 1 once its row is on the disk.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], images: int) -> None:
        self.folder = Path(folder)
        self.identity = {**identity, "images": images}
        self.images = images
        self._files: dict[Feature, int] = {}
        self._offsets: dict[Feature, int] = {}
        self._waiting: list[int] = []

    def path(self, feature: Feature) -> Path:
        """Return the path of a feature's .npy file."""
        return self.folder / f"{feature.view}-{feature.side}-{feature.layer.replace(':', '_')}.npy"

    def create(self, lengths: Mapping[Feature, int]) -> None:
        """Make the folder, the manifest and the files that are missing.

        Raises:
            UserError: if the folder has features of another network, data set or version, or the disk has no space.
        """
        manifest = self._read_manifest()
        missing = {feature: length for feature, length in lengths.items() if not self._done_path(feature).exists()}
        needed = sum(self.images * (length * _ITEM.itemsize + 1) for length in missing.values())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if needed > free:
                raise UserError(
                    f"the features take {needed / 1e9:,.1f} GB and {self.folder} has {free / 1e9:,.1f} GB left; take "
                    "fewer layers, views or sides, or another disk with features=FOLDER"
                )
            known = manifest.get("features", {}) if manifest else {}
            described = {self.path(each).name: {**each._asdict(), "length": lengths[each]} for each in lengths}
            with replace_atomically(self.folder / MANIFEST) as unfinished:
                unfinished.write_text(json.dumps({**self.identity, "features": {**known, **described}}, indent=2))
            for feature, length in missing.items():
                self._create_file(feature, length)
        except OSError as error:
            raise self._explain(error, self.folder) from error

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        if not path.exists():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder} has files but no {MANIFEST}; give a new folder as features=FOLDER")
            return None
        try:
            manifest: dict[str, Any] = json.loads(path.read_text())
            differing = [name for name in self.identity if manifest.get(name) != self.identity[name]]
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged; remove the folder, or give a new one as features=FOLDER") from error
        if differing:
            name = differing[0]
            raise UserError(
                f"{self.folder} has features of another {name} ({_shorten(manifest.get(name))}, not "
                f"{_shorten(self.identity[name])}); give another folder as features=FOLDER"
            )
        return manifest

    def _create_file(self, feature: Feature, length: int) -> None:
        with self.path(feature).open("wb") as file:
            header = {"descr": _ITEM.str, "fortran_order": False, "shape": (self.images, length)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + self.images * length * _ITEM.itemsize)
        with self._done_path(feature).open("wb") as file:
            file.truncate(self.images)

    def _done_path(self, feature: Feature) -> Path:
        return self.path(feature).with_suffix(".done")

    def list_unfinished(self, features: Sequence[Feature]) -> tuple[list[Feature], NDArray[np.int64]]:
        """Return the features that some image lacks, and the indices of the images that lack one of them.

        Raises:
            UserError: if a file does not have the size that it was made with.
        """
        lacking: dict[Feature, NDArray[np.bool_]] = {}
        for feature in features:
            done = np.fromfile(self._done_path(feature), np.uint8)
            try:
                whole = self.read(feature).shape[0] == len(done) == self.images
            except (ValueError, OSError):
                whole = False
            if not whole:
                raise UserError(f"{self.path(feature)} is damaged; remove {self.folder} and start again")
            if not done.all():
                lacking[feature] = done == 0
        if not lacking:
            return [], np.array([], np.int64)
        return list(lacking), np.flatnonzero(np.any(list(lacking.values()), axis=0))

    def open_for_writing(self, features: Sequence[Feature]) -> None:
        """Open the files of features; call close when all is written."""
        for feature in features:
            with self.path(feature).open("rb") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                self._offsets[feature] = file.tell()
            self._files[feature] = os.open(self.path(feature), os.O_RDWR)

    def write(self, indices: Sequence[int], values: Mapping[Feature, NDArray[np.float32]]) -> None:
        """Write the rows of some images.

        Raises:
            UserError: if the disk is full or fails.
        """
        for feature, rows in values.items():
            for index, row in zip(indices, np.ascontiguousarray(rows, _ITEM), strict=True):
                place = self._offsets[feature] + index * row.nbytes
                try:
                    _write_all(self._files[feature], row.tobytes(), place)
                except OSError as error:
                    raise self._explain(error, self.path(feature)) from error
        self._waiting += indices

    def commit(self) -> None:
        """Bring what was written to the disk, then mark its images as finished.

        Raises:
            UserError: if the disk is full or fails.
        """
        for feature, file in self._files.items():
            try:
                os.fsync(file)
                with self._done_path(feature).open("r+b", buffering=0) as marks:
                    for index in self._waiting:
                        _write_all(marks.fileno(), b"\1", index)
            except OSError as error:
                raise self._explain(error, self.path(feature)) from error
        self._waiting.clear()

    def close(self) -> None:
        """Close the files that were opened for writing."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def read(self, feature: Feature) -> NDArray[np.float32]:
        """Return a feature of all images, images x length, memory-mapped."""
        array: NDArray[np.float32] = np.load(self.path(feature), mmap_mode="r")
        return array

    def _explain(self, error: OSError, path: Path) -> UserError:
        return UserError(
            f"cannot write {path}: {error.strerror}; free some space and start again, which goes on from here, or give "
            "another folder as features=FOLDER"
        )


def _write_all(file: int, data: bytes, place: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], place + written)


def _shorten(value: Any) -> str:
    """Return the beginning of a digest, and other values whole."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
