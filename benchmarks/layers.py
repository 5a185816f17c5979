"""Where the time of a training step goes, by kind of layer: python benchmarks/layers.py [nets=zf5] [out=FILE.json].

Each layer of a network, as train.py lays it out, is run forward and backward by itself on the maps that it gets in a
step, uncompiled; the shares are those of the sum, which leaves out the loss.
"""

import itertools
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timing import STEP_OPTIONS, interleaved, machine, write_json
from torch import Tensor, nn

from spp_cls import LocalResponseNorm, SpatialPyramidPool, SPPNet, build_net
from spp_cls.acceleration import keep_freed_memory
from spp_cls.errors import one_line
from spp_cls.options import options
from spp_cls.text_tables import terminal_table

KINDS = {
    nn.Conv2d: "convolutions",
    nn.Linear: "fc",
    LocalResponseNorm: "LRN",
    nn.MaxPool2d: "max pooling",
    SpatialPyramidPool: "pyramid",
    nn.ReLU: "ReLU",
    nn.Dropout: "dropout",
}


def layers_of(net: SPPNet) -> Iterator[nn.Module]:
    """Yield the layers in the order of the forward pass."""
    yield from net.backbone
    yield net.pool
    yield from net.head


def step(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
    """Run a layer forward and backward, to its weights and, where it has a layer before it, to its inputs."""
    # In a step the layer before made them; a copy here would cost time that is not the layer's.
    wanted = [tensor for tensor in (inputs, *layer.parameters()) if tensor.requires_grad]
    torch.autograd.grad(layer(inputs), wanted, gradient)


def shares_of(name: str, size: int, batch: int, repeats: int) -> dict[str, float]:
    """Return the share of each kind of layer, and of the optimizer, in their sum."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build_net(name, init="kaiming").to(device).to(memory_format=torch.channels_last)
    values = (50 * torch.randn(batch, 3, size, size, device=device)).to(memory_format=torch.channels_last)
    runs: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for number, layer in enumerate(layers_of(net)):
        if isinstance(layer, nn.ReLU):
            # In place it would spoil its own inputs from one turn to the next.
            layer.inplace = False
        inputs = values.detach().requires_grad_(number > 0)
        with torch.no_grad():
            values = layer(values)
        key = f"{number} {layer}"
        runs[key] = partial(step, layer, inputs, torch.randn_like(values))
        kinds[key] = KINDS[type(layer)]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, fused=True)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    runs["SGD"], kinds["SGD"] = optimizer.step, "SGD"
    seconds = interleaved(runs, repeats)
    total = sum(seconds.values())
    shares = dict.fromkeys([*KINDS.values(), "SGD"], 0.0)
    for key, value in seconds.items():
        shares[kinds[key]] += value / total
    return shares


def main(arguments: list[str]) -> None:
    """Measure all nets at all sizes, print a table and write it as JSON."""
    given = options({**STEP_OPTIONS, "repeats": "3"}, arguments)
    keep_freed_memory()
    kinds = [*KINDS.values(), "SGD"]
    results = machine("python benchmarks/layers.py", batch=int(given["batch"]), kinds=kinds, steps=[])
    for name, size in itertools.product(given["nets"].split(","), map(int, given["sizes"].split(","))):
        shares = shares_of(name, size, int(given["batch"]), int(given["repeats"]))
        results["steps"].append({"net": name, "size": size, "shares": shares})
    cells = [
        (entry["net"], entry["size"], *(f"{100 * entry['shares'][kind]:.1f} %" for kind in kinds))
        for entry in results["steps"]
    ]
    print(terminal_table(("net", "size", *kinds), cells))
    write_json(results, given["out"])


if __name__ == "__main__":
    one_line(lambda: main(sys.argv[1:]))
