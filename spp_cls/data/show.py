"""Draws a batch as the network sees it: python -m spp_cls.data.show data=KIND data.root=FOLDER [key=value ...].

data=demo           what the folder is: demo, imagefolder, imagenet or packed
data.root=data/demo
out=sheet.png       the picture: rows of crops with their labels, at 224 pixels and resized to 180
images=16           how many
epoch=0 seed=0      of which epoch and seed
crop=224            side of the training crop
colour_deviation=0.1
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from spp_cls.data.batch import Batch, finish_on_device
from spp_cls.data.dataset import TrainingCrops
from spp_cls.data.sampler import TrainingSampler
from spp_cls.data.sizes import possible_sizes
from spp_cls.data.sources import open_source
from spp_cls.errors import UserError, one_line
from spp_cls.options import options, whole_number

_COLUMNS = 8
_LINE = 14


def contact_sheet(batch: Batch, sizes: list[int], class_names: tuple[str, ...]) -> Image.Image:
    """Draw the images of a batch, as they are after augmentation, at each size, with the names of their classes."""
    columns = min(_COLUMNS, len(batch.labels))
    rows = -(-len(batch.labels) // columns)
    sheet = Image.new("RGB", (columns * max(sizes), sum(rows * (size + _LINE) for size in sizes)), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for size in sizes:
        images = finish_on_device(batch, mean=(0, 0, 0), size=size).images
        pixels = images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for number, label in enumerate(batch.labels.tolist()):
            left, above = number % columns * size, top + number // columns * (size + _LINE)
            sheet.paste(Image.fromarray(np.ascontiguousarray(pixels[number])), (left, above + _LINE))
            pen.text((left + 2, above), f"{class_names[label]}, {size}"[: size // 7], fill="black")
        top += rows * (size + _LINE)
    return sheet


def main(arguments: list[str]) -> None:
    """Draw the first images of an epoch."""
    defaults = {"data": "demo", "data.root": None, "out": "sheet.png", "images": "16", "crop": "224"}
    given = options({**defaults, "epoch": "0", "seed": "0", "colour_deviation": "0.1"}, arguments)
    if given["data.root"] is None and given["data"] != "demo":
        raise UserError("data.root is not set; give it as data.root=FOLDER")
    source = open_source(given["data"], given["data.root"] or "data/demo", "train")
    count = min(whole_number(given, "images"), len(source))
    crop = whole_number(given, "crop")
    seed, epoch = (int(given[key]) if given[key].isdecimal() else -1 for key in ("seed", "epoch"))
    if min(seed, epoch) < 0:
        raise UserError("seed and epoch are whole numbers from 0")
    try:
        deviation = float(given["colour_deviation"])
    except ValueError as error:
        raise UserError(f"colour_deviation is a number, not {given['colour_deviation']}") from error
    sampler = TrainingSampler(len(source), count, seed)
    sampler.set_epoch(epoch)
    chosen = [place for place, _ in zip(sampler, range(count), strict=False)]
    batch = TrainingCrops(source, crop, seed, deviation).__getitems__(chosen)
    sheet = contact_sheet(batch, possible_sizes("alternate", crop), source.class_names)
    sheet.save(Path(given["out"]), format="PNG")
    print(f"{count} images of epoch {epoch}, seed {seed}: {given['out']}")


if __name__ == "__main__":
    one_line(lambda: main(sys.argv[1:]))
