"""Peak memory of map98 on one large image: python benchmarks/peak_memory.py [out=FILE.json].

A photograph of 4000 x 3000 pixels and twenty of 1000 x 750 are tested with ZF-5 in a process of its own for each
bound, max_pixels, and the largest resident size of that process is read.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import describe_run, parse_options, write_json

from spp_cls import build_net
from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.data.sources import open_source
from spp_cls.evaluation import evaluate
from spp_cls.evaluation.images import MAX_PIXELS

BOUNDS = (MAX_PIXELS // 16, MAX_PIXELS // 4, MAX_PIXELS)


@dataclass(frozen=True)
class Options:
    """The keys of this script."""

    out: str | None = key(None, help="JSON file to write the results to")
    measure: str | None = key(None, help="for the processes that this script starts: FOLDER:max_pixels:protocol")


def measure(root: str, max_pixels: int, protocol: str) -> int:
    """Test the images below root in this process; return its largest resident size in MiB."""
    net = build_net("zf5", num_classes=1).to(memory_format=torch.channels_last).eval()
    source = open_source("imagefolder", root, "val")
    if protocol != "none":
        evaluate(net, source, [protocol], max_pixels=max_pixels, progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(arguments: Sequence[str]) -> None:
    """Measure each bound in a new process, print the sizes and write them as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/peak_memory.py out=results/peak_memory.json")
    if options.measure:
        images, max_pixels, tested = options.measure.split(":")
        print(measure(images, int(max_pixels), tested))
        return
    sizes: dict[str, int] = {}
    results = describe_run("python benchmarks/peak_memory.py", torch.device("cpu"), mib=sizes)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "val/one"
        folder.mkdir(parents=True)
        random = np.random.default_rng(0)
        for number, (width, height) in enumerate([(4000, 3000)] + 20 * [(1000, 750)]):
            pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
        for protocol, bound in [("none", 0), *(("map98", bound) for bound in BOUNDS)]:
            child = [sys.executable, __file__, f"measure={root}:{bound}:{protocol}"]
            size = int(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
            name = f"{protocol} max_pixels={bound}" if bound else "net and libraries alone"
            sizes[name] = size
            print(f"{name}: {size} MiB", flush=True)
    write_json(results, options.out)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
