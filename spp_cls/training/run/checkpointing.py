"""When a run saves checkpoints and how they are written; when it stops early, and when it must not go on."""

import errno
import io
import os
import pickle
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from torch.distributed import ReduceOp

from spp_cls.cli.collectives import all_reduce
from spp_cls.cli.errors import UserError
from spp_cls.cli.files import replace_atomically
from spp_cls.training.logging import is_logged
from spp_cls.training.module import LitClassifier, is_part_of_run
from spp_cls.training.norms import average_buffers
from spp_cls.training.run.folder import RunFolder
from spp_cls.training.run.stop_signals import Preemption


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the earlier one, reads it back, and only then replaces the earlier one.

    Raises:
        OSError: if it cannot be written or read back, with its path; the earlier checkpoint is as it was.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint that `weights_only` loads."""
        # torch's own writer hides the system's error; a buffer lets it through.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replace_atomically(Path(path)) as unfinished:
            unfinished.write_bytes(buffer.getbuffer())
            _read_back(unfinished)


def _read_back(path: Path) -> None:
    """Compare the bytes with their check sums, and see that they are plain data."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise OSError(errno.EIO, f"it cannot be read back ({error})") from error
    if damaged:
        raise OSError(errno.EIO, f"it cannot be read back ({damaged} is damaged)")


