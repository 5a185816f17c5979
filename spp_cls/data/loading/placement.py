"""Which part of each global batch a process makes."""

from typing import NamedTuple

import pytorch_lightning as pl
import torch


class Placement(NamedTuple):
    """The place of this process among those of a trainer. `devices` are those of its machine."""

    rank: int = 0
    world_size: int = 1
    devices: int = 1
    accumulated_batches: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def num_local_batches(self) -> int:
        """Local batches of a global batch: one for each process and each of those whose gradients it accumulates."""
        return self.world_size * self.accumulated_batches


def find_placement(trainer: pl.Trainer | None) -> Placement:
    """Ask a trainer; without one, a process is alone."""
    if trainer is None:
        return Placement()
    return Placement(
        trainer.global_rank, trainer.world_size, trainer.num_devices, trainer.accumulate_grad_batches,
        trainer.strategy.root_device,
    )  # fmt: skip
