"""Training steps: plain PyTorch, ours, and a ceiling: python benchmarks/train_step.py [key=value ...].

plain     nn.LocalResponseNorm, one adaptive pooling a level, NCHW, uncompiled, as PyTorch comes
ours      as train.py does it: channels_last, fused SGD, freed memory kept on a CPU
ceiling   ours without LRN, with 6 x 6 max pooling instead of the pyramid: convolutions and fc layers, no more

Each version has a process of its own, since how memory is kept is a matter of the process; they take turns, a step
each. On a GPU, where there is one, each makes its steps in a row, as its memory may not hold the maps of all, and
images a second are written too; give peak_tflops=989 there for the share of the peak that is reached.
"""

import gc
import itertools
import json
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import (
    LevelByLevel,
    StepOptions,
    choose_device,
    count_multiply_adds,
    describe_run,
    parse_options,
    take_turns,
    time_call,
    write_json,
)
from torch import nn
from torch.nn import functional as F

from spp_cls import SPPNet, build_net
from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import format_table
from spp_cls.models.specs import SPECS
from spp_cls.training.acceleration import keep_freed_memory, warm_up

VERSIONS = ("plain", "ours", "ours compiled", "ceiling", "ceiling compiled")
# The versions whose seconds are divided: over 1, the second is faster.
RATIOS = (("plain", "ours"), ("plain", "ours compiled"), ("ceiling", "ours"), ("ceiling compiled", "ours"))


@dataclass(frozen=True)
class Options(StepOptions):
    """The keys of this script."""

    batch: tuple[int, ...] = key((32,), least=1, help="images of a step")
    precisions: tuple[str, ...] = key(("32-true", "bf16-mixed"), help="precisions of a step")
    versions: tuple[str, ...] = key(VERSIONS, words=VERSIONS, help="what to measure")
    peak_tflops: float | None = key(None, above=0, help="peak of the GPU in bf16, for the part of it that is reached")


class Setting(NamedTuple):
    """What steps are measured of."""

    net: str
    size: int
    batch: int
    precision: str


def build_plain(name: str) -> SPPNet:
    """Build a network of plain PyTorch layers alone."""
    net = build_net(name, init="kaiming")
    _replace_norms(net, lambda: nn.LocalResponseNorm(5))
    net.pool = LevelByLevel()  # type: ignore[assignment]
    return net


def build_ceiling(name: str) -> SPPNet:
    """Build a network without LRN and pyramid."""
    net = build_net(name, levels=(6,), init="kaiming")
    _replace_norms(net, nn.Identity)
    net.pool = nn.Sequential(nn.AdaptiveMaxPool2d(6), nn.Flatten())  # type: ignore[assignment]
    return net


def _replace_norms(net: SPPNet, layer: Any) -> None:
    for name, _ in list(net.backbone.named_children()):
        if name.startswith("norm"):
            setattr(net.backbone, name, layer())


def prepare(version: str, setting: Setting, device: torch.device) -> Callable[[], None]:
    """Build a version of a network, compile it if it is to be, and return a training step of it."""
    torch.manual_seed(0)
    name, size, batch, precision = setting
    layout = torch.contiguous_format if version == "plain" else torch.channels_last
    build = {"plain": build_plain, "ceiling": build_ceiling}.get(
        version.removesuffix(" compiled"), lambda n: build_net(n, init="kaiming")
    )
    net = build(name).to(device).to(memory_format=layout)
    if version != "plain":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
        if device.type == "cpu":
            keep_freed_memory()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, fused=None if version == "plain" else True)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=layout)
    labels = torch.randint(1000, (batch,), device=device)
    context = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    if version.endswith("compiled"):
        torch.compiler.reset()
        net.compile(dynamic=False)
        warm_up(net, [size], batch, lambda: context, lambda: context)

    def step() -> None:
        with context:
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def serve(version: str, device: torch.device, orders: Connection) -> None:
    """Prepare each setting that comes, and send the seconds of a step: on a GPU the median of as many as are asked for.

    None is sent where the memory of the GPU is too small.
    """
    step: Callable[[], None] | None = None
    while (order := orders.recv()) is not None:
        try:
            if isinstance(order, Setting):
                step = None
                gc.collect()
                step = prepare(version, order, device)
                orders.send(True)
            elif step is None:
                orders.send(None)
            elif device.type == "cpu":
                orders.send(time_call(step, device))
            else:
                orders.send(take_turns({version: partial(time_call, step, device)}, order, device)[version])
        except torch.OutOfMemoryError:
            step = None
            orders.send(None)
        if device.type == "cuda":
            # For the steps of the others.
            torch.cuda.empty_cache()


