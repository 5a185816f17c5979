"""Several parts of a data set as one."""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spp_cls.data.sources import ImageSource
from spp_cls.data.transforms.decode import Data


class JoinedImages:
    """The images of several sources with the same classes, one source after the other: an ImageSource."""

    def __init__(self, part_names: Sequence[str], parts: Sequence[ImageSource]) -> None:
        self._part_names = tuple(part_names)
        self._parts = tuple(parts)
        self._starts = [0, *np.cumsum([len(part) for part in parts]).tolist()]
        self.labels: NDArray[np.int64] = np.concatenate([np.asarray(part.labels) for part in parts])

    @property
    def root(self) -> Path:
        """Folder of the first source."""
        return self._parts[0].root

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._parts[0].class_names

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        """Return the name of an image, behind that of its part."""
        part, number = self._find(index)
        return f"{self._part_names[part]}/{self._parts[part].name(number)}"

    def location(self, index: int) -> str:
        """Return where an image is, for messages."""
        part, number = self._find(index)
        return self._parts[part].location(number)

    def read(self, index: int) -> Data:
        """Return the bytes of an image."""
        part, number = self._find(index)
        return self._parts[part].read(number)

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height of an image."""
        part, number = self._find(index)
        return self._parts[part].size(number)

    def _find(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]
