"""The folder of a run: its configuration, checkpoints and logs; the same command finds it again and resumes."""

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from spp_cls.cli.errors import UserError
from spp_cls.cli.files import replace_atomically
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.models.checkpoint import CONFIG_KEY, convert_config_to_dict, create_config_from_dict, load_checkpoint
from spp_cls.models.net import NetConfig, SPPNet
from spp_cls.training.loggers import CSV_FILE, MLFLOW_FOLDER, TENSORBOARD_FOLDER, WANDB_FOLDER

# What the training of a network depends on; the other keys may change from one start of a run to the next.
_TRAINING_KEYS = (
    "sizes", "shape", "seed", "ema_decay", "freeze", "data.kind", "data.batch_size",
    "trainer.gradient_clip_val",
    # The position inside an epoch is counted in its steps and parts of steps.
    "trainer.accumulate_grad_batches", "trainer.limit_train_batches",
)  # fmt: skip
# Keys that configurations of earlier versions do not have, and what these versions did.
_LATER_KEYS = {
    "shape": "crop", "optimizer.backbone_lr_scale": 1.0, "schedule.warmup": 0.0, "schedule.warmup_factor": 0.0,
    "loss._target_": "spp_cls.training.losses.CrossEntropy", "loss.label_smoothing": 0.0,
}  # fmt: skip
_TRAINING_GROUPS = ("augmentation", "optimizer", "schedule", "loss")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def last(self) -> Path:
        """The checkpoint that a run resumes from."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the lowest validation top-1 error."""
        return self.path / "best.ckpt"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / TENSORBOARD_FOLDER

    @property
    def csv(self) -> Path:
        """The metrics as a CSV file."""
        return self.path / CSV_FILE

    @property
    def config(self) -> Path:
        """The configuration of the run, as it was last started."""
        return self.path / "config.yaml"

    @property
    def _results(self) -> tuple[Path, ...]:
        loggers = self.tensorboard, self.csv.parent, self.path / WANDB_FOLDER, self.path / MLFLOW_FOLDER
        return self.last, self.best, *loggers

    def prepare(self, cfg: DictConfig) -> None:
        """Make the folder, remove results that are to be overwritten, and write the run's configuration into it.

        The first process does it for all, once nothing else can go wrong.

        Raises:
            UserError: if it cannot be made or written.
        """
        if getattr(rank_zero_only, "rank", 0):
            return
        try:
            if _should_overwrite(cfg):
                self._remove(*self._results, self.config)
            self.path.mkdir(parents=True, exist_ok=True)
            for path in (self.last, self.best, self.csv, self.config):
                # Unfinished files of a process that was killed while it wrote.
                self._remove(*path.parent.glob(f".{path.name}-*"))
            with replace_atomically(self.config) as unfinished:
                unfinished.write_text(OmegaConf.to_yaml(cfg, resolve=True))
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {self.path}: {error.strerror}; set run_folder to another"
            ) from error

    def find_checkpoint(self, config: NetConfig, cfg: DictConfig) -> Path | None:
        """Return the last checkpoint, if there is one to resume from. Call it before `prepare`.

        Raises:
            UserError: if its network or its training differ from `config` and `cfg`, or there are results and
                resume=false.
        """
        if _should_overwrite(cfg):
            return None
        found = [path.name for path in self._results if path.exists()]
        if found and not (cfg.resume or _is_slurm_restart()):
            raise UserError(
                f"{self.path} holds results ({', '.join(found)}); choose another name=..., resume=true to resume from "
                "them or overwrite=true to remove them"
            )
        if not self.last.exists():
            return None
        old = create_config_from_dict(load_checkpoint(self.last)[CONFIG_KEY])
        differences = _list_differences(convert_config_to_dict(old), convert_config_to_dict(config))
        if self.config.is_file():
            differences += _list_differences(_training_keys(OmegaConf.load(self.config)), _training_keys(cfg))
        if differences:
            raise UserError(
                f"the run in {self.path} was started with other keys ({'; '.join(differences)}); choose another "
                f"name=..., and init_from={self.last} to start from its weights"
            )
        return self.last

    def _remove(self, *paths: Path) -> None:
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def read_step(checkpoint: Path | None) -> int:
    """Return the number of steps that a checkpoint was trained for; 0 without one."""
    return torch.load(checkpoint, mmap=True, weights_only=True)["global_step"] if checkpoint else 0


