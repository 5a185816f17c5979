"""Whether the settings of a data module fit each other and the trainer, before any data is read."""

from typing import Any

import pytorch_lightning as pl

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import has_type
from spp_cls.data.sources.source import ImageSource, check_classes
from spp_cls.data.transforms.augmentation import Augmentation
from spp_cls.data.transforms.shapes import TrainingShapes


def check_options(cache: str, shapes: TrainingShapes, augmentation: Augmentation) -> None:
    """Check that training images can be cached and augmented as the settings say.

    Raises:
        UserError: if two settings do not fit, or the seed is wrong.
    """
    if cache == "device" and not augmentation.can_crop_on_device:
        raise UserError(
            "data.cache=device works with augmentations that only crop, flip and shift colours, such as the "
            "paper's; set data.cache=none"
        )
    if not has_type(shapes.seed, int) or shapes.seed < 0:
        raise UserError(f"seed is a whole number from 0, not {shapes.seed!r}")
    if shapes.has_whole_images and cache == "device":
        raise UserError(f"data.cache=device makes crops only; set data.cache=none for shape={shapes.kind}")
    if shapes.has_whole_images and not augmentation.takes_whole_images:
        raise UserError(
            f"shape={shapes.kind} takes augmentations of whole images, and this one makes square crops; set "
            "augmentation=paper, or takes_whole_images in a class of your own"
        )


def check_batch(batch_size: int, num_local_batches: int, mixes_pairs: bool, num_images: int) -> None:
    """Check that the images fill a global batch of equal local batches, and these divide into pairs to be mixed.

    Raises:
        UserError: if they do not fill it, or it does not divide.
    """
    if batch_size < 1 or batch_size % num_local_batches:
        raise UserError(
            f"the global batch of {batch_size} does not divide by {num_local_batches} (processes times "
            f"accumulated batches); set data.batch_size to a multiple of {num_local_batches}"
        )
    if mixes_pairs and batch_size // num_local_batches % 2:
        raise UserError(
            f"the augmentation mixes images in pairs, and {batch_size // num_local_batches} images of a local batch "
            f"are an odd number; set data.batch_size to a multiple of {2 * num_local_batches}"
        )
    if num_images < batch_size:
        raise UserError(
            f"{num_images} training images do not fill a batch of {batch_size}; set a smaller data.batch_size"
        )


def check_sources(train: ImageSource, val: ImageSource, world_size: int) -> None:
    """Check that each process has a validation image, of the classes of the training images.

    Raises:
        UserError: if there are fewer images than processes, or the classes differ.
    """
    check_classes({"train": train, "val": val})
    if len(train.class_names) < 2:
        raise UserError(
            f"{train.root} has fewer than two classes ({', '.join(train.class_names) or 'none'}); set data.root to "
            "other data"
        )
    if not len(val):
        raise UserError(f"there are no validation images in {val.root}")
    if len(val) < world_size:
        raise UserError(
            f"{len(val)} validation images do not give one to each of {world_size} processes; add images to "
            f"{val.root} or use fewer devices"
        )


def check_trainer(trainer: pl.Trainer) -> None:
    """Check that a trainer leaves the images as the data module gives them.

    Raises:
        UserError: if it would make samplers of its own, or has weights of another type than the images.
    """
    connector: Any = trainer._accelerator_connector
    if connector.use_distributed_sampler and connector.is_distributed:
        raise UserError("the data module divides the images itself; give the Trainer use_distributed_sampler=False")
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise UserError("overfit_batches makes samplers of its own; give the Trainer limit_train_batches instead")
    if trainer.precision in ("bf16-true", "16-true"):
        raise UserError(f"images are float32, which precision={trainer.precision} does not take; set bf16-mixed")


def check_limit(split: str, limit: int | float | None, count: int, accumulated: int = 1) -> None:
    """Check that a trainer's share of the batches of an epoch is at least one, and fills its last step.

    `accumulated` is the number of batches of a step.

    Raises:
        UserError: if it is none, or leaves a step with fewer batches.
    """
    if not limit or not count:
        return
    batches = int(limit * count) if isinstance(limit, float) else min(limit, count)
    if isinstance(limit, float) and batches < 1:
        raise UserError(
            f"trainer.limit_{split}_batches={limit:g} of {count} batches is none; set a number of batches, or "
            "a larger share"
        )
    if batches % accumulated:
        # Lightning would divide the gradient of the last step by the full number.
        raise UserError(
            f"trainer.limit_{split}_batches={limit} leaves {batches} batches, and a step accumulates {accumulated}; "
            f"set a multiple of trainer.accumulate_grad_batches, such as {-(-batches // accumulated) * accumulated}"
        )
