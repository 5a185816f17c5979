"""Local response normalisation, forward and backward, ours against torch's: python benchmarks/lrn.py [out=FILE.json].

On a GPU, where there is one. Peak memory is what a step needs beside its maps, gradient and their two results, in
units of one feature map.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import LAYOUTS, LayerOptions, choose_device, describe_run, parse_options, time_in_turns, write_json
from torch import Tensor, nn

from spp_cls import LocalResponseNorm
from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import format_table


@dataclass(frozen=True)
class Options(LayerOptions):
    """The keys of this script."""

    repeats: int = key(9, least=1, help="turns of each side, whose medians count")
    shape: tuple[int, ...] = key((32, 96, 110, 110), least=1, help="shape of the maps: N, C, H, W")


def step(norm: Callable[[Tensor], Tensor], maps: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normalised maps and the gradient of the maps."""
    normalised = norm(maps)
    return normalised, torch.autograd.grad(normalised, maps, gradient)[0]


def measure_extra_memory(run: Callable[[], Any], maps: Tensor) -> float:
    """Return the peak of what a step adds, less its two results, in feature maps."""
    if maps.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        extra = torch.cuda.max_memory_allocated() - before
    else:
        before = _read_status("VmRSS")
        # Sets the high-water mark back to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        run()
        extra = _read_status("VmHWM") - before
    return extra / (maps.numel() * maps.element_size()) - 2


def _read_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def main(arguments: Sequence[str]) -> None:
    """Compare in both layouts, print a table and write it as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/lrn.py out=results/lrn.json")
    device = choose_device(options.device)
    shape = options.shape
    norms: dict[str, Callable[[Tensor], Tensor]] = {
        "torch": nn.LocalResponseNorm(5),
        "ours": LocalResponseNorm(5),
    }
    if options.compiled:
        norms["ours compiled"] = torch.compile(LocalResponseNorm(5), dynamic=False)
    results = describe_run("python benchmarks/lrn.py", device, shape=shape)
    cells = []
    for name, layout in LAYOUTS.items():
        maps = torch.randn(shape, device=device).mul_(50).relu_().to(memory_format=layout).requires_grad_()
        gradient = torch.randn(shape, device=device).to(memory_format=layout)
        runs = {key: partial(step, norm, maps, gradient) for key, norm in norms.items()}
        seconds = time_in_turns(runs, options.repeats, device)
        memory = {key: measure_extra_memory(run, maps) for key, run in runs.items()}
        ratios = {key: seconds["torch"] / value for key, value in seconds.items()}
        results[name] = {"seconds": seconds, "times_faster": ratios, "extra_feature_maps": memory}
        cells += [(name, key, f"{ratios[key]:.1f}", f"{memory[key]:.2f}") for key in runs]
    print(format_table(("layout", "LRN", "times torch's speed", "extra memory, feature maps"), cells))
    write_json(results, options.out)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
