"""Sharing and memory of transfer's features: python benchmarks/transfer.py [out=FILE.json].

Sharing: all layers of three views and four sides in one pass over JPEG files, against a pass for each combination, both
on the disk at the end; beside the ratio of times stands that of multiply-adds of convolutions and fc layers, counted
while they run. Memory: the largest resident size of a process that writes the features of few and of many images.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import (
    SharedOptions,
    choose_device,
    count_multiply_adds,
    describe_run,
    parse_options,
    time_in_turns,
    write_json,
)

from spp_cls import SPPNet, build_net
from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.data.sources import ImageSource
from spp_cls.data.sources.files import open_class_folders
from spp_cls.transfer.features.extraction import create_store, extract_features
from spp_cls.transfer.features.layers import VIEWS, Feature, choose_features

LAYERS = ("maps:conv4", "maps:conv5", "level:6", "pool", "hidden1", "hidden2")

# Of a photograph.
WIDTH, HEIGHT = 500, 375


@dataclass(frozen=True)
class Options(SharedOptions):
    """The keys of this script."""

    repeats: int = key(3, least=1, help="turns of each side, whose medians count")
    width: float = key(1.0, above=0, help="factor of the channels of ZF-5")
    sides: tuple[int, ...] = key((224, 256, 300, 360), least=1, help="sides of the images in pixels")
    images: int = key(8, least=1, help="images of the sharing")
    few: int = key(200, least=1, help="images of the smaller process")
    many: int = key(2000, least=1, help="images of the larger process")
    measure: str | None = key(None, help="for the processes that this script starts: FOLDER:images")


def write_images(root: Path, count: int) -> ImageSource:
    """Write JPEGs of noise, of two shapes, as the images of one class."""
    folder = root / "images/one"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (8, HEIGHT // 5, WIDTH // 5, 3)).astype(np.uint8)
    for number in range(count):
        image = Image.fromarray(coarse[number % 8]).resize((WIDTH, HEIGHT) if number % 3 else (HEIGHT, WIDTH))
        image.save(folder / f"{number:05}.jpg")
    return open_images(root)


def open_images(root: Path) -> ImageSource:
    """Open what write_images wrote."""
    return open_class_folders(root / "images", ["one"], ("one",))


def create_net(width: float) -> SPPNet:
    """Build ZF-5 with new weights."""
    net = build_net("zf5", num_classes=10, width=width, init="kaiming", std=(57.6,) * 3)
    return net.to(memory_format=torch.channels_last).eval()


def compare_passes(net: SPPNet, source: ImageSource, sides: Sequence[int], repeats: int, root: Path) -> dict[str, Any]:
    """Compare one pass for all features with a pass for each."""
    features, _ = choose_features(net, LAYERS, VIEWS, sides)

    def extract(chosen: Sequence[Feature]) -> None:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            extract_features(net, source, chosen, create_store(net, source, chosen, folder), progress=False)

    def extract_apart() -> None:
        for feature in features:
            extract([feature])

    runs = {"each": extract_apart, "one pass": lambda: extract(features)}
    work = {name: count_multiply_adds(net, run) for name, run in runs.items()}
    seconds = time_in_turns(runs, repeats, next(net.parameters()).device)
    return {
        "features": len(features),
        "images": len(source),
        "seconds": seconds,
        "ratio": seconds["each"] / seconds["one pass"],
        "ratio_of_multiply_adds": work["each"] / work["one pass"],
    }


def measure(root: Path, count: int, width: float, sides: Sequence[int]) -> int:
    """Write the features of some images in this process; return its largest resident size in MiB."""
    net, source = create_net(width), open_images(root)
    features, _ = choose_features(net, LAYERS, VIEWS, sides)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        store = create_store(net, source, features, folder)
        assert extract_features(net, source, features, store, progress=False) == count
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure_memory(options: Options) -> dict[str, int]:
    """Measure few and many images, each in a new process."""
    sizes: dict[str, int] = {}
    for count in (options.few, options.many):
        with tempfile.TemporaryDirectory() as root:
            write_images(Path(root), count)
            sides = f"sides=[{','.join(map(str, options.sides))}]"
            child = [sys.executable, __file__, f"measure={root}:{count}", f"width={options.width}", sides]
            sizes[str(count)] = int(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
            print(f"{count} images: {sizes[str(count)]} MiB", flush=True)
    return sizes


def main(arguments: Sequence[str]) -> None:
    """Run both comparisons, print them and write them as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/transfer.py out=results/transfer_speed.json")
    if options.measure:
        root, count = options.measure.split(":")
        print(measure(Path(root), int(count), options.width, options.sides))
        return
    device = choose_device(options.device)
    results = describe_run("python benchmarks/transfer.py", device, width=options.width, sides=list(options.sides))
    with tempfile.TemporaryDirectory() as folder:
        root_of_images = Path(folder)
        source = write_images(root_of_images, options.images)
        net = create_net(options.width).to(device)
        found = compare_passes(net, source, options.sides, options.repeats, root_of_images)
    reached = found["ratio"] / found["ratio_of_multiply_adds"]
    print(
        f"each / one pass: {found['ratio']:.2f} in time, {found['ratio_of_multiply_adds']:.2f} in multiply-adds, "
        f"{100 * reached:.0f} % of it",
        flush=True,
    )
    write_json({**results, "sharing": found, "mib": measure_memory(options)}, options.out)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
