"""What the other scripts here share: their keys, timing in turns, plain layers to compare with, the hardware."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls.cli.arguments import parse_keys
from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import key
from spp_cls.evaluation.rows import describe_hardware
from spp_cls.models.specs import SPECS

Schema = TypeVar("Schema")

# Of the maps that a layer is measured on.
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class SharedOptions:
    """The keys that the scripts share."""

    out: str | None = key(None, help="JSON file to write the results to")
    repeats: int = key(5, least=1, help="turns of each side, whose medians count")
    device: str = key("auto", words=("auto", "cpu", "cuda"), help="auto: the GPU, where there is one")


@dataclass(frozen=True)
class LayerOptions(SharedOptions):
    """The keys that the scripts of a single layer share."""

    compiled: bool = key(True, help="measure the compiled layer too")


@dataclass(frozen=True)
class StepOptions(SharedOptions):
    """The keys that the scripts of training steps share."""

    nets: tuple[str, ...] = key(tuple(SPECS), help="networks to measure")
    sizes: tuple[int, ...] = key((224, 180), least=1, help="sides of the images in pixels")


def parse_options(schema: type[Schema], arguments: Sequence[str], example: str) -> Schema:
    """Read the key=value arguments of a script, of which `example` is one use."""
    return parse_keys(schema, arguments, f"{' '.join(example.split()[:2])} [key=value ...]", example)


def choose_device(name: str) -> torch.device:
    """Return the device that the key `device` names.

    Raises:
        UserError: if it is cuda, and there is no GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no NVIDIA GPU here; set device=cpu")
    return torch.device(name)


def describe_run(command: str, device: torch.device, **settings: Any) -> dict[str, Any]:
    """Describe a run: the command, versions, hardware and settings."""
    on_gpu = device.type == "cuda"
    return {
        "command": command,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if on_gpu else describe_hardware(device),
        "threads": torch.get_num_threads(),
        **(_describe_gpu() if on_gpu else {}),
        **settings,
    }


def _describe_gpu() -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    cudnn = torch.backends.cudnn.version()
    return {"gpus": torch.cuda.device_count(), "driver": driver, "cuda": torch.version.cuda, "cudnn": cudnn}


def write_json(results: Mapping[str, Any], path: str | None) -> None:
    """Write results where a path is given."""
    if path:
        Path(path).write_text(json.dumps(results, indent=2) + "\n")


def time_call(run: Callable[[], Any], device: torch.device) -> float:
    """Time one call in seconds, on a GPU from its first operation to its last."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def time_in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each run; they take turns, after turns that are not timed."""
    timers = {name: lambda run=run: time_call(run, device) for name, run in runs.items()}
    return take_turns(timers, repeats, device)


# An idle GPU takes so long to raise its clocks.
_WARM_UP_SECONDS = 1.0


def take_turns(timers: Mapping[str, Callable[[], float]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median of the seconds that each timer gives.

    They take turns, after one turn that does not count, or, on a GPU, after those of a second.
    """
    start = time.perf_counter()
    while True:
        for timer in timers.values():
            timer()
        if device.type == "cpu" or time.perf_counter() - start > _WARM_UP_SECONDS:
            break
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(repeats):
        for name, timer in timers.items():
            seconds[name].append(timer())
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
