"""Where bytes and labels come from: image folders, ImageNet as it is shipped, and packed files."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from spp_cls.data.decode import Data, read_size
from spp_cls.data.demo import draw_demo
from spp_cls.data.listing import class_images, images_in
from spp_cls.data.packed import PackedImages
from spp_cls.errors import UserError

Split = Literal["train", "val"]

_KAGGLE_IMAGES = "ILSVRC/Data/CLS-LOC"
_DEVKITS = ("ILSVRC2012_devkit_t12/data", "ILSVRC/devkit/data", "devkit/data")


class ImageSource(Protocol):
    """A split of a data set: encoded images, and the number of each one's class in `class_names`."""

    @property
    def root(self) -> Path:
        """Folder of the data set or of the split."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Number of each image's class."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Name of an image within the data set."""

    def place(self, index: int) -> str:
        """Say where an image lies, for messages."""

    def read(self, index: int) -> Data:
        """Return the bytes of an image."""

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files below `root`, an ImageSource.

    Names are kept as one array of bytes, so that a million of them are cheap to hand to worker processes.
    """

    root: Path
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Path of an image below `root`."""
        return os.fsdecode(self.names[index])

    def path(self, index: int) -> Path:
        """Path of an image."""
        return self.root / self.name(index)

    def place(self, index: int) -> str:
        """Path of an image, for messages."""
        # A Path each image would take as long as reading it.
        return os.path.join(self.root, self.name(index)).removeprefix("./")

    def read(self, index: int) -> bytes:
        """Return the bytes of an image.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.place(index)
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise UserError(f"cannot read the image {path}: {error.strerror}") from error

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image, from its header.

        Raises:
            UndecodableImageError: the header is that of no image.
            UserError: the file cannot be read.
        """
        return read_size(self.path(index))


KINDS = ("demo", "imagefolder", "imagenet", "packed")


def open_source(kind: str, root: str | Path, split: Split) -> ImageSource:
    """List the images of a split of a data set of some kind: demo, imagefolder, imagenet or packed.

    Raises:
        UserError: the folder is missing or not laid out as its kind says, or a class of val is not in train.
    """
    if kind not in KINDS:
        raise UserError(f"there is no kind of data {kind!r}; choose {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    root = Path(root)
    if kind == "demo":
        draw_demo(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; set data.root to the data set's folder")
    if kind == "packed":
        return PackedImages(root, split)
    return _imagenet(root, split) if kind == "imagenet" else _image_folder(root, split)


def _image_folder(root: Path, split: Split) -> ImageFiles:
    """root/train/<class>/<image> and root/val/<class>/<image>; classes are numbered in the order of their names."""
    folder = root / split
    if not folder.is_dir():
        raise UserError(f"{root} has no folder {split}; it needs train/<class>/<image> and val/<class>/<image>")
    classes = _class_folders(folder)
    if split == "val" and (root / "train").is_dir():
        known = _class_folders(root / "train")
        strangers = [name for name in classes if name not in known]
        if strangers:
            raise UserError(f"class {strangers[0]} is in {folder} but not in {root / 'train'}; remove or rename it")
        return _from_class_folders(folder, classes, known)
    return _from_class_folders(folder, classes, classes)


def _class_folders(folder: Path) -> tuple[str, ...]:
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"{folder} has no class folders; it needs one folder of images for each class")
    return tuple(classes)


def _from_class_folders(folder: Path, classes: Sequence[str], class_names: tuple[str, ...]) -> ImageFiles:
    numbers = {name: number for number, name in enumerate(class_names)}
    names, counts = class_images(folder, classes)
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise UserError(f"the class folder {folder / name} has no images; remove it or fill it")
    labels = np.repeat(np.array([numbers[name] for name in classes], np.int64), counts)
    return ImageFiles(folder, names, labels, class_names)


def _imagenet(root: Path, split: Split) -> ImageFiles:
    """ImageNet as Kaggle ships it (ILSVRC/Data/CLS-LOC), or its train and flat val folders beside the devkit."""
    images = root / _KAGGLE_IMAGES if (root / _KAGGLE_IMAGES).is_dir() else root
    folder = images / split
    if not folder.is_dir():
        raise UserError(f"{root} has neither {_KAGGLE_IMAGES}/{split} nor {split}; set data.root to ImageNet's folder")
    if split == "train":
        classes = _class_folders(folder)
        return _from_class_folders(folder, classes, classes)
    if any(entry.is_dir() for entry in os.scandir(folder)):
        return _image_folder(images, "val")
    names = images_in(folder)
    class_of, known = _val_classes(root, names)
    class_names = _class_folders(images / "train") if (images / "train").is_dir() else known
    numbers = {name: number for number, name in enumerate(class_names)}
    unlabelled = [name for name in names if class_of.get(name) not in numbers]
    if unlabelled:
        raise UserError(
            f"{len(unlabelled)} images of {folder} have no class among the {len(class_names)} known, "
            f"{unlabelled[0]} first; the list of labels does not belong to these images"
        )
    labels = np.array([numbers[class_of[name]] for name in names], np.int64)
    return ImageFiles(folder, np.array([os.fsencode(name) for name in names]), labels, class_names)


def _val_classes(root: Path, names: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Class (WordNet id) of each validation image by file name, and all classes in order."""
    solution = root / "LOC_val_solution.csv"
    if solution.is_file():
        with solution.open(newline="") as file:
            class_of = {f"{row['ImageId']}.JPEG": row["PredictionString"].split()[0] for row in csv.DictReader(file)}
        return class_of, tuple(sorted(set(class_of.values())))
    for devkit in (root / name for name in _DEVKITS):
        truth = sorted(devkit.glob("ILSVRC*_validation_ground_truth.txt"))
        if truth:
            classes = _devkit_classes(devkit)
            ids = [int(line) for line in truth[0].read_text().split()]
            if len(ids) != len(names):
                raise UserError(f"{truth[0]} has {len(ids)} labels for {len(names)} images in the val folder")
            known = tuple(sorted(classes[number] for number in classes if number in set(ids)))
            return {name: classes[number] for name, number in zip(names, ids, strict=True)}, known
    raise UserError(
        f"there are no labels for the flat val folder in {root}; "
        f"put LOC_val_solution.csv or {_DEVKITS[0]} there, or sort val into class folders"
    )


def _devkit_classes(devkit: Path) -> dict[int, str]:
    """WordNet id of each ILSVRC id; the ids are not in the order of the WordNet ids."""
    mapping = devkit / "map_clsloc.txt"
    if mapping.is_file():
        rows = (line.split() for line in mapping.read_text().splitlines() if line.strip())
        return {int(number): wordnet_id for wordnet_id, number, _ in rows}
    if not (devkit / "meta.mat").is_file():
        raise UserError(f"{devkit} has neither map_clsloc.txt nor meta.mat, which name its classes")
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise UserError(f"reading {devkit / 'meta.mat'} needs SciPy; install it with: pip install scipy") from error
    synsets = loadmat(devkit / "meta.mat", squeeze_me=True)["synsets"]
    return {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in np.atleast_1d(synsets)}
