"""ImageNet 2012 as it is shipped."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spp_cls.cli.errors import UserError, shorten
from spp_cls.data.sources.files import ImageFiles, open_class_folders, open_image_folder
from spp_cls.data.sources.listing import list_class_folders, list_images
from spp_cls.data.sources.source import Split

_KAGGLE_IMAGES = "ILSVRC/Data/CLS-LOC"
_DEVKITS = ("ILSVRC2012_devkit_t12/data", "ILSVRC/devkit/data", "devkit/data")


def open_imagenet(root: Path, split: Split) -> ImageFiles:
    """Open ImageNet as Kaggle ships it, or its train and flat val folders beside the devkit.

    Raises:
        UserError: if the folder is not laid out like that, or an image of a flat val folder has no label.
    """
    images = root / _KAGGLE_IMAGES if (root / _KAGGLE_IMAGES).is_dir() else root
    folder = images / split
    if not folder.is_dir():
        raise UserError(f"{root} has neither {_KAGGLE_IMAGES}/{split} nor {split}; set data.root to ImageNet's folder")
    if split == "train":
        classes = list_class_folders(folder)
        return open_class_folders(folder, classes, classes)
    # Such as .ipynb_checkpoints.
    if any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(folder)):
        return open_image_folder(images, "val")
    names = list_images(folder)
    try:
        class_of, known = _read_val_classes(root, names)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the labels of the val folder in {root} are damaged ({shorten(error)})") from error
    class_names = list_class_folders(images / "train") if (images / "train").is_dir() else known
    numbers = {name: number for number, name in enumerate(class_names)}
    unlabelled = [name for name in names if class_of.get(name) not in numbers]
    if unlabelled:
        raise UserError(
            f"{len(unlabelled)} images of {folder} have no class among the {len(class_names)} known, "
            f"{unlabelled[0]} first; the list of labels does not belong to these images"
        )
    labels = np.array([numbers[class_of[name]] for name in names], np.int64)
    return ImageFiles(folder, np.array([os.fsencode(name) for name in names]), labels, class_names)


def _read_val_classes(root: Path, names: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the class (WordNet id) of each validation image by its file name, and all classes in order."""
    solution = root / "LOC_val_solution.csv"
    if solution.is_file():
        with solution.open(newline="") as file:
            class_of = {f"{row['ImageId']}.JPEG": row["PredictionString"].split()[0] for row in csv.DictReader(file)}
        return class_of, tuple(sorted(set(class_of.values())))
    for devkit in (root / name for name in _DEVKITS):
        truth = sorted(devkit.glob("ILSVRC*_validation_ground_truth.txt"))
        if truth:
            classes = _read_devkit_classes(devkit)
            ids = [int(line) for line in truth[0].read_text().split()]
            if len(ids) != len(names):
                raise UserError(f"{truth[0]} has {len(ids)} labels for {len(names)} images in the val folder")
            known = tuple(sorted(classes[number] for number in classes if number in set(ids)))
            return {name: classes[number] for name, number in zip(names, ids, strict=True)}, known
    raise UserError(
        f"there are no labels for the flat val folder in {root}; "
        f"put LOC_val_solution.csv or {_DEVKITS[0]} there, or sort val into class folders"
    )


def _read_devkit_classes(devkit: Path) -> dict[int, str]:
    """Return the WordNet id of each ILSVRC id; the two are in different orders."""
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
