"""The losses of training: what a network's logits cost against labels or mixed targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import check_fields, key
from spp_cls.cli.targets import call_target, try_out

# (logits, targets) -> mean loss. Logits are N x classes; targets N labels or, where images were mixed, N x classes
# shares that sum to 1.
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy of the softmax; `label_smoothing` is the share of a target that all classes have in equal parts.

    Raises:
        UserError: if a field has a value of another type or range.
    """

    label_smoothing: float = key(0.0, least=0, below=1)

    def __post_init__(self) -> None:
        check_fields(self, "loss.")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over N images."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross entropy of each class by itself, as in ResNet strikes back (arXiv 2110.00476, section 2.2).

    The target of a class is 1 if its share is above `threshold`, else 0; None: the share itself. Labels are smoothed
    before that, as in CrossEntropy.

    Raises:
        UserError: if a field has a value of another type or range.
    """

    label_smoothing: float = key(0.0, least=0, below=1)
    threshold: float | None = key(None, least=0, below=1)

    def __post_init__(self) -> None:
        check_fields(self, "loss.")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over N images and all classes."""
        logits = logits.float()
        shares = F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets
        shares = shares.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        if self.threshold is not None:
            shares = (shares > self.threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, shares)


def create_loss(node: Mapping[str, Any]) -> Loss:
    """Return the loss of a configuration node.

    Raises:
        UserError: if it cannot be made, or cannot be called.
    """
    loss: Loss = call_target(node, "loss")
    if not callable(loss):
        raise UserError(f"loss: {loss!r} cannot be called; give a function of (logits, targets)")
    return loss


def check_loss(loss: Loss, num_classes: int, device: torch.device, takes_shares: bool) -> None:
    """Find out before a run starts whether a loss takes its logits and targets; with `takes_shares`, mixed ones too.

    Raises:
        UserError: if it ends in an error, or does not return one number.
    """
    if isinstance(loss, nn.Module):
        # Where LitClassifier takes it for the run.
        loss.to(device)
    labels = torch.arange(2, device=device) % num_classes
    logits = torch.zeros(2, num_classes, device=device)
    for targets in (labels, F.one_hot(labels, num_classes).float()) if takes_shares else (labels,):
        value = try_out(partial(loss, logits, targets), "loss")
        if not isinstance(value, Tensor) or value.ndim:
            raise UserError(f"loss: a loss returns a tensor of one number, not {value!r}")
