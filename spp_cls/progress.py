"""The progress bar of training: images per second and the errors so far."""

import math
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from spp_cls.module import LitClassifier

# Reading a figure waits for the device.
_SECONDS_BETWEEN_READINGS = 1.0


class Progress(TQDMProgressBar):
    """Lightning's bar, with the errors counted so far in this epoch instead of raw metrics."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self._metrics: dict[str, Any] = {}
        self._read = -math.inf

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Draw the bar, also where a run goes on inside an epoch, whose start has been."""
        super().on_train_start(trainer, *args)
        if trainer.fit_loop.restarted_mid_epoch:
            super().on_train_epoch_start(trainer, *args)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        assert isinstance(pl_module, LitClassifier)
        if trainer.validating or trainer.sanity_checking:
            return {}
        if time.perf_counter() - self._read < _SECONDS_BETWEEN_READINGS:
            return self._metrics
        self._read = time.perf_counter()
        metrics: dict[str, Any] = {}
        figures = pl_module.train_counts.so_far()
        if figures:
            seconds = time.perf_counter() - pl_module.epoch_start
            metrics["images/s"] = f"{figures['images'] * trainer.world_size / seconds:.0f}"
            metrics["loss"] = f"{figures['loss']:.3f}"
            metrics["top-1 error"] = f"{figures['top1_error']:.1f} %"
        if pl_module.validation_errors:
            metrics["val top-1 error"] = f"{pl_module.validation_errors[-1]:.2f} %"
        self._metrics = metrics
        return metrics
