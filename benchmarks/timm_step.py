"""Training steps on a network of timm: python benchmarks/timm_step.py [key=value ...].

bare    timm's own network in a loop of plain PyTorch: forward, cross entropy, backward, SGD
avg     ours with average pooling, as train.py runs it: the module's training_step, with its counts
spp     ours with spatial pyramid pooling

All with the same batch, layout (channels_last), precision and fused SGD, in one process, a step each in turn.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timing import SharedOptions, choose_device, describe_run, parse_options, time_in_turns, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls import build_net
from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.data.loading.batch import Batch
from spp_cls.training import LitClassifier
from spp_cls.training.acceleration import keep_freed_memory

CLASSES = 1000


@dataclass(frozen=True)
class Options(SharedOptions):
    """The keys of this script."""

    net: str = key("resnet18", help="a network of timm")
    size: int = key(224, least=1, help="side of the images in pixels")
    batch: int = key(32, least=1, help="images of a step")
    precision: str = key("32-true", help="32-true or bf16-mixed", words=("32-true", "bf16-mixed"))
    compile: bool = key(False, help="compile all three")


def create_step(net: nn.Module, loss_of: Callable[[], Tensor], precision: str) -> Callable[[], None]:
    """Return a training step of a network, whose loss `loss_of` computes."""
    device = next(net.parameters()).device
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def create_steps(options: Options) -> dict[str, Callable[[], None]]:
    """Return a training step of each version."""
    device = choose_device(options.device)
    images = torch.randn(options.batch, 3, options.size, options.size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (options.batch,), device=device)
    batch = Batch(images, labels, labels, labels.bool(), torch.zeros(options.batch, 3, device=device), [])
    bare = timm.create_model(options.net).to(device).to(memory_format=torch.channels_last).train()
    if options.compile:
        bare.compile(dynamic=False)
    steps = {"bare": create_step(bare, lambda: F.cross_entropy(bare(images), labels), options.precision)}
    for pooling in ("avg", "spp"):
        module = LitClassifier(build_net(f"timm/{options.net}", pooling).to(device))
        if options.compile:
            module.net.compile(dynamic=False)
        steps[pooling] = create_step(module, lambda own=module: own.training_step(batch, 0), options.precision)  # type: ignore[misc]
    return steps


def main(arguments: Sequence[str]) -> None:
    """Time the versions, print their speeds beside the bare loop and write them as JSON."""
    options = parse_options(
        Options, arguments, "python benchmarks/timm_step.py net=resnet18 out=results/timm_step.json"
    )
    torch.backends.cudnn.benchmark = True
    device = choose_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    steps = create_steps(options)
    seconds = time_in_turns(steps, options.repeats, device)
    settings: dict[str, Any] = {
        each: getattr(options, each) for each in ("net", "size", "batch", "precision", "compile")
    }
    results = describe_run("python benchmarks/timm_step.py", device, **settings, seconds=seconds)
    for name in ("avg", "spp"):
        rate = options.batch / seconds[name]
        print(f"{name}: {100 * seconds['bare'] / seconds[name]:.1f} % of the bare loop's speed, {rate:.1f} images/s")
    write_json(results, options.out)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
