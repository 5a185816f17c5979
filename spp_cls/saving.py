"""When a run saves its checkpoints, when it leaves, and when it must not go on."""

import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from spp_cls.errors import UserError
from spp_cls.module import LitClassifier
from spp_cls.run_folder import RunFolder
from spp_cls.stop_signals import StopSignals


class Saving(Checkpoint):
    """Keeps `last` (every so many minutes or steps, before validation and after it) and `best` (lowest top-1 error).

    A signal that asks to stop saves and leaves with 128 and the signal's number as the status. Losses and weights
    that are not finite end the run and are never saved. They are looked at when the loss is logged and before each
    checkpoint, because looking waits for the device; several processes agree on what to do at the same moments.

    Raises:
        UserError: a loss or a weight was not finite.
    """

    def __init__(self, folder: RunFolder, every_minutes: float | None, every_steps: int | None) -> None:
        self.folder = folder
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self._signals = StopSignals()
        self._step = 0
        self._saved_step: int | None = None
        self._saved_at = 0.0
        self._hand_over: Callable[[], Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the signals over before processes that read images are started."""
        self._signals.install()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM over from Lightning, which would leave without saving; start the clock."""
        self._signals.install()
        self._step = trainer.global_step
        self._saved_step = self._step or None
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save and leave where it is time to, but at the end of an epoch only once the epoch's hooks come."""
        step = trainer.global_step
        if step == self._step:
            # Gradients are still being added up.
            return
        self._step = step
        logged = step % cast(Any, trainer).log_every_n_steps == 0
        of_step = bool(self.every_steps) and step % cast(int, self.every_steps) == 0
        if trainer.world_size > 1 and not (logged or of_step):
            return
        stop, overdue = self._agreed(trainer)
        save = (stop or overdue or of_step) and not trainer.is_last_batch
        if save or logged:
            self._check_losses(trainer, pl_module)
        if save:
            self._save(trainer, pl_module)
            if stop:
                self._leave(trainer, stop)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the trained epoch, so that to stop during validation costs no training."""
        self._save(trainer, pl_module)
        if stop := self._agreed(trainer)[0]:
            self._leave(trainer, stop)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Leave, as all is saved."""
        if self._signals.received:
            self._leave(trainer, self._signals.received)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch with its validation error."""
        errors = cast(LitClassifier, pl_module).validation_errors
        if errors and errors[-1] < min(errors[:-1], default=float("inf")):
            self._save(trainer, pl_module, best=True)
        self._save(trainer, pl_module)
        if stop := self._agreed(trainer)[0]:
            self._leave(trainer, stop)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make a run that goes on from before a validation begin with that validation."""
        if trainer.validating:
            # So Lightning marks a validation that was stopped in its first batch; without the mark it leaves it out.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save after all where the signal also ended a process that reads images; give the signals back."""
        stop, self._signals.received = self._signals.received, None
        self._signals.restore()
        between_steps = trainer.training and trainer.world_size == 1 and trainer.global_step > 0
        if stop and isinstance(exception, UserError) and between_steps:
            self._save(trainer, pl_module)
            self._leave(trainer, stop)

    def leave(self) -> None:
        """Give the signals back after the run, and let a launcher whose signal stopped it act.

        submitit submits the job again, from its first process, which ends all of them.
        """
        # Lightning puts back what it found, which was installed already.
        self._signals.restore()
        if self._hand_over:
            self._hand_over()
            # SLURM may end the first process where another one fails.
            sys.exit(0)

    def _agreed(self, trainer: pl.Trainer) -> tuple[signal.Signals | None, bool]:
        """Return the signal that any process received, and whether the last checkpoint is too old for any."""
        waited = time.monotonic() - self._saved_at
        overdue = self.every_minutes is not None and waited >= 60 * self.every_minutes
        number, old = _largest(trainer, self._signals.received or 0, int(overdue))
        return signal.Signals(number) if number else None, bool(old)

    def _check_losses(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        first = cast(LitClassifier, module).first_step_without_a_loss()
        # The first over all processes: the largest negative one.
        (found,) = _largest(trainer, -sys.maxsize if first is None else -first)
        if found != -sys.maxsize:
            self._refuse(trainer, f"the loss of step {-found}")

    def _refuse(self, trainer: pl.Trainer, what: str) -> NoReturn:
        if not trainer.is_global_zero:
            sys.exit(1)
        saved = f"{self.folder.last} (step {self._saved_step})" if self._saved_step else "none yet"
        raise UserError(
            f"{what} (epoch {trainer.current_epoch}) is not finite; set a smaller optimizer.learning_rate or a "
            f"trainer.gradient_clip_val; the last good checkpoint: {saved}"
        )

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, best: bool = False) -> None:
        self._check_losses(trainer, module)
        if not torch.stack([parameter.isfinite().all() for parameter in module.parameters()]).all():
            self._refuse(trainer, f"a weight after step {trainer.global_step}")
        for logger in trainer.loggers:
            # What was logged before the checkpoint is not logged again after it.
            logger.save()
        trainer.save_checkpoint(self.folder.best if best else self.folder.last)
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def _leave(self, trainer: pl.Trainer, stop: signal.Signals) -> NoReturn:
        if trainer.is_global_zero:
            print(
                f"\nStopped by {stop.name} after step {trainer.global_step} (epoch {trainer.current_epoch}); "
                f"{self.folder.last} is saved, and the same command goes on from there",
                flush=True,
            )
        if handler := self._signals.handler_before(stop):
            self._hand_over = partial(handler, stop, None)
        sys.exit(128 + stop)


def _largest(trainer: pl.Trainer, *numbers: int) -> list[int]:
    """Return the largest of each number over all processes."""
    if trainer.world_size == 1:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.int64, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return values.tolist()
