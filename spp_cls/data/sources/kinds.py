"""The kinds of data sets by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from spp_cls.cli.errors import UserError
from spp_cls.cli.reading import is_folder
from spp_cls.cli.schema import has_type
from spp_cls.cli.targets import call_bound, import_target
from spp_cls.data.demo import draw_demo
from spp_cls.data.sources.caltech import CALTECH, open_caltech
from spp_cls.data.sources.files import ImageFiles, open_image_folder
from spp_cls.data.sources.imagenet import open_imagenet
from spp_cls.data.sources.packed import PackedImages
from spp_cls.data.sources.source import ImageSource, Split


def _open_demo(root: Path, split: Split) -> ImageFiles:
    draw_demo(root)
    return open_image_folder(root, split)


KINDS: dict[str, Callable[[Path, Split], ImageSource]] = {
    "demo": _open_demo,
    "imagefolder": open_image_folder,
    "imagenet": open_imagenet,
    CALTECH: open_caltech,
    "packed": PackedImages,
}

_MEMBERS = ("root", "labels", "class_names", "__len__", "name", "location", "read", "size")


def open_source(kind: str, root: str | Path, split: Split) -> ImageSource:
    """Open a split of a data set.

    `kind` is demo, imagefolder, imagenet, caltech101 or packed, or the dotted path of a function or class of your own,
    such as my_module.open_pairs: it is called with (root, split) and returns an ImageSource.

    Raises:
        UserError: if there is no such kind, or the folder is missing or not laid out as its kind says.
    """
    if kind not in KINDS:
        if "." in kind:
            return _open_own(kind, Path(root), split)
        raise UserError(
            f"there is no kind of data {kind}; choose {', '.join(KINDS)}, or the dotted path of a function of your own"
        )
    check_root(root)
    if kind != "demo" and not is_folder(Path(root)):
        raise UserError(f"there is no folder {root}; set data.root to the data set's folder")
    return KINDS[kind](Path(root), split)


def check_root(root: str | Path) -> None:
    """Raise UserError if the folder of the data has no name, which would be the current folder."""
    if root == "":
        raise UserError("data.root is empty; set it to the data set's folder")


def _open_own(path: str, root: Path, split: Split) -> ImageSource:
    source: Any = call_bound(partial(import_target(path, "data.kind")), "data.kind", root, split)
    missing = [name for name in _MEMBERS if not hasattr(source, name)]
    if missing:
        raise UserError(
            f"data.kind={path} returned a {type(source).__name__} without {', '.join(missing)}; "
            "it must return an ImageSource"
        )
    names, labels = source.class_names, source.labels

    def refuse(name: str, needed: str) -> UserError:
        return UserError(f"data.kind={path} returned a source whose {name} are not {needed}; convert them")

    if not isinstance(names, tuple) or not has_type(names, tuple[str, ...]):
        raise refuse("class_names", "a tuple of texts")
    if not names or len(set(names)) < len(names):
        raise refuse("class_names", "one name or more, each once")
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.shape != (len(source),):
        raise refuse("labels", f"an int64 array, one for each of its {len(source)} images")
    if ((labels < 0) | (labels >= len(names))).any():
        raise refuse("labels", f"from 0 to {len(names) - 1}")
    return cast(ImageSource, source)
