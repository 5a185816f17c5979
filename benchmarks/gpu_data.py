"""A small data set for a machine without a connection: python benchmarks/gpu_data.py root=FOLDER out=FOLDER.

Packs an image folder, such as Imagenette, at the min side that crops of 112 are cut from, at the highest JPEG quality
with which all of it stays below `megabytes`.
"""

import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from spp_cls.cli.arguments import parse_keys, run_tool
from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import key
from spp_cls.data.loading.dataset import read_image
from spp_cls.data.loading.workers import count_cpus
from spp_cls.data.pack import SPLITS
from spp_cls.data.sources import ImageSource, open_source
from spp_cls.data.sources.packing import PackSettings, pack
from spp_cls.data.transforms.crops import resize

QUALITIES = range(95, 25, -5)
# Images whose size at a quality stands for that of all, and what Arrow and the names add to an image, in bytes.
SAMPLE, OVERHEAD = 500, 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of the program."""

    root: str = key(help="image folder with train/ and val/")
    out: str = key(help="folder to write")
    min_side: int = key(128, least=1, help="pixels of the shorter side")
    megabytes: float = key(50.0, above=0, help="size that the data set stays below")


def choose_quality(sources: Sequence[ImageSource], min_side: int, megabytes: float) -> int:
    """Return the highest quality at which the images fit, found from a sample.

    Raises:
        UserError: if they fit at none.
    """
    places = [(source, index) for source in sources for index in range(len(source))]
    sample = random.Random(0).sample(places, min(SAMPLE, len(places)))
    images = [np.ascontiguousarray(resize(read_image(*place), min_side)) for place in sample]
    # An error of three standard deviations of the mean is allowed for.
    most = 1e6 * megabytes / len(places) - OVERHEAD
    for quality in QUALITIES:
        sizes = [len(simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420")) for image in images]
        if np.mean(sizes) + 3 * np.std(sizes) / np.sqrt(len(sizes)) < most:
            return quality
    raise UserError(
        f"{len(places):,} images of min side {min_side} take over {megabytes:g} MB at any quality; "
        "set a smaller min_side or more megabytes"
    )


def main(arguments: Sequence[str]) -> None:
    """Pack the data set, and say how large it is."""
    usage = "python benchmarks/gpu_data.py root=FOLDER out=FOLDER [key=value ...]"
    options = parse_keys(Options, arguments, usage, "python benchmarks/gpu_data.py root=/data/imagenette out=/data/kit")
    sources: dict[str, ImageSource] = {split: open_source("imagefolder", options.root, split) for split in SPLITS}
    quality = choose_quality(list(sources.values()), options.min_side, options.megabytes)
    manifest = pack(sources, Path(options.out), PackSettings(options.min_side, quality), count_cpus(), "stop")
    files = itertools.chain.from_iterable(content["files"] for content in manifest["splits"].values())
    megabytes = sum(file["bytes"] for file in files) / 1e6
    images = sum(content["images"] for content in manifest["splits"].values())
    if megabytes > options.megabytes:
        raise UserError(f"{options.out} has {megabytes:.1f} MB; remove it and set a smaller megabytes")
    print(f"{options.out}: {images:,} images of min side {options.min_side}, quality {quality}, {megabytes:.1f} MB")


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
