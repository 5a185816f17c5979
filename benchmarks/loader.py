"""The speed of the data path: python benchmarks/loader.py data.root=FOLDER [key=value ...].

All sides read the same files, make the same kind of uint8 crops (min side 256, one of five windows of 224, batches of
64) and take turns in one run. Ours leaves flips and colour jitter to the device; the others do without. One core: all
in one process on one thread. Two cores: two workers of each DataLoader. The upper bound is bare decoding of the same
bytes, held in memory, by the fastest decoder.
"""

import io
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import timm.data
import torch
from large_sets import SmallImages, listing, start_up
from PIL import Image
from timing import describe_run, parse_options, time_in_turns, write_json
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2_functional

from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.data.loading.dataset import TrainingCrops
from spp_cls.data.loading.loader import BatchLoader
from spp_cls.data.loading.sampler import TrainingSampler
from spp_cls.data.sources import ImageSource, open_source
from spp_cls.data.sources.packing import PackSettings, pack
from spp_cls.data.transforms.augmentation import PaperAugmentation
from spp_cls.data.transforms.crops import FIVE, find_corner
from spp_cls.data.transforms.decode import decode

BATCH = 64
MIN_SIDE, CROP = 256, 224
# Each turn goes so many times through the images.
PASSES = 4

CPU = torch.device("cpu")

Turn = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of the benchmark."""

    root: str = key(name="data.root", help="image folder of photographs as shipped; its train split is read")
    repeats: int = key(7, help="turns of each side, whose medians count", least=1, most=10_000)
    entries: int = key(1_000_000, help="images of the generated packed set, for start-up and memory", least=1)
    names: int = key(1_280_000, help="files of the generated image folder that is listed", least=1)
    out: str | None = key(None, help="JSON file to write")
    start: str | None = key(None, help="packed set whose start-up is timed in this process, and nothing else")


def decoders(images: list[bytes], repeats: int) -> dict[str, float]:
    """Measure each decoder that is installed, images a second on one core."""
    each: dict[str, Callable[[bytes], Any]] = {
        "simplejpeg": simplejpeg.decode_jpeg,
        "torchvision": lambda data: decode_jpeg(_as_tensor(data), ImageReadMode.RGB),
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        "decode.py": lambda data: decode(data, ""),
    }
    try:
        from torchcodec.decoders import decode_image

        each["torchcodec"] = lambda data: decode_image(_as_tensor(data))
    except ModuleNotFoundError:
        pass

    def turn(one: Callable[[bytes], Any]) -> Turn:
        return lambda: [one(data) for data in images]

    seconds = time_in_turns({name: turn(one) for name, one in each.items()}, repeats, CPU)
    return {name: len(images) / value for name, value in seconds.items()}


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(data, dtype=torch.uint8)


def five_crop(image: Image.Image) -> Image.Image:
    """Cut one of the five windows out of a resized image, as ours draws them."""
    left, top = find_corner(random.choice(FIVE), *image.size, CROP)
    return v2_functional.crop(image, top, left, CROP, CROP)


def ours(images: ImageSource, num_workers: int) -> Turn:
    """Go through training batches as the data module makes them."""
    dataset = TrainingCrops(images, CROP, PaperAugmentation(), seed=0)
    sampler = TrainingSampler(len(images), BATCH, seed=0)
    return _turn(BatchLoader(dataset, BATCH, sampler, True, num_workers, timeout=600, root=images.root))


def torchvision_files(folder: Path, num_workers: int) -> Turn:
    """ImageFolder, Pillow and v2 transforms."""
    transform = v2.Compose([v2.Resize(MIN_SIDE), five_crop, v2.PILToTensor()])
    dataset = ImageFolder(folder, transform)
    dataset.samples *= PASSES
    keep = num_workers > 0
    return _turn(DataLoader(dataset, BATCH, shuffle=True, num_workers=num_workers, persistent_workers=keep))


def timm_files(folder: Path, num_workers: int) -> Turn:
    """timm's create_loader; its transforms, collation and workers, without the normalisation that follows."""
    dataset = timm.data.create_dataset("", root=str(folder))
    dataset.reader.samples *= PASSES
    loader = timm.data.create_loader(
        dataset, CROP, BATCH, is_training=True, num_workers=num_workers, device=torch.device("cpu")
    )
    dataset.transform = v2.Compose([v2.Resize(MIN_SIDE), five_crop, timm.data.transforms.ToNumpy()])
    return _turn(loader.loader)


