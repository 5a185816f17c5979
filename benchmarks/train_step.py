"""Training steps: plain PyTorch, ours, and a ceiling: python benchmarks/train_step.py [key=value ...].

plain     nn.LocalResponseNorm, one adaptive pooling a level, NCHW, uncompiled, as PyTorch comes
ours      as train.py does it: channels_last, fused SGD, freed memory kept on a CPU
ceiling   ours without LRN, with 6 x 6 max pooling instead of the pyramid: convolutions and fc layers, no more

Each version has a process of its own, since how memory is kept is a matter of the process; they take turns, a step
each. On a GPU, where there is one; give peak_tflops=989 there for the share of the peak that is reached.
"""

import itertools
import json
import multiprocessing
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from timing import (
    LevelByLevel,
    StepOptions,
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
from spp_cls.cli.errors import end_in_one_line
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import format_table
from spp_cls.models.specs import SPECS
from spp_cls.training.acceleration import keep_freed_memory, warm_up

VERSIONS = ("plain", "ours", "ours compiled", "ceiling", "ceiling compiled")


@dataclass(frozen=True)
class Options(StepOptions):
    """The keys of this script."""

    batch: tuple[int, ...] = key((32,), least=1, help="images of a step")
    precisions: tuple[str, ...] = key(("32-true", "bf16-mixed"), help="precisions of a step")
    peak_tflops: float | None = key(None, above=0, help="peak of the GPU, for the part of it that is reached")


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


def serve(version: str, name: str, size: int, batch: int, precision: str, turns: Connection) -> None:
    """Build a version and, at each word from `turns`, run a step and send its seconds."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, fused=version != "plain")
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=layout)
    labels = torch.randint(1000, (batch,), device=device)
    context = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    if version.endswith("compiled"):
        net.compile(dynamic=False)
        warm_up(net, [size], batch, lambda: context, lambda: context)

    def step() -> None:
        with context:
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    turns.send(True)
    while turns.recv():
        turns.send(time_call(step))


class Version:
    """A version in a process of its own."""

    def __init__(self, *setting: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.turns, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(*setting, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.turns.recv()

    def step(self) -> float:
        """Run a step and return its seconds."""
        self.turns.send(True)
        return float(self.turns.recv())

    def stop(self) -> None:
        """End the process."""
        self.turns.send(False)
        self.process.join()


def main(arguments: list[str]) -> None:
    """Compare all nets at all sizes, print a table and write it as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/train_step.py nets=zf5 out=results/train_step.json")
    results = describe_run("python benchmarks/train_step.py", steps=[])
    if options.out and Path(options.out).is_file():
        # Each setting is compared within itself, so that settings can be measured in several calls.
        results["steps"] = json.loads(Path(options.out).read_text())["steps"]
    settings = itertools.product(options.nets, options.sizes, options.batch, options.precisions)
    for name, size, batch, precision in settings:
        versions = {version: Version(version, name, size, batch, precision) for version in VERSIONS}
        seconds = take_turns({label: version.step for label, version in versions.items()}, options.repeats)
        for version in versions.values():
            version.stop()
        found: dict[str, Any] = {"net": name, "size": size, "batch": batch, "precision": precision, "seconds": seconds}
        found["work"] = count_work(name, size, batch)
        if options.peak_tflops:
            rate = 2 * found["work"] / min(seconds["ours"], seconds["ours compiled"])
            found["share_of_peak"] = rate / (1e12 * options.peak_tflops)
        setting = (name, size, batch, precision)
        others = [s for s in results["steps"] if (s["net"], s["size"], s["batch"], s["precision"]) != setting]
        results["steps"] = sorted([*others, found], key=_get_order)
        print(make_table([found]), flush=True)
        write_json(results, options.out)
    print(make_table(results["steps"]))


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


def make_table(steps: list[dict[str, Any]]) -> str:
    """Return the ratios of each setting."""
    header = (
        "net",
        "size",
        "batch",
        "precision",
        "ours / plain",
        "compiled / plain",
        "ours / ceiling",
        "of compiled ceiling",
    )
    cells = []
    for found in steps:
        seconds = found["seconds"]
        cells.append(
            (
                found["net"],
                found["size"],
                found["batch"],
                found["precision"],
                f"{seconds['plain'] / seconds['ours']:.2f}",
                f"{seconds['plain'] / seconds['ours compiled']:.2f}",
                f"{seconds['ceiling'] / seconds['ours']:.2f}",
                f"{seconds['ceiling compiled'] / seconds['ours']:.2f}",
            )
        )
    return format_table(header, cells)


if __name__ == "__main__":
    end_in_one_line(lambda: main(sys.argv[1:]))
