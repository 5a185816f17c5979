"""The Lightning module around a network: loss, optimizer and counts."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from spp_cls.cli.collectives import all_gather
from spp_cls.data.loading.batch import Batch
from spp_cls.data.transforms.randomness import Purpose, create_generator
from spp_cls.models.checkpoint import CONFIG_KEY, convert_config_to_dict
from spp_cls.models.net import SPPNet
from spp_cls.training.counts import Counts
from spp_cls.training.losses import CrossEntropy, Loss
from spp_cls.training.norms import average_buffers
from spp_cls.training.optimization import OptimizerFactory, create_optimizer

_ERRORS_KEY = "validation_errors"
_COUNTS_KEY = "train_counts"


def is_part_of_run(trainer: pl.Trainer) -> bool:
    """Return whether a validation belongs to a run: not Lightning's sanity check, nor trainer.validate."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


class LitClassifier(pl.LightningModule):
    """A loss, an optimizer, and counts of correct answers in training and validation.

    `optimizer` is called with the parameter groups and returns a torch optimizer; None: SGD as in the paper; the rates
    of the backbone are `backbone_lr_scale` times its rates. `loss` is called with logits and targets; None: cross
    entropy. Which values dropout drops in a step is a function of `seed` and the step.

    A checkpoint at any step carries the configuration of the network, the validation errors so far and the counts of
    the epoch so far.
    """

    def __init__(
        self,
        net: SPPNet,
        optimizer: OptimizerFactory | None = None,
        seed: int = 0,
        loss: Loss | None = None,
        backbone_lr_scale: float = 1.0,
    ) -> None:
        super().__init__()
        # Convolutions on the CPU and on tensor cores are fastest in this layout, in which the batches come. Lightning
        # trains in the mode that it finds: a network of load_net would have no dropout.
        self.net = net.to(memory_format=torch.channels_last).train()
        self.seed = seed
        self.train_counts = Counts()
        self.val_counts = Counts()
        self.validation_errors: list[float] = []
        self._create_optimizer = optimizer
        self._backbone_lr_scale = backbone_lr_scale
        self._compute_loss = loss or CrossEntropy()
        self._restored_counts: list[dict[str, Any]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Map N x in_chans x H x W images, normalised, to logits."""
        return self.net(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer over the network's parameter groups."""
        return create_optimizer(self.net, self._create_optimizer, self._backbone_lr_scale)

    def setup(self, stage: str) -> None:
        """Forget the errors of an earlier run of the same module; a checkpoint is restored after that."""
        if stage == "fit" and self.trainer.current_epoch == 0:
            self.validation_errors = []

    def on_fit_start(self) -> None:
        """Leave the buffers of each process to itself."""
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            # Each forward pass would wait for all processes, in validation too, where one may have no batch left.
            wrapped.broadcast_buffers = False

    def on_train_start(self) -> None:
        """Go on with the counts of the epoch that a checkpoint was saved in."""
        if self._restored_counts:
            local = self._restored_counts[self.global_rank :: self.trainer.world_size]
            self.train_counts.load_state_dicts(local, self.device)
            self._restored_counts = []

    def on_train_epoch_start(self) -> None:
        """Start the counts of the epoch; Lightning does not call this where a run resumes inside an epoch."""
        self.train_counts.reset()
        self.val_counts.reset()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the seed, the step and the rank."""
        index = batch_idx * self.trainer.world_size + self.global_rank
        random = create_generator(Purpose.DROPOUT, self.seed, self.current_epoch, index)
        torch.manual_seed(int(random.integers(2**63)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch; of mixed images, the errors count against the label of the larger share."""
        logits = self.net(batch.images)
        loss = self._compute_loss(logits, batch.labels if batch.targets is None else batch.targets)
        self.train_counts.update(logits, batch.labels, loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start the counts of validation; every process then validates the same network."""
        self.val_counts.reset()
        average_buffers(self)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the correct answers of a batch."""
        self.val_counts.update(self.net(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Keep the top-1 error of a validation of the run, over all processes."""
        if is_part_of_run(self.trainer):
            self.validation_errors.append(self.val_counts.compute()["top1_error"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration of the network, the validation errors, and the counts of the epoch so far."""
        checkpoint[CONFIG_KEY] = convert_config_to_dict(self.net.config)
        checkpoint[_ERRORS_KEY] = self.validation_errors
        checkpoint[_COUNTS_KEY] = all_gather(self.train_counts.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the validation errors, and keep the counts until the device is known."""
        self.validation_errors = list(checkpoint[_ERRORS_KEY])
        self._restored_counts = list(checkpoint[_COUNTS_KEY])
