"""Pyramid pooling, forward and backward, ours against one pooling a level: python benchmarks/spp.py [out=FILE.json].

On a GPU, where there is one.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timing import (
    LAYOUTS,
    LayerOptions,
    LevelByLevel,
    choose_device,
    describe_run,
    parse_options,
    time_in_turns,
    write_json,
)
from torch import Tensor

from spp_cls import SpatialPyramidPool
from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import format_table


@dataclass(frozen=True)
class Options(LayerOptions):
    """The keys of this script."""

    repeats: int = key(25, least=1, help="turns of each side, whose medians count")
    shape: tuple[int, ...] = key((128, 256, 13, 13), least=1, help="shape of the maps: N, C, H, W")


def step(pool: Callable[[Tensor], Tensor], maps: Tensor, gradient: Tensor) -> Tensor:
    """Pool maps and return their gradient."""
    return torch.autograd.grad(pool(maps), maps, gradient)[0]


def main(arguments: Sequence[str]) -> None:
    """Compare in both layouts, print a table and write it as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/spp.py out=results/spp.json")
    device = choose_device(options.device)
    shape = options.shape
    pools: dict[str, Callable[[Tensor], Tensor]] = {
        "level by level": LevelByLevel(),
        "ours": SpatialPyramidPool(),
    }
    if options.compiled:
        pools["ours compiled"] = torch.compile(SpatialPyramidPool(), dynamic=False)
    results = describe_run("python benchmarks/spp.py", device, shape=shape)
    cells = []
    for name, layout in LAYOUTS.items():
        maps = torch.randn(shape, device=device).relu_().to(memory_format=layout).requires_grad_()
        gradient = torch.randn(shape[0], shape[1] * 50, device=device)
        runs = {key: partial(step, pool, maps, gradient) for key, pool in pools.items()}
        seconds = time_in_turns(runs, options.repeats, device)
        ratios = {key: seconds["level by level"] / value for key, value in seconds.items()}
        results[name] = {"seconds": seconds, "times_faster": ratios}
        cells += [(name, key, f"{ratio:.1f}") for key, ratio in ratios.items()]
    print(format_table(("layout", "pyramid", "times the speed of level by level"), cells))
    write_json(results, options.out)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
