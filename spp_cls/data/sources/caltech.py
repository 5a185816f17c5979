"""Caltech-101 as shipped, and the random draws of it that train and test."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError
from spp_cls.cli.reading import is_folder
from spp_cls.data.sources.files import ImageFiles, open_class_folders
from spp_cls.data.sources.listing import list_class_folders
from spp_cls.data.sources.source import Split
from spp_cls.data.transforms.randomness import Purpose, create_generator

Indices = NDArray[np.int64]

CALTECH = "caltech101"
_FOLDER = "101_ObjectCategories"

# Images of a class, section 3.3 of the paper: so many train, and up to so many of the others test.
TRAINING_IMAGES, TEST_IMAGES = 30, 50


def open_caltech(root: Path, split: Split) -> ImageFiles:
    """Open the first draw of Caltech-101: 30 images of a class train, and up to 50 of the others are the val split.

    Raises:
        UserError: if the folder is missing, or a class has too few images.
    """
    source = list_caltech(root, TRAINING_IMAGES)
    drawn, tested = draw_images(source.labels, TRAINING_IMAGES, TEST_IMAGES, seed=0, draw=0)
    indices = np.sort(np.concatenate(drawn)) if split == "train" else tested
    return ImageFiles(source.root, source.names[indices], source.labels[indices], source.class_names)


def list_caltech(root: Path, train: int) -> ImageFiles:
    """List all images of Caltech-101, whose background is a class like the others.

    Raises:
        UserError: if there is no folder 101_ObjectCategories, or a class has no more than `train` images.
    """
    folder = root if root.name == _FOLDER else root / _FOLDER
    if not is_folder(folder):
        raise UserError(f"{root} has no folder {_FOLDER}; set data.root to the folder that Caltech-101 is in")
    classes = list_class_folders(folder)
    source = open_class_folders(folder, classes, classes)
    counts = np.bincount(source.labels)
    if counts.min() <= train:
        raise UserError(
            f"class {classes[counts.argmin()]} of {folder} has {counts.min()} images; {train} to train and one to "
            "test are needed"
        )
    return source


def draw_images(
    labels: NDArray[np.int64], train: int, test: int, seed: int, draw: int
) -> tuple[list[Indices], Indices]:
    """Draw `train` images of each class to train and up to `test` of the rest, a function of (seed, draw).

    Returns the images of each class that train, in the order drawn, and those of all classes that test. The keys that
    images are sorted by are raw output of the bit generator, which NumPy keeps over its versions.
    """
    drawn, tested = [], []
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        shuffled = members[draw_order(len(members), seed, draw, label)]
        drawn.append(shuffled[:train])
        tested.append(np.sort(shuffled[train : train + test]))
    return drawn, np.concatenate(tested)


def draw_order(count: int, seed: int, draw: int, label: int) -> Indices:
    """Return the images of a class in random order, a function of (seed, draw, label)."""
    keys = create_generator(Purpose.SPLIT, seed, draw, label).bit_generator.random_raw(count)
    return np.argsort(keys, kind="stable")
