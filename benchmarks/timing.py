"""What the other scripts here share: their keys, timing in turns, plain layers to compare with, the hardware."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls.cli.arguments import parse_keys
from spp_cls.cli.schema import key
from spp_cls.evaluation.rows import describe_hardware
from spp_cls.models.specs import SPECS

Schema = TypeVar("Schema")


@dataclass(frozen=True)
class Options:
    """The keys that all scripts share."""

    out: str | None = key(None, help="JSON file to write the results to")
    repeats: int = key(5, least=1, help="turns of each side, whose medians count")


@dataclass(frozen=True)
class StepOptions(Options):
    """The keys that the scripts of training steps share."""

    nets: tuple[str, ...] = key(tuple(SPECS), help="networks to measure")
    sizes: tuple[int, ...] = key((224, 180), least=1, help="sides of the images in pixels")


def parse_options(schema: type[Schema], arguments: Sequence[str], example: str) -> Schema:
    """Read the key=value arguments of a script, of which `example` is one use."""
    return parse_keys(schema, arguments, f"{' '.join(example.split()[:2])} [key=value ...]", example)


def describe_run(command: str, **settings: Any) -> dict[str, Any]:
    """Describe a run: the command, versions, hardware and settings."""
    on_gpu = torch.cuda.is_available()
    return {
        "command": command,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if on_gpu else describe_hardware(),
        "threads": torch.get_num_threads(),
        **settings,
    }


def write_json(results: Mapping[str, Any], path: str | None) -> None:
    """Write results where a path is given."""
    if path:
        Path(path).write_text(json.dumps(results, indent=2) + "\n")


def time_call(run: Callable[[], Any]) -> float:
    """Time one call in seconds, on a GPU until it has done all of it."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each run; they take turns, after one turn that is not timed."""
    return take_turns({name: lambda run=run: time_call(run) for name, run in runs.items()}, repeats)  # type: ignore[misc]


def take_turns(timers: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Return the median of the seconds that each timer gives; they take turns, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(repeats + 1):
        for name, timer in timers.items():
            found = timer()
            if turn:
                seconds[name].append(found)
    return {name: statistics.median(values) for name, values in seconds.items()}


def count_multiply_adds(net: nn.Module, run: Callable[[], Any]) -> int:
    """Count the multiply-adds of convolutions and fc layers while `run` runs the net."""
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
