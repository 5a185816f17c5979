"""What makes steps fast changes nothing that they compute."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import spp_cls
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.models.net import SPPNet
from spp_cls.training.acceleration import Compilation
from spp_cls.training.module import LitClassifier


class LevelByLevel(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([F.adaptive_max_pool2d(maps, n).flatten(1) for n in (6, 3, 2, 1)], 1)


def tiny_net() -> SPPNet:
    torch.manual_seed(1)
    return spp_cls.build_net("zf5_tiny", num_classes=3, init="kaiming", std=(57.6,) * 3, drop_rate=0, input_size=64)


def losses_of(net: nn.Module, fused: bool, layout: torch.memory_format, steps: int = 20) -> list[float]:
    """Losses of steps on random images of two sizes in turn."""
    torch.manual_seed(2)
    images = [torch.randn(8, 3, size, size).to(memory_format=layout) for size in (64, 51)]
    labels = torch.randint(3, (8,))
    optimizer = torch.optim.SGD(net.parameters(), lr=3e-3, momentum=0.9, fused=fused)
    losses = []
    for step in range(steps):
        loss = F.cross_entropy(net(images[step % 2]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plain_net() -> nn.Module:
    net = tiny_net()
    for name, _ in list(net.backbone.named_children()):
        if name.startswith("norm"):
            setattr(net.backbone, name, nn.LocalResponseNorm(5))
    net.pool = LevelByLevel()  # type: ignore[assignment]
    return net


# Rounding differs by 1e-7 a step and training amplifies it; a wrong gradient shows in the first digits.
CLOSE = 1e-3


def test_losses_of_twenty_steps_are_those_of_plain_torch() -> None:
    plain = losses_of(plain_net(), fused=False, layout=torch.contiguous_format)
    ours = losses_of(tiny_net().to(memory_format=torch.channels_last), fused=True, layout=torch.channels_last)
    assert plain[-1] < 0.7 * plain[0]
    assert ours == pytest.approx(plain, rel=CLOSE)


def test_maps_and_gradients_stay_channels_last() -> None:
    net = tiny_net().to(memory_format=torch.channels_last)
    strange: list[str] = []
    seen = 0

    def check(name: str, values: Tensor) -> None:
        nonlocal seen
        seen += 1
        if not values.is_contiguous(memory_format=torch.channels_last):
            strange.append(name)

    for name, layer in net.backbone.named_children():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False

        def watch(module: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
            check(name, output)
            output.register_hook(lambda gradient: check(f"gradient of {name}", gradient))

        layer.register_forward_hook(watch)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    net(images).sum().backward()
    assert not strange
    assert seen == 2 * len(list(net.backbone.children()))


class Waits(TorchDispatchMode):
    """Count what would make the program wait for a GPU: values read from it and new tensors made from Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "lift_fresh", "lift_fresh_copy", "nonzero", "is_nonzero"):
            self.names.append(name)
        return function(*arguments, **(keywords or {}))


class WatchSteps(Callback):
    def __init__(self) -> None:
        self.waits = Waits()
        self.steps = 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx == 1:
            self.waits.__enter__()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if batch_idx == 6:
            self.waits.__exit__(None, None, None)
            self.steps += 6


def fit(root: Path, folder: Path, *callbacks: Callback, **options) -> tuple[LitClassifier, pl.Trainer]:
    net = tiny_net()
    batch, workers, sizes = options.pop("batch", 3), options.pop("workers", 0), options.pop("sizes", "single")
    data = ImageNetDataModule("imagefolder", str(root), batch, workers, crop=64, sizes=sizes, std=net.config.std)
    trainer = pl.Trainer(
        max_epochs=options.pop("epochs", 1),
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1000,
        **options,
    )
    module = LitClassifier(net, partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True))
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "end.ckpt")
    return module, trainer


def test_steps_do_not_wait_for_the_device(shared_image_folder: Path, tmp_path: Path) -> None:
    watch = WatchSteps()
    # Batches are made from Python's numbers in a worker.
    fit(shared_image_folder, tmp_path, watch, workers=1)
    assert watch.steps == 6
    assert watch.waits.names == []


def test_accumulated_gradients_are_those_of_the_global_batch(shared_image_folder: Path, tmp_path: Path) -> None:
    whole, _ = fit(shared_image_folder, tmp_path, batch=8, epochs=2)
    parts, trainer = fit(shared_image_folder, tmp_path, batch=8, epochs=2, accumulate_grad_batches=4)
    assert trainer.global_step == 6
    for ours, theirs in zip(parts.net.parameters(), whole.net.parameters(), strict=True):
        # The mean of four means is a sum in another order.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_batch_that_does_not_divide_is_refused(shared_image_folder: Path) -> None:
    data = ImageNetDataModule("imagefolder", str(shared_image_folder), 8, 0, crop=64)
    with pytest.raises(ValueError, match=r"set data\.batch_size to a multiple of 3"):
        data.check_batch(3)


