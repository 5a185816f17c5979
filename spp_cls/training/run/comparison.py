"""What a run that resumes must have in common with the run that wrote its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spp_cls.cli.errors import UserError, shorten
from spp_cls.cli.reading import is_file, read_yaml
from spp_cls.data.datamodule import NUM_IMAGES_KEY, ImageNetDataModule
from spp_cls.models.checkpoint import CONFIG_KEY, convert_config_to_dict, create_config_from_dict
from spp_cls.models.config import NetConfig

_LIMIT = "trainer.limit_train_batches"
# What the training of a network depends on; the other keys may change from one start of a run to the next.
_TRAINING_KEYS = (
    "sizes", "shape", "seed", "ema_decay", "freeze", "data.kind", "data.batch_size",
    "trainer.gradient_clip_val",
    # The position inside an epoch is counted in its steps and parts of steps.
    "trainer.accumulate_grad_batches", _LIMIT,
)  # fmt: skip
# Keys that configurations of earlier versions do not have, and what these versions did.
_LATER_KEYS = {
    "shape": "crop", "optimizer.backbone_lr_scale": 1.0, "schedule.warmup": 0.0, "schedule.warmup_factor": 0.0,
    "loss._target_": "spp_cls.training.losses.CrossEntropy", "loss.label_smoothing": 0.0,
}  # fmt: skip
_TRAINING_GROUPS = ("augmentation", "optimizer", "schedule", "loss")

# What Lightning restores from a checkpoint.
_RESUMABLE = {
    "epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
    "validation_errors": list, "train_counts": list,
}  # fmt: skip


def check_resumable(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Check that a checkpoint has all that a run resumes from.

    Raises:
        UserError: if a part is missing or of another kind.
    """
    missing = [name for name, kind in _RESUMABLE.items() if not isinstance(checkpoint.get(name), kind)]
    if missing:
        raise UserError(
            f"{path} cannot be resumed, as its {', '.join(missing)} is missing or damaged; choose another "
            f"name=..., and init_from={path} to start from its weights"
        )


def list_differences(
    checkpoint: Mapping[str, Any], config_file: Path, config: NetConfig, cfg: DictConfig, num_images: int
) -> list[str]:
    """List what differs between the run of a checkpoint and one with `config`, `cfg` and so many training images.

    `config_file` is the configuration that the earlier run was started with.

    Raises:
        UserError: if it is damaged.
    """
    old = create_config_from_dict(checkpoint[CONFIG_KEY])
    differences = _compare(convert_config_to_dict(old), convert_config_to_dict(config))
    if is_file(config_file):
        new_keys: Any = OmegaConf.to_container(cfg, resolve=True)
        differences += _compare(_training_keys(_read_config(config_file)), _training_keys(new_keys))
    data = checkpoint.get(ImageNetDataModule.__qualname__, {})
    images = data.get(NUM_IMAGES_KEY, num_images) if isinstance(data, dict) else None
    if images != num_images:
        differences.append(f"there were {images} training images, there are {num_images}")
    return differences


def _read_config(path: Path) -> dict[str, Any]:
    """Read the configuration that a run was started with, as plain values; what others put into it is not resolved.

    Raises:
        UserError: if prepare did not write it.
    """
    try:
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ValueError("it has no keys")
        return values
    except ValueError as error:
        raise UserError(
            f"{path} is not a configuration of train.py ({shorten(error)}); put the earlier one back, or choose "
            "another name=..."
        ) from error


def _training_keys(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that training depends on, with those of the groups that are set."""
    values = _LATER_KEYS | {key: value for key in _TRAINING_KEYS if (value := _select(cfg, key)) is not None}
    for group in _TRAINING_GROUPS:
        found = _select(cfg, group)
        values |= {f"{group}.{key}": value for key, value in found.items()} if isinstance(found, dict) else {}
    if _LIMIT in values:
        # 1 is one batch, and 1.0 all of them.
        values[_LIMIT] = str(values[_LIMIT])
    return values


def _select(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the keys whose values differ, with both values; of the class names, the first that differs."""
    changed = {key: (old.get(key), new.get(key)) for key in {**new, **old} if old.get(key) != new.get(key)}
    old_names, new_names = changed.pop("class_names", (None, None))
    lines = [f"{key} was {before}, is {after}" for key, (before, after) in changed.items()]
    if old_names and new_names and len(old_names) == len(new_names):
        number = next(i for i, (before, after) in enumerate(zip(old_names, new_names, strict=True)) if before != after)
        lines.append(f"class {number} was {old_names[number]}, is {new_names[number]}")
    return lines
