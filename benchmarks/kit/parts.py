"""The parts of the kit for GPUs: what each runs, its share of the time, and what it needs."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from spp_cls.data.pack import SPLITS
from spp_cls.data.sources import ImageSource, open_source
from spp_cls.data.sources.packing import PackSettings, pack

# What follows the name of the Python program.
Command = list[str]

# The rows of Table 2 that tell most, first.
CELLS = [
    f"{net}_{trained}"
    for net in ("zf5", "overfeat7", "convnet5", "overfeat5")
    for trained in ("nospp", "spp_singlesize", "spp_multisize")
]
TOY_CELLS = ("zf5_nospp", "overfeat7_spp_multisize")

# Dense products of bfloat16, in TFLOP/s, as the maker's data sheets have it.
PEAKS = {"H200": 989, "H100": 989, "A100": 312}

# Images of the folder that the loaders of other libraries read.
FILES = 600


class SkipError(Exception):
    """The reason why a part cannot run."""


@dataclass(frozen=True)
class Kit:
    """What the commands of all parts depend on."""

    device: str
    is_toy: bool
    data: Path
    out: Path
    runs: Path
    scratch: Path
    at_once: int
    hardware: str

    @property
    def accelerator(self) -> str:
        """Lightning's name of the device."""
        return "gpu" if self.device == "cuda" else "cpu"

    def find_data(self) -> Path:
        """Return the packed data set: the given one, or a drawn one for toy."""
        if self.is_toy:
            return _draw_toy(self.scratch)[0]
        if not (self.data / "manifest.json").is_file():
            raise SkipError(f"no data set in {self.data}; make one by python benchmarks/gpu_data.py, and set data=")
        return self.data

    def find_files(self) -> Path:
        """Return some of its images as an image folder."""
        return _draw_toy(self.scratch)[1] if self.is_toy else _unpack(self.find_data(), self.scratch / "files")


@cache
def _draw_toy(scratch: Path) -> tuple[Path, Path]:
    """Draw noise in three colours; return it packed, and as an image folder."""
    files, packed = scratch / "toy", scratch / "toy-packed"
    random = np.random.default_rng(0)
    for split, count in zip(SPLITS, (24, 4), strict=True):
        for label in range(3):
            folder = files / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 128, (128, 144, 3), np.uint8) + np.eye(3, dtype=np.uint8)[label] * 127
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    sources: dict[str, ImageSource] = {split: open_source("imagefolder", files, split) for split in SPLITS}
    with redirect_stdout(io.StringIO()):
        pack(sources, packed, PackSettings(128), 1, "stop")
    return packed, files


@cache
def _unpack(packed: Path, folder: Path) -> Path:
    source = open_source("packed", packed, "train")
    for index in np.random.default_rng(0).permutation(len(source))[:FILES].tolist():
        path = folder / "train" / source.class_names[source.labels[index]] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(source.read(index)))
    return folder


def _list_tests(kit: Kit) -> list[Command]:
    report = f"--junitxml={kit.out}/tests.xml"
    return [["-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", "--durations=15", report, "tests/gpu"]]


def _benchmark(kit: Kit, script: str, *keys: str, has_device: bool = True, out: str | None = None) -> Command:
    device = [f"device={kit.device}"] if has_device else []
    return [f"benchmarks/{script}.py", *device, *keys, f"out={kit.out}/{out or script}.json"]


def _list_steps(kit: Kit) -> list[Command]:
    if kit.is_toy:
        return [_benchmark(kit, "train_step", "nets=zf5", "sizes=64", "batch=2", "repeats=1",
                           "precisions=32-true", "versions=[plain,ours]")]  # fmt: skip
    peak = [f"peak_tflops={peak}" for name, peak in PEAKS.items() if name in kit.hardware]
    settings = (
        ("nets=zf5", "sizes=224", "batch=[128,256,1024]"),
        ("nets=overfeat7", "sizes=224", "batch=128"),
        ("nets=zf5", "sizes=180", "batch=128"),
        ("nets=[convnet5,overfeat5]", "sizes=224", "batch=128"),
    )
    return [_benchmark(kit, "train_step", *each, "repeats=20", *peak) for each in settings]


def _list_feed(kit: Kit) -> list[Command]:
    keys = ("repeats=1", "batch=8", "workers=[0,1]") if kit.is_toy else ()
    return [_benchmark(kit, "feed", f"data.root={kit.find_data()}", *keys)]


def _list_lrn(kit: Kit) -> list[Command]:
    toy = ("shape=[2,8,9,9]", "repeats=1", "compiled=false")
    return [_benchmark(kit, "lrn", *(toy if kit.is_toy else ("shape=[128,96,110,110]", "repeats=20")))]


def _list_spp(kit: Kit) -> list[Command]:
    toy = ("shape=[2,8,13,13]", "repeats=1", "compiled=false")
    return [_benchmark(kit, "spp", *(toy if kit.is_toy else ("repeats=50",)))]


def _list_multiview(kit: Kit) -> list[Command]:
    toy = ("nets=zf5", "width=0.05", "images=4", "windows=20", "repeats=1")
    return [_benchmark(kit, "multiview", *(toy if kit.is_toy else ("images=64",)))]


def _list_loader(kit: Kit) -> list[Command]:
    keys = (
        ("repeats=1", "entries=2000", "names=2000") if kit.is_toy else ("repeats=3", "entries=100000", "names=100000")
    )
    return [_benchmark(kit, "loader", f"data.root={kit.find_files()}", *keys, has_device=False)]


def _list_mini(kit: Kit) -> list[Command]:
    keys = [
        "data=packed", f"data.root={kit.find_data()}", "data.cache=device", f"trainer.accelerator={kit.accelerator}",
    ]  # fmt: skip
    if kit.is_toy:
        keys += ["model.width=0.05", "trainer.max_epochs=1", "data.batch_size=8", "data.num_workers=0"]
    else:
        keys += ["model.width=1", "data.num_workers=4"]
    cells = TOY_CELLS if kit.is_toy else CELLS
    return [["train.py", f"experiment=mini/{cell}", f"run_folder={kit.runs}/{cell}", *keys] for cell in cells]


def _list_protocols(kit: Kit) -> list[Command]:
    if not any(kit.runs.rglob("best.ckpt")):
        raise SkipError(f"no trained network in {kit.runs}; the part mini trains them")
    workers = "data.num_workers=0" if kit.is_toy else "data.num_workers=auto"
    protocol = "protocol=[crop1,crop10]" if kit.is_toy else "protocol=all"
    return [["eval.py", f"ckpt={kit.runs}", protocol, "data=packed", f"data.root={kit.find_data()}", workers,
             f"trainer.accelerator={kit.accelerator}", f"out={kit.out}/mini.csv"]]  # fmt: skip


class Part(NamedTuple):
    """A part: its share of the time that is left, in proportion to the others', and its commands.

    `is_parallel`: whether the commands run side by side.
    """

    share: int
    list_commands: Callable[[Kit], list[Command]]
    is_parallel: bool = False


# What tells most comes first: time may be short.
PARTS = {
    "tests": Part(8, _list_tests),
    "steps": Part(6, _list_steps),
    "feed": Part(2, _list_feed),
    "lrn": Part(1, _list_lrn),
    "spp": Part(1, _list_spp),
    "multiview": Part(2, _list_multiview),
    "loader": Part(2, _list_loader),
    "mini": Part(9, _list_mini, is_parallel=True),
    "protocols": Part(3, _list_protocols),
}
