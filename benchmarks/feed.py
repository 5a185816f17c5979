"""How fast training batches reach the device: python benchmarks/feed.py data=KIND data.root=FOLDER [key=value ...].

Batches as the data module makes them, flipped, shifted in colour, normalised and in place on the device: read by
workers, whose batches go to a GPU through pinned memory, or cut out of images that are there already
(data.cache=device). Images a second, to be held against those of training steps (train_step.py).
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from timing import SharedOptions, choose_device, describe_run, parse_options, write_json

from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import format_table
from spp_cls.data import ImageNetDataModule
from spp_cls.data.loading.workers import count_cpus


@dataclass(frozen=True, kw_only=True)
class Options(SharedOptions):
    """The keys of this script."""

    data: str = key("packed", help="packed, imagefolder, imagenet or demo")
    root: str = key(name="data.root", help="folder of the data set")
    repeats: int = key(3, least=1, help="epochs after the first, whose fastest counts")
    crop: int = key(112, least=1, help="side of the training crops in pixels")
    batch: int = key(128, least=1, help="images of a batch")
    workers: tuple[int, ...] = key((), least=0, help="numbers of workers; []: 2, half the CPUs and all of them")


def measure_epochs(options: Options, workers: int, cache: Any, device: torch.device) -> float:
    """Return the images a second of the fastest epoch; the first, in which workers start, does not count."""
    data = ImageNetDataModule(
        options.data, options.root, options.batch, workers, cache=cache, crop=options.crop, std=(57.6, 57.6, 57.6)
    )
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    data.trainer = pl.Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False)
    loader = data.train_dataloader()
    seconds = []
    for epoch in range(options.repeats + 1):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        start = time.perf_counter()
        for batch in loader:
            images = data.on_after_batch_transfer(batch, 0).images
            assert images.device.type == device.type
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return len(loader) * options.batch / min(seconds[1:])


def main(arguments: Sequence[str]) -> None:
    """Measure each number of workers and the cache, print a table and write it as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/feed.py data.root=FOLDER out=results/feed.json")
    if not options.workers:
        options = replace(options, workers=tuple(sorted({2, max(1, count_cpus() // 2), count_cpus()})))
    device = choose_device(options.device)
    torch.set_num_threads(1)
    rates: dict[str, float] = {}
    results = describe_run(
        "python benchmarks/feed.py data.root=FOLDER", device, cpus=count_cpus(), batch=options.batch,
        crop=options.crop, images_per_second=rates,
    )  # fmt: skip
    for workers in options.workers:
        rates[f"{workers} workers"] = measure_epochs(options, workers, "none", device)
        write_json(results, options.out)
    rates["data.cache=device"] = measure_epochs(options, max(options.workers), "device", device)
    write_json(results, options.out)
    print(format_table(("batches from", "images a second"), [(name, f"{rate:,.0f}") for name, rate in rates.items()]))


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
