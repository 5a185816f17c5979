"""From files to batches.

In: a kind of data set and its folder, batch size, augmentation, seed. Out: training and validation batches.
Start with datamodule.py; sources/ finds bytes and labels, transforms/ makes crops, loading/ makes batches.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spp_cls.data.datamodule import ImageNetDataModule

__all__ = ["ImageNetDataModule"]


def __getattr__(name: str) -> Any:
    # Importing Lightning takes seconds, which commands like pack and predict need not wait for.
    if name == "ImageNetDataModule":
        from spp_cls.data.datamodule import ImageNetDataModule

        return ImageNetDataModule
    raise AttributeError(f"module {__name__} has no attribute {name}")
