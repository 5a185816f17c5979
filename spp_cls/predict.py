"""The best classes of images: python -m spp_cls.predict NET IMAGE... [protocol=full1] [format=table] [top=5]."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from spp_cls.cli.arguments import parse_arguments, run_tool
from spp_cls.cli.errors import UserError, format_error
from spp_cls.cli.reading import is_file, is_folder
from spp_cls.cli.schema import key
from spp_cls.cli.targets import import_plugins
from spp_cls.cli.terminal import format_table
from spp_cls.data.loading.batch import normalize
from spp_cls.data.loading.dataset import read_image
from spp_cls.data.sources.files import open_files
from spp_cls.data.transforms.decode import FORMATS
from spp_cls.evaluation.evaluate import check_protocols
from spp_cls.evaluation.features import view_features
from spp_cls.evaluation.images import Cut, cut_images, get_cut
from spp_cls.evaluation.protocols import PROTOCOLS, Protocol, View, get_protocol
from spp_cls.export.exported import ExportedNet, open_exported
from spp_cls.models.checkpoint import load_net
from spp_cls.models.head import find_best_classes
from spp_cls.models.net import SPPNet

USAGE = "python -m spp_cls.predict NET IMAGE... [protocol=full1] [format=table|json] [top=5]"


@dataclass(frozen=True)
class Options:
    """The keys of this command."""

    protocol: str | None = key(None, help="a protocol of eval.py; null: full1, or crop1 of networks of one image size")
    format: Literal["table", "json"] = key("table", help="a table, or a line of JSON for each image")
    plugins: tuple[str, ...] = key((), help="modules to import first, which register backbones of your own")
    top: int = key(5, least=1, help="classes to print for each image")


def open_net(path: str | Path) -> SPPNet | ExportedNet:
    """Open a checkpoint or any export: a folder with model.safetensors, an .onnx or a .pt2 file.

    Raises:
        UserError: if there is no such file, or spp_cls did not write it.
    """
    return open_exported(Path(path)) if Path(path).suffix in (".onnx", ".pt2") else load_net(path)


def _describe(net: SPPNet | ExportedNet) -> SPPNet:
    """Return the network itself; for an export the network without weights that describes it."""
    return net.net if isinstance(net, ExportedNet) else net


def check_can_run(net: SPPNet | ExportedNet, protocol: Protocol) -> None:
    """Raise UserError if a network cannot run a protocol, or has no classes."""
    described = _describe(net)
    check_protocols(described, [protocol])
    if described.num_classes == 0:
        raise UserError("the network has no classes; predict is for networks with a classifier")
    if isinstance(net, ExportedNet) and _has_windows(protocol):
        names = [each.name for each in PROTOCOLS.values() if not _has_windows(each)]
        raise UserError(
            f"{protocol.name} pools windows of feature maps, which this export does not give; choose among "
            f"{', '.join(names)}, or give the checkpoint or the safetensors folder"
        )


def _has_windows(protocol: Protocol) -> bool:
    return any(view.on_maps and view.position is not None for view in protocol.views)


def score_images(net: SPPNet | ExportedNet, images: dict[Cut, Tensor], protocol: Protocol) -> Tensor:
    """Return the scores of N images, N x classes: softmax, averaged over the protocol's views.

    `images` are what cut_images made for the views.
    """
    if isinstance(net, SPPNet):
        logits = view_features(net, images, protocol.views)
    else:
        logits = {view: _run_exported(net, images, view) for view in protocol.views}
    return torch.stack([logits[view].float().softmax(1) for view in protocol.views]).mean(0)


def _run_exported(net: ExportedNet, images: dict[Cut, Tensor], view: View) -> Tensor:
    config = net.net.config
    pixels = images[get_cut(view, config.input_size)]
    return net.run(normalize(pixels.flip(-1) if view.flip else pixels, config.mean, config.std))


def predict(
    net: SPPNet | ExportedNet, paths: Sequence[Path], protocol: Protocol
) -> Iterator[tuple[Path, Tensor | UserError]]:
    """Yield each image's path with its scores, or with the error of an image that has none."""
    config = _describe(net).config
    source = open_files(paths)
    for index, path in enumerate(paths):
        try:
            pixels = read_image(source, index)
        except UserError as error:
            yield path, error
            continue
        images = cut_images([pixels], protocol.views, config.input_size, config.interpolation)
        with torch.inference_mode():
            scores = score_images(net, images, protocol)[0]
        if scores.isfinite().all():
            yield path, scores
        else:
            reason = "the network's values overflow; give another checkpoint"
            yield path, UserError(f"the scores of {path} are not finite: {reason}")


def find_images(names: Sequence[str]) -> list[Path]:
    """Return the images of these names, and all images in folders of these names in the order of their paths.

    Raises:
        UserError: if there is no such file, or no image in a folder.
    """
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        # Path("") is the current folder.
        if not name or (not is_file(path) and not is_folder(path)):
            raise UserError(
                f"there is no image {name or repr(name)}, or it is no file; give files or folders of images"
            )
        found = [path]
        if is_folder(path):
            found = sorted(each for each in path.rglob("*") if each.suffix.lower() in endings and is_file(each))
        if not found:
            raise UserError(f"there is no image in the folder {path}; give files or folders of images")
        paths += found
    return paths


def name_classes(scores: Tensor, class_names: Sequence[str] | None, top: int) -> list[dict[str, Any]]:
    """Describe the `top` best classes, best first: name (the index where there are no names), index and score."""
    values, indices = find_best_classes(scores, top)
    return [
        {"class": class_names[index] if class_names else str(index), "index": index, "score": score}
        for score, index in zip(values.tolist(), indices.tolist(), strict=True)
    ]


def main(arguments: Sequence[str]) -> None:
    """Print the best classes of each image; one that cannot be decoded is named on stderr, and the status is 1."""
    names, options = parse_arguments(
        Options, arguments, USAGE, "python -m spp_cls.predict runs/mine/best.ckpt photo.jpg photos protocol=map98"
    )
    import_plugins(options.plugins)
    if len(names) < 2:
        raise UserError(f"name a network and images: {USAGE}")
    paths = find_images(names[1:])
    net = open_net(names[0])
    config = _describe(net).config
    protocol = get_protocol(options.protocol or ("full1" if config.takes_any_size else "crop1"))
    check_can_run(net, protocol)
    rows: list[tuple[str, str, str]] = []
    failed = False
    for path, scores in predict(net, paths, protocol):
        if isinstance(scores, UserError):
            failed = True
            print(f"error: {format_error(scores)}", file=sys.stderr)
            continue
        classes = name_classes(scores, config.class_names, options.top)
        if options.format == "json":
            print(json.dumps({"image": str(path), "protocol": protocol.name, "classes": classes}), flush=True)
        shown = [str(path), *[""] * (len(classes) - 1)]
        rows += [(name, each["class"], f"{each['score']:.4f}") for name, each in zip(shown, classes, strict=True)]
    if options.format == "table" and rows:
        print(format_table(("image", "class", "score"), rows))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
