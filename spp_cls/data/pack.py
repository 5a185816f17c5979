"""Pack a data set into a few Arrow files: python -m spp_cls.data.pack data.root=IN out=OUT [key=value ...]."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from spp_cls.cli.arguments import parse_keys, run_tool
from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import key
from spp_cls.data.loading.workers import count_cpus
from spp_cls.data.sources import Split, open_source
from spp_cls.data.sources.identity import hash_file, name_source
from spp_cls.data.sources.kinds import check_root
from spp_cls.data.sources.packed import PackedImages, read_manifest
from spp_cls.data.sources.packing import PackSettings, PackSource, pack
from spp_cls.data.sources.parquet import open_parquet

SPLITS: tuple[Split, ...] = ("train", "val")

_USAGE = """python -m spp_cls.data.pack data.root=IN out=OUT [key=value ...]
python -m spp_cls.data.pack verify data.root=OUT

Packs the training and validation images of IN into a few Arrow files in OUT. Every image is decoded once on the way.
After an interruption the same command continues. A packed data set is complete when its manifest.json is there;
verify checks its files. --on-bad skip is the same as on_bad=skip."""
_EXAMPLE = "python -m spp_cls.data.pack data=imagenet data.root=/data/imagenet out=/data/packed min_side=256"


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """The keys of the command."""

    data: str = key(
        "imagefolder",
        help="what IN is: imagefolder, imagenet, caltech101, parquet, demo or my_module.function",
    )
    root: str = key(name="data.root", help="folder of the data set")
    out: str = key(help="folder to write")
    min_side: int | None = key(
        None, help="null: bytes unchanged; 256: JPEGs of that min side, for crops of 224", least=1, most=10_000
    )
    quality: int = key(90, help="quality of those JPEGs", least=1, most=100)
    num_workers: Literal["auto"] | int = key(
        "auto", help="threads that decode and encode; auto: one per CPU", least=1, most=1024
    )
    on_bad: Literal["stop", "skip"] = key(
        "stop", help="at an image that cannot be decoded; skip lists it in the manifest"
    )


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """The keys of the command with verify."""

    root: str = key(name="data.root", help="folder of the packed data set")


def main(arguments: Sequence[str]) -> None:
    """Pack a data set, or verify a packed one."""
    if arguments[:1] == ["verify"]:
        root = parse_keys(VerifyOptions, arguments[1:], _USAGE, _EXAMPLE).root
        check_root(root)
        counts = verify(Path(root))
        print(", ".join(f"{split}: {count:,} images as packed" for split, count in counts.items()))
        return
    options = parse_keys(PackOptions, _convert_flag(arguments), _USAGE, _EXAMPLE)
    if not options.out:
        raise UserError("out is empty; name the folder to write")
    if options.data == "parquet":
        # The others are opened by open_source, which looks itself.
        check_root(options.root)
    torch.set_num_threads(1)  # each thread of the pool works on an image of its own
    sources: Mapping[str, PackSource] = (
        open_parquet(Path(options.root))
        if options.data == "parquet"
        else {split: open_source(options.data, options.root, split) for split in SPLITS}
    )
    num_workers = count_cpus() if options.num_workers == "auto" else options.num_workers
    settings = PackSettings(options.min_side, options.quality)
    name = name_source(options.data, options.root, sources["train"])
    manifest = pack(sources, Path(options.out), settings, num_workers, options.on_bad, name)
    for split, content in manifest["splits"].items():
        size = sum(file["bytes"] for file in content["files"])
        print(f"{split}: {content['images']:,} images, {size / 1e6:,.0f} MB, {len(content['bad'])} left out")
    print(f"Train from it: python train.py experiment=paper data=packed data.root={options.out}")


def verify(root: Path) -> dict[str, int]:
    """Check the files of a packed data set against its manifest; return the number of images of each split.

    Raises:
        UserError: if a file is missing or differs, or is not a packed file.
    """
    counts = {}
    for split, content in read_manifest(root)["splits"].items():
        source = PackedImages(root, split)
        for entry in content["files"]:
            path = root / entry["name"]
            if hash_file(path) != entry["sha256"]:
                raise UserError(f"{path} differs from what was packed; copy it again or pack it again")
        counts[split] = len(source)
    return counts


def _convert_flag(arguments: Sequence[str]) -> list[str]:
    """Turn --on-bad skip into on_bad=skip."""
    text = "\n".join(arguments).replace("--on-bad\n", "on_bad=").replace("--on-bad=", "on_bad=")
    return text.split("\n") if text else []


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
