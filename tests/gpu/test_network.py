"""Whole networks and steps on the device: forward, gradients, precisions, optimizer, compiled graphs."""

from contextlib import nullcontext
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging
from torch import Tensor
from torch.nn import functional as F

import spp_cls
from spp_cls.data import ImageNetDataModule
from spp_cls.models.net import SPPNet
from spp_cls.training import Compilation, LitClassifier
from spp_cls.training.acceleration import warm_up
from tests.gpu.conftest import measure_distance
from tests.training.test_acceleration import KeepWeights, assert_average

pytestmark = pytest.mark.gpu


def build(name: str = "zf5", is_gpu: bool = False, **options: Any) -> SPPNet:
    torch.manual_seed(1)
    width, side = (0.5, 112) if is_gpu else (0.1, 64)
    defaults = {"width": width, "input_size": side, "init": "kaiming", "std": (57.6,) * 3, "drop_rate": 0.0}
    return spp_cls.build_net(name, num_classes=7, **{**defaults, **options}).to(memory_format=torch.channels_last)


def draw_batch(net: SPPNet, count: int, side: int | None = None) -> tuple[Tensor, Tensor]:
    side = side or net.config.input_size
    return torch.randn(count, 3, side, side), torch.randint(7, (count,))


def compute_gradients(net: SPPNet, images: Tensor, labels: Tensor, context: Any) -> tuple[Tensor, list[Tensor]]:
    with context:
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
    return logits, list(torch.autograd.grad(loss, list(net.parameters())))


def check_distances(
    name: str, pooling: Any, side: int, device: torch.device, is_gpu: bool, context: Any, bounds: tuple[float, float]
) -> None:
    """Compare logits and the gradient of all weights together with those of float64 on the CPU."""
    net = build(name, is_gpu, pooling=pooling)
    images, labels = draw_batch(net, 8 if is_gpu else 4, side if pooling == "spp" else None)
    exact_logits, exact = compute_gradients(build(name, is_gpu, pooling=pooling).double(), images.double(), labels,
                                            nullcontext())  # fmt: skip
    images = images.to(device).to(memory_format=torch.channels_last)
    logits, gradients = compute_gradients(net.to(device), images, labels.to(device), context)
    assert measure_distance(logits, exact_logits.detach()) <= bounds[0]
    joined, exact_joined = (torch.cat([g.double().cpu().flatten() for g in each]) for each in (gradients, exact))
    assert measure_distance(joined, exact_joined) <= bounds[1]


@pytest.mark.parametrize("pooling", ["spp", "none"])
@pytest.mark.parametrize("name", ["zf5", "convnet5", "overfeat5", "overfeat7"])
def test_float32(device: torch.device, is_gpu: bool, name: str, pooling: str) -> None:
    # TensorFloat-32 would show as 1e-3 in the logits. Rounding can move the maximum of a window to a neighbour, and
    # with it one of some 100,000 terms of a gradient: 3e-3 each, as a norm.
    check_distances(name, pooling, 90 if is_gpu else 51, device, is_gpu, nullcontext(), (1e-4, 1e-2))


# Eight and eleven bits of mantissa, in each of eight layers; close maxima change places more often.
@pytest.mark.parametrize(("dtype", "bounds"), [(torch.bfloat16, (0.05, 0.3)), (torch.float16, (0.01, 0.1))])
@pytest.mark.parametrize("pooling", ["spp", "none"])
def test_mixed_precision(
    device: torch.device, is_gpu: bool, dtype: torch.dtype, bounds: tuple[float, float], pooling: str
) -> None:
    context = torch.autocast(device.type, dtype)
    check_distances("zf5", pooling, 90 if is_gpu else 51, device, is_gpu, context, bounds)


