"""Draw the views of an image and their feature map: python -m spp_cls.evaluation.show NET IMAGE [key=value ...]."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from spp_cls.cli.arguments import parse_arguments, run_tool
from spp_cls.cli.errors import UserError, check_png, explain_write_errors
from spp_cls.cli.reading import is_file
from spp_cls.cli.schema import key
from spp_cls.cli.targets import import_plugins
from spp_cls.data.loading.dataset import read_image
from spp_cls.data.sources.files import open_files
from spp_cls.evaluation.csv_files import check_distinct
from spp_cls.evaluation.pictures import draw_views
from spp_cls.evaluation.protocols import REFERENCE_SIDE
from spp_cls.models.checkpoint import load_net

_USAGE = """python -m spp_cls.evaluation.show NET IMAGE [key=value ...]

Draws the nine windows of a scale on an image and on its feature map, and the bins that the pyramid pools the first
window into. NET is a checkpoint, or a folder written by python -m spp_cls.export."""
_EXAMPLE = "python -m spp_cls.evaluation.show runs/imagenette/best.ckpt photo.jpg out=views.png scale=448"


@dataclass(frozen=True)
class ShowOptions:
    """The keys of this command."""

    out: str = key("views.png", help="PNG file to write")
    scale: int = key(256, help="min side of the image, for a network trained on crops of 224", least=REFERENCE_SIDE)
    channel: int | None = key(None, help="channel of the feature map; null: the one with the largest mean", least=0)
    plugins: tuple[str, ...] = key((), help="modules to import first, which register backbones of your own")


def main(arguments: Sequence[str]) -> None:
    """Draw an image as a network sees it."""
    names, options = parse_arguments(ShowOptions, arguments, _USAGE, _EXAMPLE)
    if len(names) != 2:
        raise UserError("name a network and an image: python -m spp_cls.evaluation.show NET IMAGE [key=value ...]")
    import_plugins(options.plugins)
    check_png(options.out, "out")
    if not is_file(names[1]):
        raise UserError(f"there is no image {names[1]}, or it is no file; give an image file")
    check_distinct(IMAGE=names[1], out=options.out)
    net = load_net(names[0])
    picture = draw_views(net, read_image(open_files(names[1:]), 0), options.scale, options.channel)
    with explain_write_errors(options.out, "out"):
        picture.save(options.out, format="PNG", optimize=True)
    print(f"{picture.width} x {picture.height} pixels: {options.out}")


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