class Version:
    """A version in a process of its own."""

    def __init__(self, name: str, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        self.orders, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, device, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def step(self, repeats: int = 1) -> Any:
        """Return the seconds of a step."""
        self.orders.send(repeats)
        return self.orders.recv()

    def stop(self) -> None:
        """End the process."""
        self.orders.send(None)
        self.process.join()


def main(arguments: Sequence[str]) -> None:
    """Compare all nets at all sizes, print a table and write it as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/train_step.py nets=zf5 out=results/train_step.json")
    device = choose_device(options.device)
    results = describe_run("python benchmarks/train_step.py", device, peak_tflops=options.peak_tflops, steps=[])
    if options.out and Path(options.out).is_file():
        earlier = json.loads(Path(options.out).read_text())
        # Each setting is compared within itself, so that settings can be measured in several calls, on one machine.
        if all(earlier.get(name) == results[name] for name in results if name not in ("steps", "peak_tflops")):
            results["steps"] = earlier["steps"]
    versions: dict[str, Version] = {}
    for each in itertools.product(options.nets, options.sizes, options.batch, options.precisions):
        setting = Setting(*each)
        if device.type == "cpu" or not versions:
            # On a CPU a process keeps memory, and how much is a matter of what it did before.
            versions = {name: Version(name, device) for name in options.versions}
        seconds = measure(versions, setting, options.repeats, device)
        if device.type == "cpu":
            stop(versions)
        found = {**setting._asdict(), "seconds": seconds, "work": count_work(*setting[:3])}
        if device.type == "cuda":
            found["images_per_second"] = {name: setting.batch / value for name, value in seconds.items()}
        ours = [value for name, value in seconds.items() if name.startswith("ours")]
        if options.peak_tflops and ours:
            # TensorFloat-32 has half the peak of bfloat16.
            peak = 1e12 * options.peak_tflops / (1 if setting.precision == "bf16-mixed" else 2)
            found["share_of_peak"] = 2 * found["work"] / min(ours) / peak
        others = [step for step in results["steps"] if tuple(step[key] for key in Setting._fields) != setting]
        results["steps"] = sorted([*others, found], key=_get_order)
        print(make_table([found]), flush=True)
        write_json(results, options.out)
    stop(versions)
    print(make_table(results["steps"]))


def measure(versions: dict[str, Version], setting: Setting, repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of a step of each version; versions that memory is too small for are left out."""
    for version in versions.values():
        version.orders.send(setting)
    for version in versions.values():
        version.orders.recv()
    if device.type == "cpu":
        return take_turns({name: version.step for name, version in versions.items()}, repeats, device)
    seconds = {name: version.step(repeats) for name, version in versions.items()}
    return {name: value for name, value in seconds.items() if value}


def stop(versions: dict[str, Version]) -> None:
    """End the processes."""
    for version in versions.values():
        version.stop()
    versions.clear()


def _get_order(found: dict[str, Any]) -> tuple[Any, ...]:
    return list(SPECS).index(found["net"]), found["precision"], -found["size"], found["batch"]


def count_work(name: str, size: int, batch: int) -> int:
    """Count the multiply-adds of a step: forward, and twice as many backward but for the images' own gradient."""
    net = build_net(name).eval()
    image = torch.zeros(1, 3, size, size)
    with torch.inference_mode():
        forward = count_multiply_adds(net, lambda: net(image))
        conv1 = nn.Sequential(net.backbone.get_submodule("conv1"))
        first = count_multiply_adds(conv1, lambda: conv1(image))
    return batch * (3 * forward - first)


def divide_seconds(seconds: Mapping[str, float]) -> list[str]:
    """Return the ratios of the versions' seconds; empty where one was not measured."""
    return [
        f"{seconds[one] / seconds[other]:.2f}" if one in seconds and other in seconds else "" for one, other in RATIOS
    ]


def make_table(steps: list[dict[str, Any]]) -> str:
    """Return the ratios of each setting."""
    cells = [(*(found[key] for key in Setting._fields), *divide_seconds(found["seconds"])) for found in steps]
    return format_table((*Setting._fields, *(f"{one} / {other}" for one, other in RATIOS)), cells)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
