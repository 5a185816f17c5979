"""Pyramid pooling, forward and backward, ours against one pooling a level: python benchmarks/spp.py [out=FILE.json].

On a GPU, where there is one.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from timing import LevelByLevel, interleaved, machine, write_json
from torch import Tensor

from spp_cls import SpatialPyramidPool
from spp_cls.errors import one_line
from spp_cls.options import options
from spp_cls.text_tables import terminal_table

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def step(pool: Callable[[Tensor], Tensor], maps: Tensor, gradient: Tensor) -> Tensor:
    """Pool maps and return their gradient."""
    return torch.autograd.grad(pool(maps), maps, gradient)[0]


def main(arguments: list[str]) -> None:
    """Compare in both layouts, print a table and write it as JSON."""
    given = options({"out": None, "repeats": "25", "shape": "128,256,13,13"}, arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = tuple(map(int, given["shape"].split(",")))
    pools: dict[str, Callable[[Tensor], Tensor]] = {
        "level by level": LevelByLevel(),
        "ours": SpatialPyramidPool(),
        "ours compiled": torch.compile(SpatialPyramidPool(), dynamic=False),
    }
    results = machine("python benchmarks/spp.py", shape=shape)
    cells = []
    for name, layout in LAYOUTS.items():
        maps = torch.randn(shape, device=device).relu_().to(memory_format=layout).requires_grad_()
        gradient = torch.randn(shape[0], shape[1] * 50, device=device)
        seconds = interleaved(
            {k: partial(step, pool, maps, gradient) for k, pool in pools.items()}, int(given["repeats"])
        )
        ratios = {key: seconds["level by level"] / value for key, value in seconds.items()}
        results[name] = {"seconds": seconds, "times_faster": ratios}
        cells += [(name, key, f"{ratio:.1f}") for key, ratio in ratios.items()]
    print(terminal_table(("layout", "pyramid", "times the speed of level by level"), cells))
    write_json(results, given["out"])


if __name__ == "__main__":
    one_line(lambda: main(sys.argv[1:]))
