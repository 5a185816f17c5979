"""Image files, and folders of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError
from spp_cls.cli.reading import check_regular, is_folder
from spp_cls.data.sources.listing import list_class_folders, list_class_images
from spp_cls.data.sources.source import Split
from spp_cls.data.transforms.decode import read_size


@dataclass(frozen=True)
class ImageFiles:
    """Image files below `root`, an ImageSource.

    `names` are one array of bytes, so that a million of them are cheap to pass to worker processes.
    """

    root: Path
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the path of an image below `root`."""
        return os.fsdecode(self.names[index])

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / self.name(index)

    def location(self, index: int) -> str:
        """Return the path of an image, for messages."""
        # Making a Path takes as long as reading the image.
        return os.path.join(self.root, self.name(index)).removeprefix("./")

    def read(self, index: int) -> bytes:
        """Return the bytes of an image.

        Raises:
            UserError: if the file cannot be read.
        """
        path = self.location(index)
        try:
            check_regular(path)
            with open(path, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise UserError(f"cannot read the image {path}: {error.strerror}") from error

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height of an image, from its header.

        Raises:
            UndecodableImageError: if the file is not an image.
            UserError: if the file cannot be read.
        """
        return read_size(self.path(index))


def open_files(paths: Sequence[str | Path]) -> ImageFiles:
    """Open image files that have no classes, by their paths."""
    names = np.array([os.fsencode(path) for path in paths])
    return ImageFiles(Path(), names, np.zeros(len(paths), np.int64), ())


def open_image_folder(root: Path, split: Split) -> ImageFiles:
    """Open root/train/<class>/<image> or root/val/<class>/<image>; classes are numbered in the order of their names.

    Raises:
        UserError: if the folder is not laid out like that, or a class of val is not in train.
    """
    folder = root / split
    if not is_folder(folder):
        raise UserError(f"{root} has no folder {split}; it needs train/<class>/<image> and val/<class>/<image>")
    classes = list_class_folders(folder)
    if split == "train" or not (root / "train").is_dir():
        return open_class_folders(folder, classes, classes)
    class_names = list_class_folders(root / "train")
    unknown = [name for name in classes if name not in class_names]
    if unknown:
        raise UserError(f"class {unknown[0]} is in {folder} but not in {root / 'train'}; remove or rename it")
    return open_class_folders(folder, classes, class_names)


def open_class_folders(folder: Path, classes: Sequence[str], class_names: tuple[str, ...]) -> ImageFiles:
    """Open the images of the folders `classes`, labelled by their place in `class_names`.

    Raises:
        UserError: if a folder has no images.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    names, counts = list_class_images(folder, classes)
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise UserError(f"the class folder {folder / name} has no images; remove it or fill it")
    labels = np.repeat(np.array([numbers[name] for name in classes], np.int64), counts)
    return ImageFiles(folder, names, labels, class_names)
