"""What norms bring to training: running statistics in averages and checkpoints, and statistics over all processes."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins import LayerSync
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spp_cls.cli.collectives import all_reduce, get_world_size


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Set the buffers of every process, such as running statistics, to their mean. Every process must call it.

    A running mean is linear in what it was before, so how often this is done changes it by rounding alone.
    """
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if buffers and (world_size := get_world_size()) > 1:
        # In float64, so that equal values stay as they are.
        values = torch.cat([buffer.double().flatten() for buffer in buffers])
        means = (all_reduce(values) / world_size).split([b.numel() for b in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.view_as(buffer))


class WeightAverage(EMAWeightAveraging):
    """An exponential moving average of weights and running statistics, which validation and checkpoints take.

    Counters, and buffers that no checkpoint has, are the network's own: their average would be something else.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the buffers that are copied."""
        assert self._average_model is not None
        saved = pl_module.state_dict().keys()
        pairs = zip(self._average_model.module.buffers(), pl_module.named_buffers(), strict=True)
        self._copied = [
            (average, own) for average, (name, own) in pairs if not own.is_floating_point() or name not in saved
        ]

    def on_train_batch_end(self, *arguments: Any, **keywords: Any) -> None:
        """Update the average after a step."""
        super().on_train_batch_end(*arguments, **keywords)
        for average, own in self._copied:
            average.copy_(own)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average; its running statistics are the mean over all processes."""
        if self._average_model is not None:
            average_buffers(self._average_model)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)


class SyncBatchNorms(LayerSync):
    """Makes batch norms take the statistics of all processes, on a CPU too; those of timm keep their activation.

    Lightning's own plugin would drop the activation of timm's layers, and PyTorch's layer refuses a CPU.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Change the batch norms of a module."""
        is_on_gpu = isinstance(model, pl.LightningModule) and model.trainer.strategy.root_device.type == "cuda"
        if is_on_gpu:
            return convert_sync_batchnorm(model)
        for layer in model.modules():
            # Nothing but the forward pass changes.
            layer.__class__ = _SYNCED.get(type(layer), type(layer))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the module as it is: outside of training the layers are ordinary batch norms."""
        return model


def _normalize_over_processes(norm: nn.BatchNorm2d, values: Tensor) -> Tensor:
    """Normalise N x C x H x W values with the statistics of all processes, and track them."""
    dtype = values.dtype
    # Sums of 16 bits would lose most of the values, and running statistics have more.
    values = values.to(torch.promote_types(dtype, torch.float32))
    count = int(all_reduce(torch.tensor(values.numel() // values.shape[1])))
    mean = _SumOverProcesses.apply(values.sum((0, 2, 3))) / count
    centred = values - mean.view(1, -1, 1, 1)
    variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
    if norm.num_batches_tracked is not None and norm.running_mean is not None and norm.running_var is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.detach(), momentum)
        norm.running_var.lerp_(variance.detach() * count / max(1, count - 1), momentum)
    normalised = centred * (variance + norm.eps).rsqrt().view(1, -1, 1, 1)
    if norm.affine:
        normalised = normalised * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    return normalised.to(dtype)


class _SyncBatchNorm(nn.BatchNorm2d):
    def forward(self, values: Tensor) -> Tensor:
        return _normalize_over_processes(self, values) if self.training else super().forward(values)


class _SyncBatchNormAct(BatchNormAct2d):
    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return super().forward(values)
        return self.act(self.drop(_normalize_over_processes(self, values)))


_SYNCED: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm2d: _SyncBatchNorm, BatchNormAct2d: _SyncBatchNormAct}


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduce(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce(gradient.contiguous())
