"""Testing on crops against testing on feature maps, in one run: python benchmarks/multiview.py [out=FILE.json].

Both score the same views of the same images with the same net and threads, interleaved; times are medians. Beside
each ratio of times stands the ratio of multiply-adds of convolutions and fc layers, counted from shapes.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import (
    SharedOptions,
    choose_device,
    count_multiply_adds,
    describe_run,
    parse_options,
    time_in_turns,
    write_json,
)
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from spp_cls import SPPNet, build_net, pool_windows
from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.data.loading.batch import normalize
from spp_cls.data.transforms.crops import find_corner
from spp_cls.evaluation import PROTOCOLS, Cut, View, view_features
from spp_cls.evaluation.features import find_cells
from spp_cls.evaluation.images import MAX_PIXELS, get_cut
from spp_cls.models.timm_models import PREFIX

WINDOW = 224


@dataclass(frozen=True)
class Options(SharedOptions):
    """The keys of this script."""

    nets: tuple[str, ...] = key(("zf5", "overfeat7"), help="networks, of timm too: [timm/resnet18,timm/resnet50]")
    width: float = key(1.0, above=0, help="factor of their channels")
    images: int = key(16, least=4, help="images of map10; map96 takes a quarter of them")
    windows: int = key(2000, least=1, help="random windows of one image")


def draw_images(views: list[View], count: int, device: torch.device) -> dict[Cut, Tensor]:
    """Draw 4:3 images of noise in the cuts that views on maps, or the same on crops, are computed from."""
    generator = torch.Generator().manual_seed(0)
    whole: dict[int, Tensor] = {}
    cuts: dict[Cut, Tensor] = {}
    for view in views:
        scale = view.scale
        if scale not in whole:
            shape = (count, 3, scale, round(scale * 4 / 3))
            pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
            whole[scale] = pixels.to(device).contiguous(memory_format=torch.channels_last)
        cut = get_cut(view, WINDOW)
        if cut.position is None:
            cuts[cut] = whole[scale]
        else:
            left, top = find_corner(cut.position, whole[scale].shape[-1], scale, WINDOW)
            crop = whole[scale][:, :, top : top + WINDOW, left : left + WINDOW]
            cuts[cut] = crop.contiguous(memory_format=torch.channels_last)
    return cuts


def compare_views(net: SPPNet, protocol: str, images: int, repeats: int) -> dict[str, Any]:
    """Compare crops and maps over the windows of a protocol."""
    on_maps = list(PROTOCOLS[protocol].views)
    device = find_device(net)
    on_crops = [view._replace(on_maps=False) for view in on_maps]
    runs: dict[str, Callable[[], Any]] = {}
    for name, views in (("crops", on_crops), ("maps", on_maps)):
        cuts = draw_images(views, images, device)
        runs[name] = partial(view_features, net, cuts, views)
    work = {name: count_multiply_adds(net, run) for name, run in runs.items()}
    seconds = time_in_turns(runs, repeats, device)
    return {
        "views": len(on_maps),
        "images": images,
        "seconds": seconds,
        "ratio": seconds["crops"] / seconds["maps"],
        "ratio_of_multiply_adds": work["crops"] / work["maps"],
    }


def measure_pooling(net: SPPNet, repeats: int) -> dict[str, Any]:
    """Return the share of pool_windows in the time of one scale: convolutions, pooling and fc of nine windows."""
    views = [view for view in PROTOCOLS["map96"].views if view.scale == 256 and not view.flip]
    device = find_device(net)
    cuts = draw_images(views, 4, device)
    inputs = normalize(next(iter(cuts.values())), net.config.mean, net.config.std)
    maps = net.forward_features(inputs)
    x1, y1 = maps.shape[-1] - 1, maps.shape[-2] - 1
    side = net.backbone.map_size(WINDOW) - 1
    boxes = [
        (n, left, top, left + side, top + side)
        for left in (0, (x1 - side) // 2, x1 - side)
        for top in (0, (y1 - side) // 2, y1 - side)
        for n in range(len(inputs))
    ]
    windows = torch.tensor(boxes, device=device)
    runs = {
        "scale": lambda: view_features(net, cuts, views),
        "pool_windows": lambda: pool_windows(maps, windows, net.pool.levels),
    }
    seconds = time_in_turns(runs, 3 * repeats, device)
    return {"windows": len(boxes), "seconds": seconds, "share": seconds["pool_windows"] / seconds["scale"]}


def compare_random_windows(net: SPPNet, count: int, repeats: int) -> dict[str, Any]:
    """Compare random windows of one image pooled on its map with as many crops warped to 224 x 224."""
    height, width = 560, 747
    device = find_device(net)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, height, width), generator=generator, dtype=torch.uint8).to(device)
    inputs = normalize(image, net.config.mean, net.config.std).contiguous(memory_format=torch.channels_last)
    sides = torch.tensor([width, height])
    sizes = (64 + torch.rand(count, 2, generator=generator) * (sides - 64)).long()
    starts = (torch.rand(count, 2, generator=generator) * (sides - sizes)).long()
    boxes = torch.cat([starts, starts + sizes], dim=1)

    def on_maps() -> Tensor:
        maps = net.forward_features(inputs)
        cells = []
        for x0, y0, x1, y1 in boxes.tolist():
            left, right = find_cells(x0, x1, net.backbone, maps.shape[-1])
            top, bottom = find_cells(y0, y1, net.backbone, maps.shape[-2])
            cells.append((0, left, top, right, bottom))
        return net.forward_windows(maps, torch.tensor(cells, device=device))

    def on_crops() -> list[Tensor]:
        rois = F.pad(boxes.float(), (1, 0)).to(device)
        batches = rois.split(MAX_PIXELS // WINDOW**2)
        return [net(roi_align(inputs, part, WINDOW, sampling_ratio=1, aligned=True)) for part in batches]

    runs: dict[str, Callable[[], Any]] = {"maps": on_maps, "crops": on_crops}
    work = {name: count_multiply_adds(net, run) for name, run in runs.items()}
    seconds = time_in_turns(runs, repeats, device)
    return {
        "windows": count,
        "seconds": seconds,
        "ratio": seconds["crops"] / seconds["maps"],
        "ratio_of_multiply_adds": work["crops"] / work["maps"],
    }


def find_device(net: SPPNet) -> torch.device:
    """Return the device of a network."""
    return next(net.parameters()).device


def main(arguments: Sequence[str]) -> None:
    """Run all comparisons, print them and write them as JSON."""
    options = parse_options(Options, arguments, "python benchmarks/multiview.py out=results/multiview.json")
    repeats, device = options.repeats, choose_device(options.device)
    results = describe_run("python benchmarks/multiview.py", device)
    if options.out and Path(options.out).is_file():
        # Each network is compared within itself, so that networks can be measured in several calls.
        results = {**json.loads(Path(options.out).read_text()), **results}
    with torch.inference_mode():
        for name in options.nets:
            own: dict[str, Any] = {"init": "kaiming", "std": (57.6, 57.6, 57.6), "width": options.width}
            net = build_net(name, input_size=WINDOW, **({} if name.startswith(PREFIX) else own)).to(device)
            net = net.to(memory_format=torch.channels_last).eval()
            found: dict[str, Any] = {"map10": compare_views(net, "map10", options.images, repeats)}
            found["map96"] = compare_views(net, "map96", options.images // 4, min(repeats, max(3, repeats - 2)))
            found["pool_windows"] = measure_pooling(net, repeats)
            if name == "zf5":
                found["random_windows"] = compare_random_windows(net, options.windows, 1)
            for kind, measured in found.items():
                if "ratio" in measured:
                    reached = measured["ratio"] / measured["ratio_of_multiply_adds"]
                    print(
                        f"{name} {kind}: crops / maps {measured['ratio']:.2f} in time, "
                        f"{measured['ratio_of_multiply_adds']:.2f} in multiply-adds, {100 * reached:.0f} % of it",
                        flush=True,
                    )
                else:
                    print(f"{name} {kind}: {100 * measured['share']:.2f} % of the time of a scale", flush=True)
            results[name] = found
    write_json(results, options.out)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
