"""Counts of correct answers, in integers over images seen once each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spp_cls.cli.collectives import all_reduce
from spp_cls.models.head import find_best_classes


class Counts:
    """Top-1 and top-5 correct answers, images seen and summed loss, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again at zero."""
        # Top-1, top-5.
        self._correct: Tensor | None = None
        self._seen = 0
        self._loss: Tensor | None = None

    @torch.no_grad()
    def update(self, scores: Tensor, labels: Tensor, loss: Tensor | None = None) -> None:
        """Count N x classes scores against N labels; `loss` is their mean loss, computed here if not given."""
        is_label = find_best_classes(scores)[1] == labels.view(-1, 1)
        correct = torch.stack([is_label[:, 0].sum(), is_label.any(1).sum()])
        if loss is None:
            loss = F.cross_entropy(scores.float(), labels)
        self._add(correct, len(labels), loss.detach().float() * len(labels))

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of this process as plain numbers."""
        correct = [0, 0] if self._correct is None else self._correct.tolist()
        return {"correct": correct, "seen": self._seen, "loss": 0.0 if self._loss is None else self._loss.item()}

    def load_state_dicts(self, states: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Go on from the sum of counts that `state_dict` returned."""
        self.reset()
        for state in states:
            correct, loss = (torch.tensor(state[key], device=device) for key in ("correct", "loss"))
            self._add(correct, state["seen"], loss)

    def compute(self) -> dict[str, float]:
        """Return loss, errors in percent and number of images, over all processes; nothing if there are no images.

        Every process must call it, also one that saw no image.
        """
        correct = torch.zeros(2, dtype=torch.int64) if self._correct is None else self._correct
        integers = all_reduce(torch.cat([correct, correct.new_full((1,), self._seen)]))
        loss = all_reduce(torch.zeros(()) if self._loss is None else self._loss)
        return _compute_metrics(integers[:2], int(integers[2]), loss)

    def compute_local(self) -> dict[str, float]:
        """Return the same over the images of this process alone."""
        if self._correct is None or self._loss is None:
            return {}
        return _compute_metrics(self._correct, self._seen, self._loss)

    def _add(self, correct: Tensor, seen: int, loss: Tensor) -> None:
        self._correct = correct if self._correct is None else self._correct + correct
        self._seen += seen
        self._loss = loss if self._loss is None else self._loss + loss


def _compute_metrics(correct: Tensor, seen: int, loss: Tensor) -> dict[str, float]:
    if not seen:
        return {}
    top1, top5 = correct.tolist()
    return {
        "loss": loss.item() / seen,
        "top1_error": 100 * (seen - top1) / seen,
        "top5_error": 100 * (seen - top5) / seen,
        "images": seen,
    }
