"""What makes training steps fast: compilation, TensorFloat-32, and memory that is kept between steps."""

import ctypes
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
from torch.nn import functional as F

from spp_cls.cli.errors import UserError, shorten
from spp_cls.models.net import ImageSize, SPPNet, get_shape

_log = logging.getLogger(__name__)

# Each size has a graph of its own, and a graph takes half a minute to compile.
_MAX_SIZES = 8

_COMPILER_ERRORS = (TorchDynamoException, CppCompileError, InvalidCxxCompiler)

# glibc's names for mallopt.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


class Compilation(Callback):
    """Compiles the network, chooses the precision of float32 products, and keeps freed memory for the next step.

    `sizes` are the image sizes of training, sides of squares or heights and widths. `compile` is true, false or auto:
    on CUDA, if there are at most eight sizes and a compiler works. All sizes are compiled before the first step; a
    batch of another shape, such as the last one of validation, runs uncompiled. `tf32` lets CUDA multiply float32
    numbers with TensorFloat-32's ten bits of mantissa.

    Raises:
        UserError: if compile has another value, or is true and no compiler works.
    """

    def __init__(self, sizes: Sequence[ImageSize], compile: bool | str = "auto", tf32: bool = True) -> None:
        if compile not in ("auto", True, False):
            raise UserError(f"compile is auto, true or false, not {compile!r}")
        self.sizes = sorted({get_shape(size) for size in sizes})
        self.compile = compile
        self.tf32 = tf32

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare the device, and compile."""
        net, device = pl_module.net, pl_module.device
        assert isinstance(net, SPPNet)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self.tf32
        elif device.type == "cpu":
            keep_freed_memory()
        # On a CPU the compiled network is no faster: inductor's max pooling loses what fusion gains.
        if self.compile is True or (self.compile and device.type == "cuda" and len(self.sizes) <= _MAX_SIZES):
            self._compile(net, trainer)

    def _compile(self, net: SPPNet, trainer: pl.Trainer) -> None:
        plugin: Any = trainer.precision_plugin
        data: Any = getattr(trainer, "datamodule")  # noqa: B009 (set by fit; not in its type)
        # Training has a graph for each size, validation has one; beyond the limit they would run uncompiled.
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, len(self.sizes) + 1)
        net.compile(dynamic=False)
        try:
            warm_up(net, self.sizes, data.local_batch_size, plugin.train_step_context, plugin.val_step_context)
        except _COMPILER_ERRORS as error:
            # The compiler's own message is inside Dynamo's.
            reason = shorten(getattr(error, "inner_exception", error))
            if self.compile is True:
                raise UserError(f"the network cannot be compiled here ({reason}); set compile=false") from error
            _log.warning("the network is not compiled, because no compiler works here: %s", reason)
            net._compiled_call_impl = None
        else:
            torch.compiler.set_stance("eager_on_recompile")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let later code of this process compile again."""
        torch.compiler.set_stance("default")


def warm_up(
    net: SPPNet,
    sizes: Sequence[ImageSize],
    batch: int,
    train_context: Any = nullcontext,
    validation_context: Any = nullcontext,
) -> None:
    """Run a training step of each size and validation of the input size; weights, gradients and buffers stay."""
    device = next(net.parameters()).device
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    was_training = net.training
    buffers = [buffer.clone() for buffer in net.buffers()]

    def create_images(size: ImageSize) -> torch.Tensor:
        shape = (batch, net.config.in_chans, *get_shape(size))
        return torch.zeros(shape, device=device).to(memory_format=torch.channels_last)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        net.train()
        for size in sizes:
            with train_context():
                loss = F.cross_entropy(net(create_images(size)), labels)
            torch.autograd.grad(loss, trained, allow_unused=True)
        net.eval()
        with torch.no_grad(), validation_context():
            net(create_images(net.config.input_size))
    net.train(was_training)
    with torch.no_grad():
        for buffer, before in zip(net.buffers(), buffers, strict=True):
            # Training would start from the statistics of black images.
            buffer.copy_(before)


def keep_freed_memory() -> None:
    """Keep memory that is freed for the next feature maps, if the C library is glibc.

    glibc returns large blocks to the system at once, and each step would fault in every page of its feature maps
    again, which takes as long as the convolutions.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_MMAP_MAX, 0)
