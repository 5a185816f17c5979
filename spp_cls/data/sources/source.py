"""What every data set offers to the rest of the package."""

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

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