def _is_slurm_restart() -> bool:
    """Return whether SLURM has started this job before: the results are its own."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _should_overwrite(cfg: DictConfig) -> bool:
    return cfg.overwrite and not _is_slurm_restart()


def _training_keys(cfg: DictConfig | ListConfig) -> dict[str, Any]:
    """Return the keys that training depends on, with those of the groups that are set."""
    values = _LATER_KEYS | {key: value for key in _TRAINING_KEYS if (value := OmegaConf.select(cfg, key)) is not None}
    for group in _TRAINING_GROUPS:
        values |= {f"{group}.{key}": value for key, value in (OmegaConf.select(cfg, group) or {}).items()}
    return values


def _list_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the keys whose values differ, with both values; of the class names, the first that differs."""
    changed = {key: (old.get(key), new.get(key)) for key in {**new, **old} if old.get(key) != new.get(key)}
    old_names, new_names = changed.pop("class_names", (None, None))
    lines = [f"{key} was {before}, is {after}" for key, (before, after) in changed.items()]
    if old_names and new_names and len(old_names) == len(new_names):
        number = next(i for i, (before, after) in enumerate(zip(old_names, new_names, strict=True)) if before != after)
        lines.append(f"class {number} was {old_names[number]}, is {new_names[number]}")
    return lines


def describe_run(folder: RunFolder, net: SPPNet, data: ImageNetDataModule) -> str:
    """Return a line on what a run is about to do."""
    parameters = sum(parameter.numel() for parameter in net.parameters())
    pooling = f"SPP {net.pool.levels}" if net.config.takes_any_size else "no SPP"
    name = net.config.name + (f" at width {net.config.width:g}" if net.config.width != 1 else "")
    sizes = data.shapes.describe(data.batch_size)
    return (
        f"{name}, {pooling}, {parameters:,} parameters; {data.root}: {len(data.train_source):,} images to "
        f"train on, {len(data.val_source):,} to validate, {net.num_classes} classes; {sizes}; {folder.path}"
    )


def summarise_run(folder: RunFolder, cfg: DictConfig, validation_errors: list[float]) -> str:
    """Return what to print after a run: its lowest error, where the files are, and the commands to type next."""
    if not validation_errors:
        return f"Stopped before the end of the first epoch; there is no checkpoint in {folder.path} yet"
    lowest = min(validation_errors)
    epoch = validation_errors.index(lowest)
    protocols = "crop1,crop10,full1,map10" if cfg.model.pooling == "spp" else "crop1,crop10"
    test = ["eval.py", f"ckpt={folder.best}", f"data={cfg.data.kind}", f"data.root={cfg.data.root}"]
    lines = [
        f"\nLowest validation top-1 error: {lowest:.2f} % (epoch {epoch} of {len(validation_errors)}, from 0)",
        f"Checkpoints: {folder.best} {folder.last}",
    ]
    if folder.tensorboard.exists():
        lines.append(f"Curves:      tensorboard --logdir {shlex.quote(str(folder.tensorboard))}")
    if folder.csv.exists():
        lines.append(f"Metrics:     {folder.csv}")
    lines.append(f"Test it:     python {shlex.join([*test, f'protocol=[{protocols}]'])}")
    return "\n".join(lines)


def collect_result(folder: RunFolder, validation_errors: list[float]) -> dict[str, Any]:
    """Return the lowest validation top-1 error of a run and its epoch, for the table of --multirun."""
    lowest = min(validation_errors, default=None)
    epoch = None if lowest is None else validation_errors.index(lowest)
    return {"run_folder": str(folder.path), "top1_error": lowest, "epoch": epoch}
