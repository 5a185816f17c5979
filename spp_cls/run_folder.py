"""The folder of a run: its configuration, checkpoints and logs; the same command finds it again and goes on."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from spp_cls.checkpoint import RECIPE_KEY, load_checkpoint, recipe_from_plain, recipe_to_plain
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.errors import UserError
from spp_cls.models.net import NetRecipe, SPPNet

# What a run is trained with, beside its network and the optimizer; the rest may change from one start to the next.
_TRAINING = (
    "sizes", "colour_deviation", "seed", "ema_decay", "data.kind", "data.batch_size", "trainer.gradient_clip_val",
    # A place inside an epoch is counted in its steps and parts of steps.
    "trainer.accumulate_grad_batches", "trainer.limit_train_batches",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def last(self) -> Path:
        """The checkpoint that a run goes on from."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the lowest validation top-1 error."""
        return self.path / "best.ckpt"

    @property
    def logs(self) -> Path:
        """TensorBoard's folder."""
        return self.path / "tensorboard"

    @property
    def configuration(self) -> Path:
        """The configuration of the run, as it was last started."""
        return self.path / "config.yaml"

    def prepare(self, cfg: DictConfig) -> None:
        """Make the folder, without results that are to be overwritten, and write the run's configuration into it.

        Once for all processes, and only when nothing speaks against the run any more.

        Raises:
            UserError: it cannot be made or written.
        """
        if getattr(rank_zero_only, "rank", 0):
            return
        try:
            if _overwrites(cfg):
                self._remove_results()
            self.path.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path, prefix=".config-", suffix=".yaml")
            with os.fdopen(handle, "w") as file:
                file.write(OmegaConf.to_yaml(cfg, resolve=True))
            os.replace(name, self.configuration)
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {self.path}: {error.strerror}; set run_folder to another"
            ) from error

    def logger(self, last: Path | None) -> TensorBoardLogger:
        """Return TensorBoard's logger; what the run logged after the checkpoint that it goes on from is left out."""
        step = torch.load(last, mmap=True, weights_only=True)["global_step"] if last else 0
        return TensorBoardLogger(self.path, name="", version=self.logs.name, purge_step=step)

    def checkpoint_to_resume(self, recipe: NetRecipe, cfg: DictConfig) -> Path | None:
        """Return the last checkpoint, if there is one to go on from. To be called before `prepare`.

        Raises:
            UserError: it is of another network, other classes or another training recipe than `recipe` and `cfg`; or
                there are results, and resume=false.
        """
        if _overwrites(cfg):
            return None
        if not (cfg.resume or _submitted_again()) and (found := [path.name for path in self._results if path.exists()]):
            raise UserError(
                f"{self.path} holds results ({', '.join(found)}); choose another name=..., resume=true to go on from "
                "them or overwrite=true to remove them"
            )
        if not self.last.exists():
            return None
        old = recipe_from_plain(load_checkpoint(self.last)[RECIPE_KEY])
        different = _differences(recipe_to_plain(old), recipe_to_plain(recipe))
        if self.configuration.is_file():
            different += _differences(_training(OmegaConf.load(self.configuration)), _training(cfg))
        if different:
            raise UserError(
                f"the run in {self.path} has another recipe ({'; '.join(different)}); choose another name=..., "
                f"and init_from={self.last} to start from its weights"
            )
        return self.last

    @property
    def _results(self) -> tuple[Path, ...]:
        return self.last, self.best, self.logs

    def _remove_results(self) -> None:
        for path in (*self._results, self.configuration):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _submitted_again() -> bool:
    """Whether SLURM has started this job before, whose own results these are."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _overwrites(cfg: DictConfig) -> bool:
    return cfg.overwrite and not _submitted_again()


def _training(cfg: DictConfig | ListConfig) -> dict[str, Any]:
    optimizer = OmegaConf.select(cfg, "optimizer") or {}
    return {key: OmegaConf.select(cfg, key) for key in _TRAINING} | {f"optimizer.{k}": v for k, v in optimizer.items()}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Tell of each key whose value differs what it was and is; of the class names, the first that differs."""
    changed = {key: (old.get(key), new[key]) for key in new if old.get(key) != new[key]}
    was, now = changed.pop("class_names", (None, None))
    lines = [f"{key} was {before}, is {after}" for key, (before, after) in changed.items()]
    if was and now and len(was) == len(now):
        number = next(i for i in range(len(now)) if was[i] != now[i])
        lines.append(f"class {number} was {was[number]}, is {now[number]}")
    return lines


def opening_lines(folder: RunFolder, net: SPPNet, data: ImageNetDataModule) -> str:
    """Return what a run is about to do."""
    parameters = sum(parameter.numel() for parameter in net.parameters())
    pooling = f"SPP {net.pool.levels}" if net.recipe.pooling == "spp" else "no SPP"
    return (
        f"{net.recipe.name}, {pooling}, {parameters:,} parameters; {data.root}: {len(data.train_files):,} images to "
        f"train on, {len(data.val_files):,} to validate, {net.num_classes} classes; sizes {data.sizes}; {folder.path}"
    )


def closing_lines(folder: RunFolder, cfg: DictConfig, validation_errors: list[float]) -> str:
    """Return what a finished run tells: its best error, where things lie and the commands to type next."""
    if not validation_errors:
        return f"Stopped before the end of the first epoch; there is no checkpoint in {folder.path} yet"
    lowest = min(validation_errors)
    epoch = validation_errors.index(lowest)
    protocols = "crop1,crop10,full1,map10" if cfg.model.pooling == "spp" else "crop1,crop10"
    test = ["eval.py", f"ckpt={folder.best}", f"data={cfg.data.kind}", f"data.root={cfg.data.root}"]
    return "\n".join(
        (
            f"\nLowest validation top-1 error: {lowest:.2f} % (epoch {epoch} of {len(validation_errors)}, from 0)",
            f"Checkpoints: {folder.best} {folder.last}",
            f"Curves:      tensorboard --logdir {shlex.quote(str(folder.logs))}",
            f"Test it:     python {shlex.join([*test, f'protocol=[{protocols}]'])}",
        )
    )


def result(folder: RunFolder, validation_errors: list[float]) -> dict[str, Any]:
    """Return the lowest validation top-1 error of a run and its epoch, for the table of several runs."""
    lowest = min(validation_errors, default=None)
    epoch = None if lowest is None else validation_errors.index(lowest)
    return {"run_folder": str(folder.path), "top1_error": lowest, "epoch": epoch}
