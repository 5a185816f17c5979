"""The data sets of the paper's section 3.2 and 3.3, and any other: images, targets, and what trains and tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError
from spp_cls.data.checks import check_sources
from spp_cls.data.sources import ImageSource, open_source
from spp_cls.data.sources.caltech import (
    CALTECH,
    TEST_IMAGES,
    TRAINING_IMAGES,
    Indices,
    draw_images,
    draw_order,
    list_caltech,
)
from spp_cls.data.sources.files import ImageFiles
from spp_cls.data.sources.identity import Storage, find_storage, name_source
from spp_cls.data.sources.kinds import check_root
from spp_cls.transfer.joined import JoinedImages

VOC = "voc2007"

# Of a class's training images, one in so many validates where something is to be chosen.
_VALIDATION_PART = 3


class Split(NamedTuple):
    """Indices of the images that train and test. `fit` and `validation` are the two parts of `train`."""

    train: Indices
    test: Indices
    fit: Indices
    validation: Indices


@dataclass(frozen=True)
class TransferData:
    """A data set: every image once, N x classes targets (1, -1, and 0 where an image does not count), and splits."""

    name: str
    source: ImageSource
    targets: NDArray[np.int8]
    splits: tuple[Split, ...]
    has_several_labels: bool = False
    # How a pack stored the images; None: as they came.
    storage: Storage | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source.class_names


def open_transfer_data(
    kind: str,
    root: str | Path,
    draws: int | None = None,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> TransferData:
    """Open caltech101, voc2007, or any kind of data that train.py takes: its train part trains, its val part tests.

    `draws` (None: 10), `train` (30) and `test` (50 images of a class) are for caltech101; its draws are functions of
    `seed`.

    Raises:
        UserError: if the folder is missing or not laid out as shipped, or a class has too few images.
    """
    for name, value in {"draws": draws, "train": train, "test": test}.items():
        if kind != CALTECH and value is not None:
            raise UserError(
                f"{name}={value} is for data={CALTECH}; data={kind} says itself what trains and tests: leave it out"
            )
    if kind in (CALTECH, VOC):
        check_root(root)
        if not Path(root).is_dir():
            raise UserError(f"there is no folder {root}; set data.root to the data set's folder")
    if kind == CALTECH:
        return _open_caltech(Path(root), draws or 10, train or TRAINING_IMAGES, test or TEST_IMAGES, seed)
    data = _open_voc(Path(root)) if kind == VOC else _open_other(kind, root, seed)
    if (number := find_one_sided_class(data.targets[data.splits[0].train])) is not None:
        name = data.class_names[number]
        raise UserError(f"class {name} of {root} needs images of its own, and of others, to train on")
    return data


def find_one_sided_class(targets: NDArray[np.int8]) -> int | None:
    """Return the first column of N x classes targets, 1 and -1, that lacks one of the two; None if none does."""
    has_both = (targets > 0).any(axis=0) & (targets < 0).any(axis=0)
    return None if has_both.all() else int(np.argmin(has_both))


def check_validation(data: TransferData) -> None:
    """Check that a cost or a side can be chosen on a part of the training images.

    Raises:
        UserError: if nothing would validate, or the rest lacks images of a class.
    """
    advice = "give more training images of each class, or one C and no choose_side"
    for split in data.splits:
        if not len(split.validation):
            raise UserError(
                f"several C and choose_side choose on a third of each class's training images, and no class of "
                f"{data.name} has {_VALIDATION_PART} of them; {advice}"
            )
        if (number := find_one_sided_class(data.targets[split.fit])) is not None:
            raise UserError(
                f"class {data.class_names[number]} of {data.name} needs images of its own, and of others, beside those "
                f"that validate; {advice}"
            )


def draw_split(labels: NDArray[np.int64], train: int, test: int, seed: int, draw: int) -> Split:
    """Draw `train` images of each class to train and up to `test` of the rest, a function of (seed, draw)."""
    drawn, tested = draw_images(labels, train, test, seed, draw)
    held_out = train // _VALIDATION_PART
    return Split(
        np.concatenate([np.sort(each) for each in drawn]),
        tested,
        np.concatenate([np.sort(each[held_out:]) for each in drawn]),
        np.concatenate([np.sort(each[:held_out]) for each in drawn]),
    )


def _open_caltech(root: Path, draws: int, train: int, test: int, seed: int) -> TransferData:
    source = list_caltech(root, train)
    splits = tuple(draw_split(source.labels, train, test, seed, draw) for draw in range(draws))
    return TransferData(CALTECH, source, make_targets(source.labels, len(source.class_names)), splits)


def make_targets(labels: NDArray[np.int64], classes: int) -> NDArray[np.int8]:
    """Return 1 for an image's class and -1 for every other, N x classes."""
    return np.where(labels[:, None] == np.arange(classes), 1, -1).astype(np.int8)


