"""What every data set offers to the rest of the package."""

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError
from spp_cls.data.transforms.decode import Data

Split = Literal["train", "val"]


class ImageSource(Protocol):
    """A split of a data set: encoded images, each with the number of its class in `class_names`.

    Worker processes get a pickled copy of it where they are not forked.
    """

    @property
    def root(self) -> Path:
        """Folder of the data set or of the split."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image, as an index into `class_names`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, the same in every split."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of an image within the data set."""

    def location(self, index: int) -> str:
        """Return where an image is, for messages: its path, or its name and the file that holds it."""

    def read(self, index: int) -> Data:
        """Return the bytes of an image file."""

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height of an image."""


def check_classes(sources: Mapping[str, Any]) -> None:
    """Check that the splits of a data set have the same `class_names`, so that a label means one class.

    Raises:
        UserError: if they differ.
    """
    first, *others = sources
    names = sources[first].class_names
    for split in others:
        for number, (name, other) in enumerate(zip_longest(names, sources[split].class_names)):
            if name != other:
                has = ["not there" if each is None else repr(each) for each in (name, other)]
                raise UserError(
                    f"class {number} is {has[0]} in {first} and {has[1]} in {split}; "
                    "give both the same class names in the same order"
                )
