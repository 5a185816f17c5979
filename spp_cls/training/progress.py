"""The progress bar of training: images per second and the errors so far."""

import math
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from spp_cls.training.module import LitClassifier

# Reading a metric synchronises with the device.
_SECONDS_BETWEEN_READINGS = 1.0


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with the errors counted so far in this epoch instead of raw metrics."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self._shown: dict[str, Any] = {}
        self._read_at = -math.inf
        self._start = 0.0
        self._images = 0

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Draw the bar, also where a run resumes inside an epoch, whose start Lightning does not announce."""
        super().on_train_start(trainer, *args)
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer, *args)

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Draw the bar of the epoch and start its clock."""
        super().on_train_epoch_start(trainer, *args)
        self._start = time.perf_counter()
        self._images = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of the batch."""
        self._images += len(batch.labels) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        assert isinstance(pl_module, LitClassifier)
        if trainer.validating or trainer.sanity_checking:
            return {}
        now = time.perf_counter()
        if now - self._read_at < _SECONDS_BETWEEN_READINGS:
            return self._shown
        self._read_at = now
        self._shown = {}
        if metrics := pl_module.train_counts.compute_local():
            self._shown["images/s"] = f"{self._images / (now - self._start):.0f}"
            self._shown["loss"] = f"{metrics['loss']:.3f}"
            self._shown["top-1 error"] = f"{metrics['top1_error']:.1f} %"
        if pl_module.validation_errors:
            self._shown["val top-1 error"] = f"{pl_module.validation_errors[-1]:.2f} %"
        return self._shown