def _open_voc(root: Path) -> TransferData:
    """Open VOC 2007 as shipped: trainval trains, test tests, train and val choose; difficult images do not count."""
    places = [root / "VOCdevkit/VOC2007", root / "VOC2007", root]
    folder = next((each for each in places if (each / "ImageSets/Main").is_dir()), None)
    if folder is None:
        raise UserError(f"{root} has no VOCdevkit/VOC2007/ImageSets/Main; set data.root to the folder of VOCdevkit")
    lists = folder / "ImageSets/Main"
    classes = tuple(sorted(path.name.removesuffix("_trainval.txt") for path in lists.glob("*_trainval.txt")))
    if not classes:
        raise UserError(f"{lists} has no lists such as cat_trainval.txt; unpack VOC2007's trainval and test there")
    parts = {part: _read_ids(lists / f"{part}.txt") for part in ("trainval", "test", "train", "val")}
    ids = sorted({*parts["trainval"], *parts["test"]})
    places_of = {each: index for index, each in enumerate(ids)}
    targets = np.zeros((len(ids), len(classes)), np.int8)
    for number, name in enumerate(classes):
        for part in ("trainval", "test"):
            values = _read_targets(lists / f"{name}_{part}.txt")
            if missing := [each for each in parts[part] if each not in values]:
                raise UserError(f"{lists / f'{name}_{part}.txt'} has no line for image {missing[0]} of {part}.txt")
            for each in parts[part]:
                targets[places_of[each], number] = values[each]
    try:
        indices = {part: np.array(sorted(places_of[each] for each in parts[part])) for part in parts}
    except KeyError as error:
        raise UserError(f"image {error.args[0]} of {lists}/train.txt or val.txt is not in trainval.txt") from error
    names = np.array([f"JPEGImages/{each}.jpg".encode() for each in ids])
    source = ImageFiles(folder, names, np.zeros(len(ids), np.int64), classes)
    split = Split(indices["trainval"], indices["test"], indices["train"], indices["val"])
    return TransferData(VOC, source, targets, (split,), has_several_labels=True)


def _read_ids(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"there is no {path}; unpack VOC2007's trainval and test into one VOCdevkit")
    return path.read_text().split()


def _read_targets(path: Path) -> dict[str, int]:
    words = _read_ids(path)
    if len(words) % 2 or not {*words[1::2]} <= {"1", "-1", "0"}:
        raise UserError(f"{path} does not have lines of an image and 1, -1 or 0; unpack VOC2007 again")
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def _open_other(kind: str, root: str | Path, seed: int) -> TransferData:
    parts: Sequence[ImageSource] = [open_source(kind, root, "train"), open_source(kind, root, "val")]
    check_sources(parts[0], parts[1], world_size=1)
    source = JoinedImages(("train", "val"), parts)
    border = len(parts[0])
    train, test = np.arange(border), np.arange(border, len(source))
    labels = source.labels
    validating = [
        members[np.sort(draw_order(len(members), seed, 0, int(label))[: len(members) // _VALIDATION_PART])]
        for label in np.unique(labels[train])
        for members in [np.flatnonzero(labels[train] == label)]
    ]
    validation = np.sort(np.concatenate(validating))
    split = Split(train, test, np.setdiff1d(train, validation), validation)
    name = name_source(kind, root, parts[0])
    targets = make_targets(labels, len(source.class_names))
    return TransferData(name, source, targets, (split,), storage=find_storage(parts[0]))
