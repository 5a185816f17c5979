"""Draw training images as the network sees them: python -m spp_cls.data.show [key=value ...]."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from spp_cls.cli.arguments import parse_keys, run_tool
from spp_cls.cli.errors import UserError, check_png, explain_write_errors
from spp_cls.cli.schema import key
from spp_cls.data.loading.batch import Batch, finish_on_device, mix_batch
from spp_cls.data.loading.dataset import TrainingCrops
from spp_cls.data.loading.sampler import TrainingSampler
from spp_cls.data.sources import open_source
from spp_cls.data.transforms.augmentation import Augmentation, PaperAugmentation, create_augmentation
from spp_cls.data.transforms.randomness import Purpose, create_generator
from spp_cls.data.transforms.sizes import list_sizes

_STANDARD_MODULE = "spp_cls.data.transforms.standard"
_STANDARD = {"standard": "StandardAugmentation", "strong": "StrongAugmentation", "mix": "MixAugmentation"}

_COLUMNS = 8
_LINE = 14

_USAGE = """python -m spp_cls.data.show [key=value ...]

Draws the first training images of an epoch after augmentation, with their classes, at both sizes of the paper's
multi-size training."""
_EXAMPLE = "python -m spp_cls.data.show data=imagefolder data.root=/data/flowers images=32"


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """The keys of the command."""

    data: str = key("demo", help="demo, imagefolder, imagenet, caltech101, packed or your own my_module.function")
    root: str | None = key(None, name="data.root", help="folder of the data set; null: data/demo, for the demo")
    out: str = key("sheet.png", help="picture to write")
    images: int = key(16, help="number of images", least=1, most=10_000)
    epoch: int = key(0, help="epoch whose images are drawn", least=0)
    seed: int = key(0, help="seed of order and augmentation", least=0)
    crop: int = key(224, help="side of the training crop", least=1, most=10_000)
    augmentation: str = key("paper", help="paper, none, standard, strong, mix or your own my_module.Mine")
    pca_std: float | None = key(
        None, help=f"colour jitter of the paper's augmentation; 0: none; null: {PaperAugmentation().pca_std:g}", least=0
    )


def draw_sheet(
    batch: Batch, sizes: list[int], class_names: tuple[str, ...], mix: Callable[[Batch], Batch] = lambda batch: batch
) -> Image.Image:
    """Draw the images of a batch, after augmentation, at each size, with the names of their classes.

    `mix` is what the device does to a finished batch.
    """
    columns = min(_COLUMNS, len(batch.labels))
    rows = -(-len(batch.labels) // columns)
    sheet = Image.new("RGB", (columns * max(sizes), sum(rows * (size + _LINE) for size in sizes)), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for size in sizes:
        finished = mix(finish_on_device(batch, mean=(0, 0, 0), std=(1, 1, 1), size=size))
        pixels = finished.images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for number, label in enumerate(finished.labels.tolist()):
            left, above = number % columns * size, top + number // columns * (size + _LINE)
            sheet.paste(Image.fromarray(np.ascontiguousarray(pixels[number])), (left, above + _LINE))
            pen.text((left + 2, above), f"{class_names[label]}, {size}"[: size // 7], fill="black")
        top += rows * (size + _LINE)
    return sheet


def main(arguments: Sequence[str]) -> None:
    """Draw the first images of an epoch."""
    options = parse_keys(ShowOptions, arguments, _USAGE, _EXAMPLE)
    if options.root is None and options.data != "demo":
        raise UserError("data.root is not set; give it as data.root=FOLDER")
    check_png(options.out, "out")
    source = open_source(options.data, options.root or "data/demo", "train")
    count = min(options.images, len(source))
    sampler = TrainingSampler(len(source), count, options.seed)
    sampler.set_epoch(options.epoch)
    chosen = [epoch_index for epoch_index, _ in zip(sampler, range(count), strict=False)]
    augmentation = _create_augmentation(options)
    if augmentation.mixes_pairs and count % 2:
        raise UserError(f"the augmentation mixes images in pairs, and {count} is an odd number; set images to another")
    batch = TrainingCrops(source, options.crop, augmentation, options.seed).__getitems__(chosen)

    def mix(finished: Batch) -> Batch:
        if not augmentation.mixes_pairs:
            return finished
        random = create_generator(Purpose.MIXING, options.seed, options.epoch)
        return mix_batch(finished, augmentation, random, len(source.class_names))

    sheet = draw_sheet(batch, list_sizes("alternate", options.crop), source.class_names, mix)
    with explain_write_errors(options.out, "out"):
        sheet.save(options.out, format="PNG")
    print(f"{count} images of epoch {options.epoch}, seed {options.seed}: {options.out}")


def _create_augmentation(options: ShowOptions) -> Augmentation:
    if options.augmentation == "paper":
        return PaperAugmentation() if options.pca_std is None else PaperAugmentation(pca_std=options.pca_std)
    if options.pca_std is not None:
        raise UserError("pca_std is for augmentation=paper; leave it out")
    if options.augmentation == "none":
        return PaperAugmentation(corners=False, flip=False, pca_std=0)
    if options.augmentation in _STANDARD:
        return create_augmentation({"_target_": f"{_STANDARD_MODULE}.{_STANDARD[options.augmentation]}"})
    return create_augmentation({"_target_": options.augmentation})


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