class Checkpointing(Checkpoint):
    """Saves `last` (at intervals, before validation and after it) and `best` (lowest validation top-1 error).

    `every_minutes` and `every_steps` are the intervals; None: not. A signal that asks to stop makes the run save and
    exit with status 128 + the signal's number; train within handle_signals. A loss or weight that is not finite ends
    the run and is never saved. They are looked at when the loss is logged and before each checkpoint, because looking
    synchronises with the device; several processes agree on what to do at the same moments.

    Raises:
        UserError: if a loss or a weight is not finite, or if the trainer validates inside an epoch.
    """

    def __init__(self, folder: RunFolder, every_minutes: float | None = None, every_steps: int | None = None) -> None:
        self.folder = folder
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self._preemption = Preemption()
        self._step = 0
        self._saved_step: int | None = None
        self._saved_at = 0.0
        self._launcher_handler: Callable[[], Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Handle the signals before workers are started."""
        self._preemption.install()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning, which would exit without saving; start the clock."""
        # `best` would be of the end of the epoch, which nobody measured.
        validates_inside = trainer.val_check_batch != trainer.num_training_batches
        if trainer.enable_validation and (trainer.check_val_every_n_epoch is None or validates_inside):
            raise UserError("Checkpointing saves whole epochs; validate at their end, with val_check_interval=1.0")
        self._preemption.install()
        self._step = self._first_step = trainer.global_step
        self._saved_step = self._step or None
        self._saved_at = time.monotonic()
        self._validations = len(cast(LitClassifier, pl_module).validation_errors)
        self._is_finite = torch.ones((), dtype=torch.bool, device=pl_module.device)
        self._finite_batches = torch.zeros((), dtype=torch.int64, device=pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Save and stop if it is time to, but at the end of an epoch only in the hooks that follow it."""
        self._is_finite &= outputs["loss"].isfinite()
        self._finite_batches += self._is_finite
        step = trainer.global_step
        if step == self._step:
            # Gradients are still being accumulated.
            return
        self._step = step
        is_looked_at = is_logged(trainer)
        is_interval = bool(self.every_steps) and step % cast(int, self.every_steps) == 0
        if trainer.world_size > 1 and not (is_looked_at or is_interval):
            return
        stop, is_overdue = self._agree()
        save = (stop or is_overdue or is_interval) and not trainer.is_last_batch
        if save or is_looked_at:
            self._check_losses(trainer)
        if save:
            self._save(trainer, pl_module)
            if stop:
                self._exit(trainer, stop)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the trained epoch, so that stopping during validation costs no training."""
        if not is_part_of_run(trainer):
            return
        self._save(trainer, pl_module)
        if stop := self._agree()[0]:
            self._exit(trainer, stop)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop at once, as all is saved; several processes, which may have other numbers of batches, agree later."""
        if self._preemption.received and trainer.world_size == 1 and is_part_of_run(trainer):
            self._exit(trainer, self._preemption.received)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch with its validation error."""
        errors = cast(LitClassifier, pl_module).validation_errors
        # An epoch may have had no validation.
        is_validated = len(errors) > self._validations
        self._validations = len(errors)
        if is_validated and errors[-1] < min(errors[:-1], default=float("inf")):
            self._save(trainer, pl_module, best=True)
        self._save(trainer, pl_module)
        if stop := self._agree()[0]:
            self._exit(trainer, stop)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make a run that resumes from before a validation start with that validation."""
        if trainer.validating:
            # So Lightning marks a validation that was stopped in its first batch; without the mark it skips it.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save even if the signal also ended a worker, whose failure came first; put the handlers back."""
        stop, self._preemption.received = self._preemption.received, None
        self._preemption.restore()
        is_between_steps = trainer.training and trainer.world_size == 1 and trainer.global_step > 0
        if stop and isinstance(exception, UserError) and is_between_steps:
            self._save(trainer, pl_module)
            self._exit(trainer, stop)

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Put the earlier handlers of signals back after the run, and call the one whose signal stopped the run.

        That of submitit submits the job again, from its first process, which ends all of them.
        """
        try:
            yield
        finally:
            # Not in a hook: Lightning puts back what it found at the start, which is this callback's handler.
            self._preemption.restore()
            if self._launcher_handler:
                self._launcher_handler()
                # SLURM may end the first process if another one fails.
                sys.exit(0)

    def _agree(self) -> tuple[signal.Signals | None, bool]:
        """Return the signal that any process received, and whether any waited too long for a checkpoint."""
        waited = time.monotonic() - self._saved_at
        is_overdue = self.every_minutes is not None and waited >= 60 * self.every_minutes
        number, any_overdue = _reduce_max(self._preemption.received or 0, int(is_overdue))
        return signal.Signals(number) if number else None, bool(any_overdue)

    def _check_losses(self, trainer: pl.Trainer) -> None:
        first = sys.maxsize
        if not self._is_finite:
            first = self._first_step + int(self._finite_batches) // trainer.accumulate_grad_batches + 1
        # The first over all processes: the largest negative one.
        (found,) = _reduce_max(-first)
        if found != -sys.maxsize:
            self._refuse(trainer, f"the loss of step {-found}")

    def _refuse(self, trainer: pl.Trainer, value: str) -> NoReturn:
        if not trainer.is_global_zero:
            sys.exit(1)
        saved = f"{self.folder.last} (step {self._saved_step})" if self._saved_step else "none yet"
        raise UserError(
            f"{value} (epoch {trainer.current_epoch}) is not finite; set a smaller optimizer.lr or a "
            f"trainer.gradient_clip_val; the last good checkpoint: {saved}"
        )

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, best: bool = False) -> None:
        self._check_losses(trainer)
        average_buffers(module)
        if not torch.stack([parameter.isfinite().all() for parameter in module.parameters()]).all():
            self._refuse(trainer, f"a weight after step {trainer.global_step}")
        for logger in trainer.loggers:
            # A run that resumes does not log again what was logged before the checkpoint.
            logger.save()
        trainer.save_checkpoint(self.folder.find_place(self.folder.best if best else self.folder.last))
        self.folder.finish_overwriting()
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def _exit(self, trainer: pl.Trainer, stop: signal.Signals) -> NoReturn:
        if trainer.is_global_zero:
            print(
                f"\nStopped by {stop.name} after step {trainer.global_step} (epoch {trainer.current_epoch}); "
                f"{self.folder.last} is saved, and the same command resumes from there",
                flush=True,
            )
        if handler := self._preemption.find_earlier_handler(stop):
            self._launcher_handler = partial(handler, stop, None)
        sys.exit(128 + stop)


def _reduce_max(*numbers: int) -> list[int]:
    """Return the largest of each number over all processes."""
    return all_reduce(torch.tensor(numbers, dtype=torch.int64), ReduceOp.MAX).tolist()
