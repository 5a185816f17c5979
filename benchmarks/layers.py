"""Where the time of a training step goes, by kind of layer: python benchmarks/layers.py [key=value ...].

Each layer of a network, as train.py lays it out, is run forward and backward by itself on the maps that it gets in a
step, uncompiled; the shares are those of the sum, which leaves out the loss.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import StepOptions, choose_device, describe_run, parse_options, time_in_turns, write_json
from torch import Tensor, nn

from spp_cls import LocalResponseNorm, SpatialPyramidPool, SPPNet, build_net
from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import format_table
from spp_cls.training.acceleration import keep_freed_memory

KINDS = {
    nn.Conv2d: "convolutions",
    nn.Linear: "fc",
    LocalResponseNorm: "LRN",
    nn.MaxPool2d: "max pooling",
    SpatialPyramidPool: "pyramid",
    nn.ReLU: "ReLU",
    nn.Dropout: "dropout",
}


@dataclass(frozen=True)
class Options(StepOptions):
    """The keys of this script."""

    repeats: int = key(3, least=1, help="turns of each layer, whose medians count")
    batch: int = key(32, least=1, help="images of a step")


def list_layers(net: SPPNet) -> Iterator[nn.Module]:
    """Yield the layers in the order of the forward pass."""
    yield from net.backbone.children()
    yield net.pool
    yield from net.head.children()


def step(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
    """Run a layer forward and backward, to its weights and, where it has a layer before it, to its inputs."""
    # In a step the layer before has made its inputs; a copy here would cost time that is not the layer's.
    wanted = [tensor for tensor in (inputs, *layer.parameters()) if tensor.requires_grad]
    torch.autograd.grad(layer(inputs), wanted, gradient)


def measure_shares(name: str, size: int, batch: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Return the share of each kind of layer, and of the optimizer, in their sum."""
    net = build_net(name, init="kaiming").to(device).to(memory_format=torch.channels_last)
    values = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    runs: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for number, layer in enumerate(list_layers(net)):
        if isinstance(layer, nn.ReLU):
            # In place it would spoil its own inputs from one turn to the next.
            layer.inplace = False
        inputs = values.detach().requires_grad_(number > 0)
        with torch.no_grad():
            values = layer(values)
        label = f"{number} {layer}"
        runs[label] = partial(step, layer, inputs, torch.randn_like(values))
        kinds[label] = KINDS[type(layer)]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, fused=True)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    runs["SGD"], kinds["SGD"] = optimizer.step, "SGD"
    seconds = time_in_turns(runs, repeats, device)
    total = sum(seconds.values())
    shares = dict.fromkeys([*KINDS.values(), "SGD"], 0.0)
    for label, value in seconds.items():
        shares[kinds[label]] += value / total
    return shares


def main(arguments: Sequence[str]) -> None:
    """Measure all nets at all sizes, print a table and write it as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/layers.py nets=zf5 out=results/layers.json")
    device = choose_device(options.device)
    keep_freed_memory()
    kinds = [*KINDS.values(), "SGD"]
    results = describe_run("python benchmarks/layers.py", device, batch=options.batch, kinds=kinds, steps=[])
    for name, size in itertools.product(options.nets, options.sizes):
        shares = measure_shares(name, size, options.batch, options.repeats, device)
        results["steps"].append({"net": name, "size": size, "shares": shares})
    cells = [
        (entry["net"], entry["size"], *(f"{100 * entry['shares'][kind]:.1f} %" for kind in kinds))
        for entry in results["steps"]
    ]
    print(format_table(("net", "size", *kinds), cells))
    write_json(results, options.out)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
