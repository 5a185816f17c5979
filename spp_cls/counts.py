"""Counts of right answers, in integers over images seen once each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Counts:
    """Top-1 and top-5 right answers, images seen and summed loss, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again from nothing."""
        # Top-1, top-5.
        self._right: Tensor | None = None
        self._seen = 0
        self._loss: Tensor | None = None

    @torch.no_grad()
    def update(self, scores: Tensor, labels: Tensor, loss: Tensor | None = None) -> None:
        """Count N x classes scores against N labels; `loss` is their mean loss, computed here where not given."""
        right = hits(scores, labels)
        counts = torch.stack([right[:, 0].sum(), right.any(1).sum()])
        if loss is None:
            loss = F.cross_entropy(scores.float(), labels)
        total = loss.detach().float() * len(right)
        self._right = counts if self._right is None else self._right + counts
        self._seen += len(right)
        self._loss = total if self._loss is None else self._loss + total

    def state(self) -> dict[str, Any]:
        """Return this process's counts as plain numbers."""
        right = [0, 0] if self._right is None else self._right.tolist()
        return {"right": right, "seen": self._seen, "loss": 0.0 if self._loss is None else self._loss.item()}

    def load(self, states: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Go on from the sum of counts that `state` returned."""
        self.reset()
        for state in states:
            right, loss = torch.tensor(state["right"], device=device), torch.tensor(state["loss"], device=device)
            self._right = right if self._right is None else self._right + right
            self._loss = loss if self._loss is None else self._loss + loss
            self._seen += state["seen"]

    def so_far(self) -> dict[str, float]:
        """This process's loss and errors in percent."""
        return _percentages(self._right, self._seen, self._loss)

    def over_processes(self) -> dict[str, float]:
        """Loss and errors in percent over the images of all processes, and their number.

        Every process must call it; one that saw no image takes part with zeros.
        """
        right, seen, loss = self._right, self._seen, self._loss
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            device = right.device if right is not None else _distributed_device()
            right = torch.zeros(2, dtype=torch.int64, device=device) if right is None else right
            loss = torch.zeros((), device=device) if loss is None else loss.clone()
            integers = torch.cat([right, right.new_full((1,), seen)])
            torch.distributed.all_reduce(integers)
            torch.distributed.all_reduce(loss)
            right, seen = integers[:2], int(integers[2])
        return _percentages(right, seen, loss)


def hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Tell for each of the five best classes (or all, where there are fewer) whether it is the right one: N x 5."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    return best == labels.view(-1, 1)


def _distributed_device() -> torch.device:
    on_gpu = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _percentages(right: Tensor | None, seen: int, loss: Tensor | None) -> dict[str, float]:
    if right is None or loss is None or not seen:
        return {}
    top1, top5 = right.tolist()
    return {
        "loss": loss.item() / seen,
        "top1_error": 100 * (seen - top1) / seen,
        "top5_error": 100 * (seen - top5) / seen,
        "images": seen,
    }
