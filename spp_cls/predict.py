"""The best classes of images: python -m spp_cls.predict NET IMAGE... [protocol=full1] [format=table] [top=5]."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spp_cls.checkpoint import load_net
from spp_cls.data.batch import minus_mean
from spp_cls.data.sources import ImageFiles
from spp_cls.errors import UserError, error_line, one_line
from spp_cls.evaluation.evaluate import check_protocols, view_logits
from spp_cls.evaluation.images import Cut, ViewedImages, cut_of
from spp_cls.evaluation.views import PROTOCOLS, Protocol, View, get_protocol
from spp_cls.exported import ExportedNet, open_exported
from spp_cls.models.net import SPPNet
from spp_cls.options import names_and_options
from spp_cls.text_tables import terminal_table

DEFAULTS: dict[str, Any] = {"protocol": None, "format": "table", "top": "5"}

# As eval.py's max_pixels.
_MAX_PIXELS = 8_000_000

_USAGE = "python -m spp_cls.predict NET IMAGE... [protocol=full1] [format=table|json] [top=5]"


def open_net(path: str | Path) -> SPPNet | ExportedNet:
    """Open a checkpoint or any export: a folder with model.safetensors, an .onnx or a .pt2 file.

    Raises:
        UserError: there is no such file, or it is none of spp_cls.
    """
    return open_exported(Path(path)) if Path(path).suffix in (".onnx", ".pt2") else load_net(path)


def _plain(net: SPPNet | ExportedNet) -> SPPNet:
    """Return the network, or that of an export, which has no weights."""
    return net.net if isinstance(net, ExportedNet) else net


def check_can_run(net: SPPNet | ExportedNet, protocol: Protocol) -> None:
    """Raise UserError if a network cannot run a protocol, has no classes, or is not for RGB images."""
    plain = _plain(net)
    check_protocols(plain, [protocol])
    if plain.num_classes == 0 or plain.recipe.in_chans != 3:
        raise UserError(
            f"the network has {plain.recipe.in_chans} input channels and {plain.num_classes} classes; "
            "predict is for RGB images and networks with a classifier"
        )
    if isinstance(net, ExportedNet) and any(_is_window(view) for view in protocol.views):
        able = [p.name for p in PROTOCOLS.values() if not any(_is_window(view) for view in p.views)]
        raise UserError(
            f"{protocol.name} pools windows of feature maps, which this export does not give; choose among "
            f"{', '.join(able)}, or give the checkpoint or the safetensors folder"
        )


def _is_window(view: View) -> bool:
    return view.on_maps and view.position is not None


def protocol_scores(net: SPPNet | ExportedNet, images: dict[Cut, Tensor], protocol: Protocol) -> Tensor:
    """Return the scores of N images, N x classes: softmax, averaged over the protocol's views.

    `images` are the cuts that the views need, uint8 N x 3 x h x w.
    """
    if isinstance(net, SPPNet):
        logits = view_logits(net, images, protocol.views, _MAX_PIXELS)
    else:
        logits = {view: _exported_logits(net, images, view) for view in protocol.views}
    return torch.stack([logits[view].float().softmax(1) for view in protocol.views]).mean(0)


def _exported_logits(net: ExportedNet, images: dict[Cut, Tensor], view: View) -> Tensor:
    recipe = net.net.recipe
    pixels = images[cut_of(view, recipe.input_size)]
    return net.run(minus_mean(pixels.flip(-1) if view.flip else pixels, recipe.mean))


def predictions(
    net: SPPNet | ExportedNet, paths: Sequence[Path], protocol: Protocol
) -> Iterator[tuple[Path, Tensor | UserError]]:
    """Yield each image's path with its scores, or with the error of an image that cannot be read or decoded."""
    recipe = _plain(net).recipe
    files = ImageFiles(Path(), np.array([os.fsencode(path) for path in paths]), np.zeros(len(paths), np.int64), ())
    cuts = {cut_of(view, recipe.input_size) for view in protocol.views}
    images = ViewedImages(files, cuts, recipe.input_size)
    for number, path in enumerate(paths):
        try:
            sample, _, _ = images[number]
        except UserError as error:
            yield path, error
            continue
        batch = {cut: torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] for cut, pixels in sample.items()}
        with torch.inference_mode():
            yield path, protocol_scores(net, batch, protocol)[0]


def image_paths(names: Sequence[str]) -> list[Path]:
    """Return the images that were named, and those in the folders that were, in the order of their paths.

    Raises:
        UserError: there is no such file, or no image in a folder.
    """
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if not path.exists():
            raise UserError(f"there is no image {path}; give files or folders of images")
        found = [path]
        if path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.suffix.lower() in endings and each.is_file())
        if not found:
            raise UserError(f"there is no image in the folder {path}; give files or folders of images")
        paths += found
    return paths


def best_classes(scores: Tensor, class_names: Sequence[str] | None, top: int) -> list[dict[str, Any]]:
    """Return the `top` best classes, best first: name (the number where there are no names), number and score."""
    best = scores.topk(min(top, len(scores)))
    return [
        {"class": class_names[index] if class_names else str(index), "index": index, "score": score}
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def main(arguments: Sequence[str]) -> None:
    """Print the best classes of each image; one that cannot be decoded is named on stderr, and the status is 1."""
    names, given = names_and_options(DEFAULTS, arguments)
    if len(names) < 2:
        raise UserError(f"name a network and images: {_USAGE}")
    if given["format"] not in ("table", "json"):
        raise UserError(f"format is table or json, not {given['format']}")
    if not given["top"].isdecimal() or int(given["top"]) < 1:
        raise UserError(f"top is a number of classes from 1 up, not {given['top']}")
    paths = image_paths(names[1:])
    net = open_net(names[0])
    recipe = _plain(net).recipe
    protocol = get_protocol(given["protocol"] or ("full1" if recipe.pooling == "spp" else "crop1"))
    check_can_run(net, protocol)
    rows: list[tuple[str, str, str]] = []
    failed = False
    for path, scores in predictions(net, paths, protocol):
        if isinstance(scores, UserError):
            failed = True
            print(f"error: {error_line(scores)}", file=sys.stderr)
            continue
        best = best_classes(scores, recipe.class_names, int(given["top"]))
        if given["format"] == "json":
            print(json.dumps({"image": str(path), "protocol": protocol.name, "classes": best}), flush=True)
        rows += [
            (str(path) if rank == 0 else "", each["class"], f"{each['score']:.4f}") for rank, each in enumerate(best)
        ]
    if given["format"] == "table" and rows:
        print(terminal_table(("image", "class", "score"), rows))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    one_line(lambda: main(sys.argv[1:]))
