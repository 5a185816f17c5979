"""What the scripts beside this one share: timing in turns, plain versions to compare with, and what was measured on."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls.rows import hardware

# Settings that the scripts of training steps share.
STEP_OPTIONS = {"out": None, "nets": "zf5,convnet5,overfeat5,overfeat7", "sizes": "224,180", "batch": "32"}


def machine(command: str, **settings: Any) -> dict[str, Any]:
    """Describe a run: the command, versions, hardware and settings."""
    on_gpu = torch.cuda.is_available()
    return {
        "command": command,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if on_gpu else hardware(),
        "threads": torch.get_num_threads(),
        **settings,
    }


def write_json(results: Mapping[str, Any], path: str | None) -> None:
    """Write results where a path is given."""
    if path:
        Path(path).write_text(json.dumps(results, indent=2) + "\n")


def seconds_of(run: Callable[[], Any]) -> float:
    """Time one call, on a GPU until it has done all of it."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each run; they take turns, after one turn that is not timed."""
    return in_turns({name: lambda run=run: seconds_of(run) for name, run in runs.items()}, repeats)  # type: ignore[misc]


def in_turns(timers: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Return the median of the seconds that each timer gives; they take turns, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(repeats + 1):
        for name, timer in timers.items():
            found = timer()
            if turn:
                seconds[name].append(found)
    return {name: statistics.median(values) for name, values in seconds.items()}


def multiply_adds(net: nn.Module, run: Callable[[], Any]) -> int:
    """Count those of convolutions and fc layers while `run` runs the net."""
    total = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * weight[0].numel()

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    run()
    for handle in handles:
        handle.remove()
    return total


class LevelByLevel(nn.Module):
    """A pyramid the plain way: the map is pooled once for each level."""

    def __init__(self, levels: Sequence[int] = (6, 3, 2, 1)) -> None:
        super().__init__()
        self.levels = tuple(levels)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool N x C x H x W maps."""
        return torch.cat([F.adaptive_max_pool2d(maps, n).flatten(1) for n in self.levels], dim=1)
