"""What a run logs: metrics of each epoch, the loss of steps and pictures of filters."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torchvision.utils import make_grid

from spp_cls.cli.collectives import all_gather
from spp_cls.data.loading.batch import Batch
from spp_cls.models.net import SPPNet
from spp_cls.training.module import LitClassifier


class EpochMetrics(Callback):
    """Logs each epoch: loss and errors of training and validation, learning rate, image size, images per second.

    Checkpoints carry what the epoch has measured so far, and the metrics of an epoch that ended with them: these are
    of the step from which a run that resumes logs anew.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}
        self._image_size = 0
        self._undecodable = 0
        self._seconds = 0.0
        self._start = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the metrics of an epoch that ended with the checkpoint."""
        self._log(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the clock go on from where the checkpoint was saved."""
        self._start = time.perf_counter() - self._seconds
        if not trainer.is_global_zero:
            # The checkpoint has those of all processes together.
            self._undecodable = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch; Lightning does not call this where a run resumes inside an epoch."""
        self._metrics = {}
        self._undecodable = 0
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Read the clock of the training steps, which stops before validation."""
        self._seconds = time.perf_counter() - self._start
        self._undecodable += len(batch.replaced)
        self._image_size = min(batch.images.shape[-2:])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the metrics of validation."""
        assert isinstance(pl_module, LitClassifier)
        metrics = pl_module.val_counts.compute()
        if not trainer.sanity_checking:
            images = int(metrics.pop("images"))
            self._metrics = {f"val/{name}": value for name, value in metrics.items()}
            # For callbacks that watch them, such as EarlyStopping.
            pl_module.log_dict(self._metrics, batch_size=images, logger=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the metrics of the epoch."""
        assert isinstance(pl_module, LitClassifier)
        metrics = pl_module.train_counts.compute()
        images = metrics.pop("images")
        self._metrics |= {f"train/{name}": value for name, value in metrics.items()} | {
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "image_size": float(self._image_size),
            "images_per_second": images / self._seconds,
            "train/undecodable_images": float(sum(all_gather(self._undecodable))),
            "epoch": float(trainer.current_epoch),
            "step": float(trainer.global_step),
        }
        pl_module.log_dict(self._metrics, logger=False)
        self._log(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return what the rest of the epoch needs, over all processes."""
        return {
            "metrics": self._metrics,
            "image_size": self._image_size,
            "undecodable": sum(all_gather(self._undecodable)),
            "seconds": self._seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epoch of a checkpoint."""
        self._metrics = dict(state_dict["metrics"])
        self._image_size = state_dict["image_size"]
        self._undecodable = state_dict["undecodable"]
        self._seconds = state_dict["seconds"]

    def _log(self, trainer: pl.Trainer) -> None:
        # A checkpoint of another callback may have been written between validation and the end of the epoch.
        if "step" in self._metrics:
            metrics = dict(self._metrics)
            step = int(metrics.pop("step"))
            for logger in trainer.loggers:
                logger.log_metrics(metrics=metrics, step=step)


def is_logged(trainer: pl.Trainer) -> bool:
    """Return whether the loss of the step before is logged: that of every trainer.log_every_n_steps-th; 0: of none."""
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return interval > 0 and trainer.global_step % interval == 0


class StepLoss(Callback):
    """Logs the loss of every trainer.log_every_n_steps-th step."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the loss; at once, as a checkpoint may follow from which a run resumes behind this step."""
        parts = trainer.accumulate_grad_batches
        if trainer.loggers and is_logged(trainer) and (batch_idx + 1) % parts == 0:
            # Lightning has divided it.
            loss = outputs["loss"].item() * parts
            for logger in trainer.loggers:
                logger.log_metrics(metrics={"train/step_loss": loss}, step=trainer.global_step - 1)


class EpochPicture(Callback):
    """Shows a picture in the loggers that take pictures, TensorBoard's; without one, nothing is drawn.

    A subclass gives its `name` and draws it.
    """

    name: str

    def draw(self, trainer: pl.Trainer, module: LitClassifier) -> Any:
        """Return the picture after an epoch, 3 x H x W, floats of 0..1 or uint8; None: no picture."""
        raise NotImplementedError

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the picture."""
        assert isinstance(pl_module, LitClassifier)
        loggers = trainer.loggers if trainer.is_global_zero else []
        found = [getattr(getattr(logger, "experiment", None), "add_image", None) for logger in loggers]
        takers = [add_image for add_image in found if add_image is not None]
        picture = self.draw(trainer, pl_module) if takers else None
        for add_image in takers if picture is not None else []:
            add_image(self.name, picture, trainer.current_epoch)


class FilterPictures(EpochPicture):
    """Shows the filters of the first convolution after each epoch."""

    name = "first_conv/filters"

    def draw(self, trainer: pl.Trainer, module: LitClassifier) -> Tensor | None:
        """Draw the filters as a grid, if the first layer is a convolution."""
        backbone = module.net.backbone
        is_conv = isinstance(backbone.get_submodule(backbone.first_conv), nn.Conv2d)
        return draw_filters(module.net) if is_conv else None


def draw_filters(net: SPPNet) -> Tensor:
    """Draw the filters of the first convolution as a grid, 3 x H x W, each stretched to 0..1."""
    conv = net.backbone.get_submodule(net.backbone.first_conv)
    assert isinstance(conv, nn.Conv2d)
    filters = conv.weight.detach().float().cpu().contiguous()
    # Of other numbers of channels than red, green and blue, the first in grey.
    channels = 3 if filters.shape[1] >= 3 else 1
    return make_grid(filters[:, :channels], nrow=12, padding=1, normalize=True, scale_each=True)
