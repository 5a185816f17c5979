"""The Lightning module: the paper's training recipe around a network."""

import time
from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import make_grid

from spp_cls.checkpoint import RECIPE_KEY, recipe_to_plain
from spp_cls.counts import Counts
from spp_cls.data.batch import Batch
from spp_cls.errors import UserError
from spp_cls.models.net import SPPNet
from spp_cls.schedule import drops_at_milestones, drops_on_plateau

_ERRORS_KEY = "validation_errors"


class LitClassifier(pl.LightningModule):
    """Cross entropy, SGD with momentum, biases at twice the rate without decay: section 3.1 and AlexNet.

    The rate is divided by 10 twice, on a plateau of the validation top-1 error or at fixed milestones. Logged each
    epoch: loss, top-1 and top-5 error of training and validation, rate, image size, images per second, and the
    filters of conv1 as a picture.

    Raises:
        UserError: another schedule than plateau or milestones.
    """

    def __init__(
        self,
        net: SPPNet,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: Literal["plateau", "milestones"] = "plateau",
        patience: int = 5,
        milestones: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if schedule not in ("plateau", "milestones"):
            raise UserError(f"the schedule of the learning rate is plateau or milestones, not {schedule!r}")
        # Convolutions on the CPU and on tensor cores are fastest in this layout, in which the batches come.
        self.net = net.to(memory_format=torch.channels_last)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.patience = patience
        self.milestones = tuple(milestones)
        self.train_counts = Counts()
        self.val_counts = Counts()
        self.validation_errors: list[float] = []
        self.replaced = 0
        self._image_size = 0
        self._epoch_start = 0.0
        self._epoch_seconds = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Map N x 3 x H x W images, pixels minus mean, to logits."""
        return self.net(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over weights, which decay, and biases, which do not and learn at twice the rate."""
        weights = [parameter for parameter in self.net.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in self.net.parameters() if parameter.ndim == 1]
        groups: list[dict[str, Any]] = [
            {"params": weights, "rate_factor": 1, "weight_decay": self.weight_decay},
            {"params": biases, "rate_factor": 2, "weight_decay": 0.0},
        ]
        # Lightning cannot clip gradients that the fused step itself unscales.
        scaled = self._trainer is not None and self.trainer.precision == "16-mixed"
        fused = not (scaled and self.trainer.gradient_clip_val)
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum, fused=fused)

    def rate_of_epoch(self, epoch: int) -> float:
        """Return the learning rate of the weights in an epoch, given the validation errors before it."""
        if self.schedule == "milestones":
            drops = drops_at_milestones(epoch, self.milestones)
        else:
            drops = drops_on_plateau(self.validation_errors[:epoch], self.patience, times=2)
        return self.learning_rate / 10**drops

    def on_train_epoch_start(self) -> None:
        """Set the epoch's learning rate and start its counts."""
        rate = self.rate_of_epoch(self.current_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.train_counts.reset()
        self.replaced = 0
        self._epoch_start = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross entropy of a batch."""
        logits = self.net(batch.images)
        loss = F.cross_entropy(logits, batch.labels)
        self.train_counts.update(logits, batch.labels, loss)
        self.replaced += len(batch.replaced)
        self.log("train/step_loss", loss, batch_size=len(batch.labels))
        self._image_size = batch.images.shape[-1]
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Read the clock of the training steps, which stops before validation."""
        self._epoch_seconds = time.perf_counter() - self._epoch_start

    def on_validation_epoch_start(self) -> None:
        """Start the counts of validation."""
        self.val_counts.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the right answers of a batch."""
        self.val_counts.update(self.net(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log the validation errors over all processes, and keep the top-1 error for the schedule."""
        figures = self.val_counts.over_processes()
        if self.trainer.sanity_checking:
            return
        self.validation_errors.append(figures["top1_error"])
        images = figures.pop("images")
        self.log_dict({f"val/{name}": value for name, value in figures.items()}, batch_size=int(images))

    def on_train_epoch_end(self) -> None:
        """Log the epoch: errors, rate, image size, speed and the filters of conv1."""
        figures = self.train_counts.over_processes()
        images = figures.pop("images")
        logged = {f"train/{name}": value for name, value in figures.items()}
        logged["learning_rate"] = self.rate_of_epoch(self.current_epoch)
        logged["image_size"] = self._image_size
        logged["images_per_second"] = images / self._epoch_seconds
        self.log_dict(logged)
        self.log("train/undecodable_images", float(self.replaced), sync_dist=True, reduce_fx="sum")
        if isinstance(self.logger, TensorBoardLogger) and self.trainer.is_global_zero:
            filters = filter_picture(self.net)
            self.logger.experiment.add_image("conv1/filters", filters, self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the network, and the errors that the schedule goes by."""
        checkpoint[RECIPE_KEY] = recipe_to_plain(self.net.recipe)
        checkpoint[_ERRORS_KEY] = self.validation_errors

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the errors of the epochs before."""
        self.validation_errors = list(checkpoint[_ERRORS_KEY])


def filter_picture(net: SPPNet) -> Tensor:
    """Draw the first layer's filters as a grid, 3 x H x W, each stretched to 0..1."""
    conv1 = net.backbone.get_submodule("conv1")
    assert isinstance(conv1, nn.Conv2d)
    filters = conv1.weight.detach().float().cpu().contiguous()
    return make_grid(filters[:, :3], nrow=12, padding=1, normalize=True, scale_each=True)
