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
from spp_cls.data.randomness import Purpose, generator
from spp_cls.errors import UserError
from spp_cls.models.net import SPPNet
from spp_cls.schedule import drops_at_milestones, drops_on_plateau

_ERRORS_KEY = "validation_errors"
_EPOCH_KEY = "epoch_so_far"
_FIGURES_KEY = "epoch_figures"


class LitClassifier(pl.LightningModule):
    """Cross entropy, SGD with momentum, biases at twice the rate without decay: section 3.1 and AlexNet.

    The rate is divided by 10 twice, on a plateau of the validation top-1 error or at fixed milestones. Logged each
    epoch: loss, top-1 and top-5 error of training and validation, rate, image size, images per second, and the
    filters of conv1 as a picture.

    A checkpoint at any step carries all that the rest of the run depends on: what is dropped in a step is a function
    of `seed` and the step, and what the epoch has counted is saved. Figures of an epoch are in its checkpoint, too,
    because Lightning writes them to the log only after it.

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
        seed: int = 0,
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
        self.seed = seed
        self.train_counts = Counts()
        self.val_counts = Counts()
        self.validation_errors: list[float] = []
        self.replaced = 0
        self.epoch_start = 0.0
        self._image_size = 0
        self._epoch_seconds = 0.0
        self._figures: dict[str, float] = {}
        self._restored: dict[str, Any] = {}

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

    def on_fit_start(self) -> None:
        """Write the figures of an epoch that ended with the checkpoint."""
        if self._figures and self.logger:
            figures = dict(self._figures)
            self.logger.log_metrics(figures, int(figures.pop("step")))

    def on_train_start(self) -> None:
        """Take up the epoch that a checkpoint was saved in."""
        self._first_step = self.trainer.global_step
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        self._finite_batches = torch.zeros((), dtype=torch.int64, device=self.device)
        if self._restored:
            own = slice(self.global_rank, None, self.trainer.world_size)
            self.train_counts.load(self._restored["counts"][own], self.device)
            self.replaced = sum(self._restored["replaced"][own])
            self._image_size = self._restored["image_size"]
            self._epoch_seconds = self._restored["seconds"]
            self.epoch_start = time.perf_counter() - self._epoch_seconds

    def on_train_epoch_start(self) -> None:
        """Set the epoch's learning rate and start its counts; not called where a run goes on inside an epoch."""
        rate = self.rate_of_epoch(self.current_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.train_counts.reset()
        self.replaced = 0
        self._figures = {}
        self.epoch_start = time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw what the step drops out anew from the seed, the step and the process."""
        share = batch_idx * self.trainer.world_size + self.global_rank
        numbers = generator(Purpose.DROPOUT, self.seed, self.current_epoch, share)
        torch.manual_seed(int(numbers.integers(2**63)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross entropy of a batch."""
        logits = self.net(batch.images)
        loss = F.cross_entropy(logits, batch.labels)
        self.train_counts.update(logits, batch.labels, loss)
        self.replaced += len(batch.replaced)
        self._finite &= loss.detach().isfinite()
        self._finite_batches += self._finite
        trainer: Any = self.trainer
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self.logger and whole and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            # Now, as a checkpoint after this step comes before Lightning's own writing.
            self.logger.log_metrics({"train/step_loss": loss.item()}, trainer.global_step)
        self._image_size = batch.images.shape[-1]
        return loss

    def first_step_without_a_loss(self) -> int | None:
        """Return the first step, counted from 1, whose loss was not finite; waits for the device."""
        if self._finite:
            return None
        return self._first_step + int(self._finite_batches) // self.trainer.accumulate_grad_batches + 1

    def on_train_batch_end(self, *_: Any) -> None:
        """Read the clock of the training steps, which stops before validation."""
        self._epoch_seconds = time.perf_counter() - self.epoch_start

    def on_validation_epoch_start(self) -> None:
        """Start the counts of validation."""
        self.val_counts.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the right answers of a batch."""
        self.val_counts.update(self.net(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Count the validation errors over all processes, and keep the top-1 error for the schedule."""
        figures = self.val_counts.over_processes()
        if self.trainer.sanity_checking:
            return
        self.validation_errors.append(figures["top1_error"])
        images = figures.pop("images")
        self._figures = {f"val/{name}": value for name, value in figures.items()}
        self.log_dict(self._figures, batch_size=int(images), logger=False)

    def on_train_epoch_end(self) -> None:
        """Log the epoch: errors, rate, image size, speed and the filters of conv1."""
        figures = self.train_counts.over_processes()
        images = figures.pop("images")
        self._figures |= {f"train/{name}": value for name, value in figures.items()} | {
            "learning_rate": self.rate_of_epoch(self.current_epoch),
            "image_size": float(self._image_size),
            "images_per_second": images / self._epoch_seconds,
            "train/undecodable_images": float(sum(_of_all_processes(self.replaced))),
            "epoch": float(self.current_epoch),
            # After those of the steps before, which a checkpoint of the last step does not take back.
            "step": float(self.trainer.global_step),
        }
        self.log_dict(self._figures)
        if isinstance(self.logger, TensorBoardLogger) and self.trainer.is_global_zero:
            filters = filter_picture(self.net)
            self.logger.experiment.add_image("conv1/filters", filters, self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the network, the errors that the schedule goes by, and the epoch so far."""
        checkpoint[RECIPE_KEY] = recipe_to_plain(self.net.recipe)
        checkpoint[_ERRORS_KEY] = self.validation_errors
        checkpoint[_FIGURES_KEY] = self._figures
        checkpoint[_EPOCH_KEY] = {
            "counts": _of_all_processes(self.train_counts.state()),
            "replaced": _of_all_processes(self.replaced),
            "image_size": self._image_size,
            "seconds": self._epoch_seconds,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the errors of the epochs before, and the epoch so far."""
        self.validation_errors = list(checkpoint[_ERRORS_KEY])
        self._figures = dict(checkpoint.get(_FIGURES_KEY, {}))
        self._restored = dict(checkpoint.get(_EPOCH_KEY, {}))


def _of_all_processes(value: Any) -> list[Any]:
    """Return the value of every process, in the order of their numbers."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def filter_picture(net: SPPNet) -> Tensor:
    """Draw the first layer's filters as a grid, 3 x H x W, each stretched to 0..1."""
    conv1 = net.backbone.get_submodule("conv1")
    assert isinstance(conv1, nn.Conv2d)
    filters = conv1.weight.detach().float().cpu().contiguous()
    return make_grid(filters[:, :3], nrow=12, padding=1, normalize=True, scale_each=True)