def _turn(loader: Iterable[Any]) -> Turn:
    def turn() -> None:
        for batch in loader:
            images = batch[0]
            assert images.dtype == torch.uint8
            assert images.shape[1:] == (3, CROP, CROP)

    return turn


class Repeated:
    """A source that has each image of another so many times."""

    def __init__(self, images: ImageSource, times: int) -> None:
        self.images = images
        self.root, self.class_names = images.root, images.class_names
        self.labels = np.tile(images.labels, times)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Name of an image."""
        return self.images.name(index % len(self.images))

    def location(self, index: int) -> str:
        """Return where an image is."""
        return self.images.location(index % len(self.images))

    def read(self, index: int) -> Any:
        """Bytes of an image."""
        return self.images.read(index % len(self.images))

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image."""
        return self.images.size(index % len(self.images))


def speeds(files: ImageSource, packed: dict[str, ImageSource], num_workers: int, repeats: int) -> dict[str, Any]:
    """Compare all sides; images a second, and ours in proportion to the others."""
    folder = files.root
    whole = Repeated(files, PASSES)
    turns: dict[str, Turn] = {
        "ours from files": ours(whole, num_workers),
        **{f"ours from {name}": ours(Repeated(each, PASSES), num_workers) for name, each in packed.items()},
        "torchvision ImageFolder, v2, Pillow": torchvision_files(folder, num_workers),
        "timm create_loader": timm_files(folder, num_workers),
    }
    if not num_workers:
        for name, each in {"files": files, **packed}.items():
            turns[f"bare decoding of {name}"] = bare_decoding([bytes(each.read(i)) for i in range(len(each))])
    seconds = time_in_turns(turns, repeats, CPU)
    rates = {name: len(whole) // BATCH * BATCH / value for name, value in seconds.items()}
    for name in rates:
        if not name.startswith("ours"):
            # The others do not leave the last images out.
            rates[name] = len(whole) / seconds[name]
    ratios = {f"{a} / {b}": rates[a] / rates[b] for a in rates if a.startswith("ours") for b in rates if a != b}
    return {"images_per_second": rates, "ratios": ratios}


def bare_decoding(images: list[bytes]) -> Turn:
    """Decode the bytes and do nothing else."""

    def turn() -> None:
        for _ in range(PASSES):
            for data in images:
                simplejpeg.decode_jpeg(data)

    return turn


def main(arguments: Sequence[str]) -> None:
    """Measure, print the figures and write them as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/loader.py data.root=FOLDER repeats=3")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.start:
        print(json.dumps(start_up(Path(options.start), BATCH, CROP)))
        return
    files = open_source("imagefolder", options.root, "train")
    results = describe_run(
        "python benchmarks/loader.py data.root=FOLDER",
        CPU,
        images=len(files),
        mean_kilobytes=sum(len(files.read(i)) for i in range(len(files))) / len(files) / 1e3,
        **{name: version(name) for name in ("torchvision", "timm", "pillow", "simplejpeg", "pyarrow")},
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed: dict[str, ImageSource] = {}
        for kind, settings in (
            ("a pack of min side 256", PackSettings(MIN_SIDE)),
            ("a pack of bytes as they are", PackSettings()),
        ):
            pack({"train": files}, folder / kind, settings, 2, "stop")
            packed[kind] = open_source("packed", folder / kind, "train")
        results["decoders"] = decoders([bytes(files.read(i)) for i in range(len(files))], options.repeats)
        results["one_core"] = speeds(files, packed, 0, options.repeats)
        results["two_workers"] = speeds(files, packed, 2, options.repeats)
        pack({"train": SmallImages(options.entries)}, folder / "many", PackSettings(), 2, "stop")
        child = [sys.executable, __file__, f"data.root={options.root}", f"start={folder / 'many'}"]
        found = subprocess.run(child, capture_output=True, text=True, check=True).stdout
        results["start_up"] = {"entries": options.entries, **json.loads(found.splitlines()[-1])}
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        results["listing_seconds"] = {"names": options.names, **listing(folder / "names", options.names)}
    print(json.dumps(results, indent=2))
    write_json(results, options.out)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