def test_maps_stay_channels_last(device: torch.device, is_gpu: bool) -> None:
    net = build("overfeat7", is_gpu).to(device)
    strange: list[str] = []
    for name, layer in net.backbone.named_children():

        def check(module: Any, inputs: Any, output: Tensor, name: str = name) -> None:
            if not output.is_contiguous(memory_format=torch.channels_last):
                strange.append(name)

        layer.register_forward_hook(check)
    net(draw_batch(net, 2)[0].to(device).to(memory_format=torch.channels_last))
    assert not strange


def train_steps(net: SPPNet, device: torch.device, fused: bool, steps: int = 20) -> list[float]:
    """Return the losses of steps on images of two sizes in turn."""
    torch.manual_seed(2)
    sides = (net.config.input_size, round(net.config.input_size * 180 / 224))
    batches = [
        (images.to(device).to(memory_format=torch.channels_last), labels.to(device))
        for images, labels in (draw_batch(net, 16, side) for side in sides)
    ]
    optimizer = torch.optim.SGD(net.parameters(), lr=3e-3, momentum=0.9, weight_decay=5e-4, fused=fused)
    losses = []
    for step in range(steps):
        images, labels = batches[step % 2]
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_steps_with_a_fused_optimizer_are_those_of_the_cpu(device: torch.device, is_gpu: bool) -> None:
    ours = train_steps(build(is_gpu=is_gpu).to(device), device, fused=True)
    theirs = train_steps(build(is_gpu=is_gpu), torch.device("cpu"), fused=False)
    assert theirs[-1] < 0.9 * theirs[0]
    # Rounding differs by 1e-7 a step and training amplifies it; a wrong gradient shows in the first digit.
    assert ours == pytest.approx(theirs, rel=1e-2)


def test_deterministic_steps_give_the_same_bits(device: torch.device, is_gpu: bool) -> None:
    # In this mode an operation without a deterministic implementation is an error.
    torch.use_deterministic_algorithms(True)
    nets = [build("overfeat7", is_gpu, drop_rate=0.5).to(device) for _ in range(2)]
    losses = [train_steps(net, device, fused=True, steps=5) for net in nets]
    assert losses[0] == losses[1]
    for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("factor", [1.0, float("inf")])
def test_gradient_scaling_with_a_fused_optimizer(device: torch.device, factor: float) -> None:
    plain, scaled = (build().to(device) for _ in range(2))
    images, labels = (each.to(device) for each in draw_batch(plain, 4))
    first = [parameter.detach().clone() for parameter in plain.parameters()]
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    for net, scale in ((plain, lambda loss: loss), (scaled, scaler.scale)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
        scale(factor * F.cross_entropy(net(images), labels)).backward()
        scaler.step(optimizer) if net is scaled else optimizer.step()
    scaler.update()
    if factor == 1.0:
        for ours, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
            # Scaled by a power of two and back; the sums may be taken in another order.
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert scaler.get_scale() == 2.0**10
    else:
        # The step is left out, and the scale is halved.
        assert all(torch.equal(ours, before) for ours, before in zip(scaled.parameters(), first, strict=True))
        assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_what_the_key_says(device: torch.device, tf32: bool, recwarn: pytest.WarningsRecorder) -> None:
    net = build().to(device)
    Compilation([64], compile=False, tf32=tf32).on_train_start(None, SimpleNamespace(net=net, device=device))  # type: ignore[arg-type]
    assert not [str(warning.message) for warning in recwarn if "TF32" in str(warning.message)]
    images, weights = torch.randn(4, 64, 16, 16), torch.randn(64, 64, 3, 3)
    matrices = torch.randn(2, 256, 256)
    found = {
        "product": matrices[0].to(device) @ matrices[1].to(device),
        "convolution": F.conv2d(images.to(device), weights.to(device)),
    }
    exact = {
        "product": matrices[0].double() @ matrices[1].double(),
        "convolution": F.conv2d(images.double(), weights.double()),
    }
    # Ten bits of mantissa round to 5e-4; 23 bits, to 6e-8.
    has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    for name, values in found.items():
        assert (measure_distance(values, exact[name]) > 2e-5) == (tf32 and has_tf32), name


def test_warming_up_changes_nothing(device: torch.device) -> None:
    net = build(drop_rate=0.5).to(device)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3, device=device)
    torch.manual_seed(3)
    with_context = partial(torch.autocast, device.type, torch.bfloat16)
    warm_up(net, [64, 51], 2, with_context, with_context)
    assert torch.equal(torch.rand(3, device=device), expected)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def fit(root: Path, accelerator: str, *callbacks: Callback, **options: Any) -> tuple[LitClassifier, pl.Trainer]:
    net = spp_cls.build_net("zf5_tiny", num_classes=3, init="kaiming", std=(57.6,) * 3, drop_rate=0, input_size=64)
    sizes, cache = options.pop("sizes", "single"), options.pop("cache", "none")
    data = ImageNetDataModule("imagefolder", str(root), 8, 0, cache=cache, crop=64, sizes=sizes, std=net.config.std)
    trainer = pl.Trainer(
        max_epochs=2, accelerator=accelerator, devices=1, logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, log_every_n_steps=1000, **options,
    )  # fmt: skip
    optimizer = partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
    module = LitClassifier(net, optimizer)
    trainer.fit(module, data)
    return module, trainer


