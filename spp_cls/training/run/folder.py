"""The folder of a run: its configuration, checkpoints and logs; the same command finds it again and resumes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Self

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from spp_cls.cli.errors import UserError
from spp_cls.cli.files import replace_atomically
from spp_cls.models.checkpoint import load_checkpoint
from spp_cls.models.config import NetConfig
from spp_cls.training.loggers import CSV_FILE, LOG_FILES, MLFLOW_FOLDER, TENSORBOARD_FOLDER, WANDB_FOLDER
from spp_cls.training.run.comparison import check_resumable, list_differences
from spp_cls.training.run.lock import RunLock
from spp_cls.training.run.overwriting import Overwriting

# Bytes of a part of a path, on Linux and macOS.
_LONGEST_NAME = 255


class RunFolder:
    """Paths of a run. As a context manager it keeps other runs out of the folder.

    Raises:
        UserError: if another run is training there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RunLock(path)
        self._overwriting = Overwriting(path)

    def __enter__(self) -> Self:
        # A folder without results is not touched before `prepare`.
        is_used = self._overwriting.is_unfinished or any(path.exists() for path in (*self._results, self.config))
        if is_used and _is_first_process():
            with self._explain_errors():
                self._lock.acquire()
                self._overwriting.finish()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

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
        return self.last, self.best, *self._log_folders

    @property
    def _log_folders(self) -> tuple[Path, ...]:
        return self.tensorboard, self.csv.parent, self.path / WANDB_FOLDER, self.path / MLFLOW_FOLDER

    def prepare(self, cfg: DictConfig) -> None:
        """Make the folder, and write the run's configuration into it.

        The first process does it for all, once nothing else can go wrong. Results that are to be overwritten stay
        until `finish_overwriting`.

        Raises:
            UserError: if it cannot be made or written, or another run has been started there meanwhile.
        """
        if not _is_first_process():
            return
        overwrite = self._should_overwrite(cfg)
        with self._explain_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock.acquire() and self.last.exists():
                raise UserError(f"another run has trained in {self.path} meanwhile; start this one again")
            for path in (self.last, self.best, self.csv, self.config):
                # Of a process that was killed while it wrote.
                for leftover in path.parent.glob(f".*{path.name}-*"):
                    leftover.unlink()
            if overwrite:
                self._overwriting.begin((self.last, self.best), self._list_logs())
            else:
                self._overwriting.take_back(self._list_logs())
            with replace_atomically(self.find_place(self.config)) as unfinished:
                unfinished.write_text(OmegaConf.to_yaml(cfg, resolve=True))

    def find_place(self, path: Path) -> Path:
        """Return where a new checkpoint or log is to be written: at `path`, unless it overwrites old results."""
        return self._overwriting.find_place(path)

    def finish_overwriting(self) -> None:
        """Let new results take the place of old ones, if the new run has written its first checkpoint.

        Raises:
            OSError: if a file cannot be moved or removed.
        """
        if _is_first_process():
            self._overwriting.finish()

    def find_checkpoint(self, config: NetConfig, cfg: DictConfig, num_images: int) -> Path | None:
        """Return the last checkpoint, or the best one where that is missing, to resume from. Call it before `prepare`.

        Raises:
            UserError: if its network, its training or its number of training images differ from `config`, `cfg` and
                `num_images`, it was trained for more epochs, or there are results and resume=false.
        """
        if self._should_overwrite(cfg):
            return None
        found = [path.name for path in self._results if path.exists()]
        if found and not (cfg.resume or _is_slurm_restart()):
            raise UserError(
                f"{self.path} holds results ({', '.join(found)}); choose another name=..., resume=true to resume from "
                "them or overwrite=true to remove them"
            )
        if self._overwriting.is_unfinished:
            # The first process is about to put it in its place, and compares it.
            return self.last
        # Of an epoch that ended, the best checkpoint is written first; and a new run would write over it.
        newest = next((path for path in (self.last, self.best) if path.exists()), None)
        if newest is None:
            return None
        checkpoint = load_checkpoint(newest)
        check_resumable(checkpoint, newest)
        differences = list_differences(checkpoint, self.config, config, cfg, num_images)
        if differences:
            raise UserError(
                f"the run in {self.path} was started with other keys ({'; '.join(differences)}); choose another "
                f"name=..., and init_from={newest} to start from its weights"
            )
        epochs = checkpoint.get("epoch", 0) + 1
        if epochs > cfg.trainer.max_epochs:
            raise UserError(
                f"the run in {self.path} is in its epoch {epochs} already; set trainer.max_epochs to {epochs} or more"
            )
        return newest

    def _should_overwrite(self, cfg: DictConfig) -> bool:
        """Return whether to start anew; a job that SLURM has started again does only if it has no checkpoint yet."""
        return cfg.overwrite and (not _is_slurm_restart() or self._overwriting.is_pending)

    def _list_logs(self) -> list[Path]:
        return [path for pattern in LOG_FILES for path in self.path.glob(pattern) if path.is_file()]

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {self.path}: {error.strerror}; set run_folder to another"
            ) from error


def check_names(name: str, run_folder: str) -> None:
    """Check that the run's name and folder can be those of files, and that the name does not leave runs/.

    Raises:
        UserError: if they cannot, or it does.
    """
    parts = PurePath(name).parts
    if not parts or ".." in parts or PurePath(name).is_absolute():
        raise UserError(f"name={name!r} is not a folder below runs/; set run_folder to a folder elsewhere")
    for key, value in (("name", name), ("run_folder", run_folder)):
        if not value:
            raise UserError(f"{key} is empty; set it to a folder for the run")
        if not value.isprintable():
            raise UserError(f"{key}={value!r} has characters that cannot be printed; choose another")
        longest = max(map(len, map(os.fsencode, PurePath(value).parts)), default=0)
        if longest > _LONGEST_NAME:
            raise UserError(f"{key} has a part of {longest} bytes, and file systems take {_LONGEST_NAME}; shorten it")


def read_step(checkpoint: Path | None) -> int:
    """Return the number of steps that a checkpoint was trained for; 0 without one."""
    return torch.load(checkpoint, mmap=True, weights_only=True)["global_step"] if checkpoint else 0


def _is_slurm_restart() -> bool:
    """Return whether SLURM has started this job before: the results are its own."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _is_first_process() -> bool:
    # Lightning learns the rank of processes that were started by hand, a node each, only from its Trainer.
    return not getattr(rank_zero_only, "rank", 0) and os.environ.get("NODE_RANK", "0") == "0"