class KeepWeights(Callback):
    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.weights.append(module.net.head.classifier.weight.detach().cpu().clone())


def assert_average(weights: list[Tensor], checkpoint: Path) -> None:
    """Compare the classifier of a checkpoint with the moving average, of decay 0.75, of its weights after each step."""
    average = weights[0]
    for weight in weights[1:]:
        average = 0.75 * average + 0.25 * weight
    found = spp_cls.load_net(checkpoint).head.classifier.weight
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found, weights[-1], rtol=1e-5, atol=1e-7)


def test_checkpoints_have_the_moving_average(shared_image_folder: Path, tmp_path: Path) -> None:
    keep = KeepWeights()
    fit(shared_image_folder, tmp_path, keep, EMAWeightAveraging(decay=0.75))
    assert_average(keep.weights, tmp_path / "end.ckpt")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.slow
def test_freed_memory_is_kept() -> None:
    # In a process whose heap no other test has used.
    program = """if True:
        import resource, torch
        from spp_cls.training.acceleration import keep_freed_memory

        def page_faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(2**24)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        keep_freed_memory()
        # A small block of another may lie in the first ones that are freed.
        print(min(page_faults() for _ in range(5)))
    """
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    # 64 MiB are 16384 pages of 4 KiB.
    assert int(printed) < 1000


def test_what_compile_is() -> None:
    with pytest.raises(ValueError, match="compile is auto, true or false"):
        Compilation([64], compile="always")  # type: ignore[arg-type]


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    # Nothing compiled before is found.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler(
    shared_image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"cannot be compiled here \(.*no-such-compiler.*\); set compile=false"):
        fit(shared_image_folder, tmp_path, Compilation([64], compile=True))
    # As auto finds it on CUDA.
    compilation = Compilation([64])
    net = tiny_net()
    data = SimpleNamespace(local_batch_size=2)
    plugin = pl.plugins.precision.Precision()
    compilation._compile(net, SimpleNamespace(precision_plugin=plugin, datamodule=data))  # type: ignore[arg-type]
    assert [record.message for record in caplog.records if "no compiler works here" in record.message]
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.slow
def test_there_are_graphs_for_more_shapes_than_the_compilers_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    counters.clear()
    net = tiny_net()
    # Only the graphs are counted: the compiler need not compile them.
    monkeypatch.setattr(net, "compile", partial(net.compile, backend="eager"))
    shapes = [(64, width) for width in range(64, 73)]
    data = SimpleNamespace(local_batch_size=2)
    trainer = SimpleNamespace(precision_plugin=pl.plugins.precision.Precision(), datamodule=data)
    with torch._dynamo.config.patch(recompile_limit=8):
        Compilation([*shapes, 64], compile=True)._compile(net, trainer)  # type: ignore[arg-type]
    torch.compiler.set_stance("default")
    assert counters["stats"]["unique_graphs"] == 10


class Compiled(Callback):
    """Count the graphs before the first step and after the last."""

    def __init__(self) -> None:
        self.graphs: list[int] = []

    def on_train_epoch_start(self, *_) -> None:
        self.graphs.append(counters["stats"]["unique_graphs"])

    on_train_epoch_end = on_train_epoch_start


@pytest.mark.slow
def test_steps_run_in_the_graphs_compiled_for_them(
    shared_image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    set_stance, stances = torch.compiler.set_stance, []

    def strict(stance: str) -> None:
        stances.append(stance)
        set_stance("fail_on_recompile" if stance == "eager_on_recompile" else stance)

    monkeypatch.setattr("torch.compiler.set_stance", strict)
    # One batch of validation: the last one, which is smaller, is meant to run uncompiled.
    options = {"batch": 8, "sizes": "alternate", "epochs": 2, "limit_val_batches": 1}
    fit(shared_image_folder, tmp_path, Compilation([64, 51], compile=True), **options)
    assert stances == ["eager_on_recompile", "default"]


@pytest.mark.slow
def test_all_sizes_are_compiled_before_the_first_step(shared_image_folder: Path, tmp_path: Path) -> None:
    torch.compiler.reset()
    counters.clear()
    compiled = Compiled()
    options = {"batch": 8, "sizes": "alternate", "epochs": 2}
    # Validation of nine images ends in a batch of one, which has no graph.
    fast, _ = fit(shared_image_folder, tmp_path, Compilation([64, 51], compile=True), compiled, **options)
    # Training of two sizes, validation of one.
    assert compiled.graphs == [3, 3, 3, 3]
    slow, _ = fit(shared_image_folder, tmp_path, **options)
    for ours, theirs in zip(fast.net.parameters(), slow.net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert fast.validation_errors == slow.validation_errors