@pytest.mark.parametrize(("precision", "cache"), [("32-true", "none"), ("bf16-mixed", "device"), ("16-mixed", "none")])
def test_compiled_steps_run_in_the_graphs_compiled_for_them(
    accelerator: str, backend: str, precision: str, cache: str, shared_image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if accelerator == "cpu" and precision != "32-true":
        pytest.skip("a CPU is not compiled for by default: float32 stands for the others")
    monkeypatch.setattr(SPPNet, "compile", partialmethod(SPPNet.compile, backend=backend))
    set_stance, stances = torch.compiler.set_stance, []

    def fail_instead(stance: str) -> None:
        stances.append(stance)
        set_stance("fail_on_recompile" if stance == "eager_on_recompile" else stance)

    monkeypatch.setattr("torch.compiler.set_stance", fail_instead)
    # One batch of validation: the last one, which is smaller, is meant to run uncompiled.
    options = {"precision": precision, "cache": cache, "sizes": "alternate", "limit_val_batches": 1}
    torch.manual_seed(0)
    compiled, _ = fit(shared_image_folder, accelerator, Compilation([64, 51], compile=True, tf32=False), **options)
    assert stances == ["eager_on_recompile", "default"]
    if precision == "32-true":
        torch.manual_seed(0)
        eager, _ = fit(shared_image_folder, accelerator, Compilation([64, 51], compile=False, tf32=False), **options)
        for ours, theirs in zip(compiled.net.parameters(), eager.net.parameters(), strict=True):
            # Six steps, whose sums a compiler takes in another order.
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_training_in_mixed_precision(
    device: torch.device, accelerator: str, precision: str, shared_image_folder: Path, tmp_path: Path
) -> None:
    if device.type == "cpu" and precision == "16-mixed":
        pytest.skip("Lightning trains in float16 on a GPU alone; gradient scaling is tested above")
    module, trainer = fit(shared_image_folder, accelerator, precision=precision)
    assert module.net.head.classifier.weight.dtype == torch.float32
    assert all(parameter.isfinite().all() for parameter in module.net.parameters())
    # Two of three classes of plain colours at least, after six steps; by chance, one.
    assert module.validation_errors[-1] < 50
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True, map_location="cpu")
    assert ("scale" in saved.get("MixedPrecision", {})) == (precision == "16-mixed")


def test_checkpoints_have_the_moving_average(accelerator: str, shared_image_folder: Path, tmp_path: Path) -> None:
    keep = KeepWeights()
    _, trainer = fit(shared_image_folder, accelerator, keep, EMAWeightAveraging(decay=0.75))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert_average(keep.weights, tmp_path / "end.ckpt")
