"""Small data sets in the layouts that Caltech-101 and VOC 2007 are shipped in."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conftest import write_image

COLOURS = {"BACKGROUND_Google": (120, 120, 120), "anchor": (40, 60, 200), "ant": (50, 190, 60), "bass": (210, 50, 40)}
SHAPES = [(90, 70), (70, 90), (80, 80), (150, 75)]


def write_caltech(root: Path, images: int = 6, classes: int = 3) -> Path:
    """Write 101_ObjectCategories below `root`: so many classes, the background first, in images of four shapes."""
    for number, (name, colour) in enumerate(list(COLOURS.items())[:classes]):
        for i in range(images):
            path = root / "101_ObjectCategories" / name / f"image_{i + 1:04}.jpg"
            write_image(path, *SHAPES[(i + number) % 4], colour, seed=i)
    return root


def write_voc(root: Path, targets: Mapping[str, Mapping[str, Sequence[int]]]) -> Path:
    """Write VOCdevkit/VOC2007 below `root`: `targets` are for train, val and test the images' targets by class."""
    folder = root / "VOCdevkit/VOC2007"
    lists = folder / "ImageSets/Main"
    lists.mkdir(parents=True)
    ids: dict[str, list[str]] = {}
    count = 0
    for part, of_classes in targets.items():
        images = len(next(iter(of_classes.values())))
        ids[part] = [f"{count + i + 1:06}" for i in range(images)]
        count += images
    parts = {**{part: (part,) for part in targets}, "trainval": ("train", "val")}
    for part, members in parts.items():
        numbered = sorted(each for member in members for each in ids[member])
        (lists / f"{part}.txt").write_text("".join(f"{each}\n" for each in numbered))
        for name in targets["train"]:
            lines = [
                f"{each} {value:2d}\n"
                for member in members
                for each, value in zip(ids[member], targets[member][name], strict=True)
            ]
            (lists / f"{name}_{part}.txt").write_text("".join(sorted(lines)))
    for part, of_classes in targets.items():
        for i, each in enumerate(ids[part]):
            shown = [
                colour
                for (name, values), colour in zip(of_classes.items(), COLOURS.values(), strict=False)
                if values[i] >= 0
            ]
            colour = shown[0] if shown else (0, 0, 0)
            write_image(folder / f"JPEGImages/{each}.jpg", *SHAPES[i % 4], colour, seed=i)
            objects = "".join(
                f"<object><name>{name}</name><difficult>{int(values[i] == 0)}</difficult></object>"
                for name, values in of_classes.items()
                if values[i] >= 0
            )
            path = folder / f"Annotations/{each}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"<annotation><filename>{each}.jpg</filename>{objects}</annotation>")
    return root
