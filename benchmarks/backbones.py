"""The geometry of timm's networks, computed and measured: python benchmarks/backbones.py [key=value ...].

Computed is what spp_cls traces on the meta device. Measured are gradients of one cell with respect to the image, with
the network's own convolutions, pools, paddings and branches: weights are positive, maxima become averages, norms and
activations let values through and global averages are one, so that every pixel that a cell can depend on has a
gradient. The ends of the pixels with a gradient give the centre; their centre of gravity is stated beside it.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import describe_run, parse_options, write_json
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from spp_cls import UserError, build_net
from spp_cls.cli.arguments import run_tool
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import Table, format_table
from spp_cls.models.timm_backbone import TimmBackbone
from spp_cls.models.tracing.traits import trace_twin

# A small network of each family.
NETS = (
    "resnet10t", "resnet18", "resnet50", "resnet26d", "resnetblur18", "seresnet18", "ecaresnet26t", "resnext26ts",
    "res2net50_48w_2s", "resnest14d", "skresnet18", "wide_resnet50_2", "resnetv2_18", "densenet121", "vgg11_bn",
    "inception_v3", "xception41", "efficientnet_b0", "tf_efficientnet_b0", "efficientnet_lite0", "mobilenetv2_050",
    "mobilenetv3_small_050", "mixnet_s", "mnasnet_small", "regnetx_002", "regnety_002", "convnext_atto",
    "convnextv2_atto", "repvgg_a0", "ghostnet_050", "dla34", "hrnet_w18_small", "cspresnet50", "cspdarknet53",
    "eca_nfnet_l0", "dpn48b", "selecsls42b", "ese_vovnet19b_dw", "tresnet_m", "hardcorenas_a", "rexnet_100",
    "fasternet_t0",
)  # fmt: skip

# Sides whose maps are compared, beside the network's own.
SIDES = (97, 160, 203)


@dataclass(frozen=True)
class Options:
    """The keys of this script."""

    out: str | None = key(None, help="JSON file to write the results to")
    nets: tuple[str, ...] = key((), help="networks of timm; []: a small one of each family")


class Linear(TorchFunctionMode):
    """Lets values through norms and activations, averages in place of maxima, and cuts what sees a whole map."""

    _THROUGH = frozenset({
        F.batch_norm, F.layer_norm, F.group_norm, F.relu, F.relu_, F.relu6, F.gelu, F.silu, F.mish, F.hardswish,
        F.hardsigmoid, F.leaky_relu, F.elu, F.selu, F.softplus, torch.relu, torch.relu_, torch.tanh, torch.sigmoid,
        torch.Tensor.sigmoid, torch.Tensor.tanh, torch.Tensor.relu,
    })  # fmt: skip
    _WHOLE = frozenset({torch.mean, torch.Tensor.mean, torch.norm, torch.Tensor.norm, torch.sum, torch.Tensor.sum})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._THROUGH:
            return args[0] if args else kwargs["input"]
        if func in (F.max_pool2d, torch.max_pool2d):
            return self._average(*args, **kwargs)
        output = func(*args, **kwargs)
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        is_global = func in self._WHOLE and args[0].ndim == 4 and _are_both_sides(dims)
        if is_global or (func in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d) and output.shape[-2:].numel() == 1):
            return torch.ones_like(output)
        return output

    def _average(
        self, maps: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Tensor:  # fmt: skip
        # Cells of padding are minus infinity for a maximum.
        return F.avg_pool2d(maps.nan_to_num(neginf=0.0), kernel_size, stride, padding, ceil_mode)


def _are_both_sides(dims: Any) -> bool:
    return isinstance(dims, Sequence) and {dim % 4 for dim in dims} in ({2, 3}, {1, 2})


def make_linear(backbone: nn.Module) -> nn.Module:
    """Make all weights positive, and take out the modules of activations; as float64, in evaluation mode."""
    for layer in list(backbone.modules()):
        for name, child in layer.named_children():
            kind = type(child).__module__
            if kind.startswith(("torch.nn.modules.activation", "timm.layers.activations")):
                setattr(layer, name, nn.Identity())
    for parameter in backbone.parameters():
        nn.init.constant_(parameter, 1 / parameter[0].numel() if parameter.ndim > 1 else 1.0)
    return backbone.double().eval().requires_grad_(False)


def measure(backbone: TimmBackbone, field: int, input_size: int) -> dict[str, Any]:
    """Measure stride, first centre, field and centre of gravity along the height by gradients."""
    linear = make_linear(backbone)
    # A field and a few cells, at a size that differs from the network's own by a multiple of 64 pixels.
    height = -(-(field + 4 * 64) // 64) * 64 + input_size % 64
    width = -(-max(96, 2 * backbone.smallest_input) // 64) * 64
    image = torch.ones(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    with Linear():
        maps = linear(image)
    middle = maps.shape[-2] // 2
    found = []
    for cell in (middle, middle + 1):
        (gradient,) = torch.autograd.grad(maps[0, :, cell, maps.shape[-1] // 2].sum(), image, retain_graph=True)
        rows = gradient[0].abs().sum((0, 2))
        seen = rows.nonzero().flatten()
        gravity = float((rows * torch.arange(height)).sum() / rows.sum())
        found.append((int(seen[0]), int(seen[-1]), gravity))
    (first, last, gravity), (next_first, next_last, _) = found
    if first == 0 or next_last == height - 1:
        raise UserError(f"a cell of {backbone.name} depends on more pixels than were computed, {field}")
    stride = (next_first + next_last - first - last) / 2
    return {
        "stride": stride,
        "first_centre": (first + last) / 2 - stride * middle,
        "field": last - first + 1,
        "centre_of_gravity": gravity - stride * middle,
    }


def compare(name: str) -> dict[str, Any]:
    """Compare what is computed for a network with what is measured."""
    net = build_net(f"timm/{name}", pooling="avg", num_classes=2)
    backbone, own = net.backbone, net.config.input_size
    assert isinstance(backbone, TimmBackbone)
    traits = backbone.traits
    sides = [side for side in (own, *SIDES) if side >= backbone.smallest_input]
    backbone.eval()
    with torch.inference_mode():
        cells = [backbone(torch.zeros(1, 3, side, max(64, backbone.smallest_input))).shape[-2] for side in sides]
    others = _list_centres(name, traits.is_channels_last, lambda rest: rest in (1, 6, 16, 31))
    if len(others) > 1:
        others = _list_centres(name, traits.is_channels_last, lambda rest: True)
    return {
        "net": name,
        "computed": {**traits.geometry._asdict(), "map_sizes": [backbone.map_size(side) for side in sides]},
        "smallest_input": backbone.smallest_input,
        "multiple": traits.multiple,
        "channels": traits.channels,
        "left_out": list(traits.unused),
        "sides": sides,
        "other_centres": sorted(others),
        "measured": {**measure(backbone, traits.geometry.field, own), "map_sizes": cells},
    }


def _list_centres(name: str, is_channels_last: bool, choose: Callable[[int], bool]) -> set[float]:
    """List the first centres for sides with different rests by the stride; networks that pad sides have one."""
    sides = [1024 + rest for rest in range(32) if choose(rest) or not rest]
    try:
        return {trace_twin(name, side, is_channels_last).first_centre for side in sides}
    except (RuntimeError, AssertionError):
        return {trace_twin(name, 1024, is_channels_last).first_centre}


def build_table(found: dict[str, Any]) -> Table:
    """Build the table of docs/backbones.md."""
    header = (
        "timm/", "channels", "stride", "first centre", "by gradients", "centre of gravity", "at other sides",
        "map at own side", "smallest side", "field", "left out",
    )  # fmt: skip
    rows = []
    for each in found["nets"]:
        computed, measured = each["computed"], each["measured"]
        centre, others = computed["first_centre"], each["other_centres"]
        rows.append([
            each["net"], str(each["channels"]), str(computed["stride"]), f"{centre:g}",
            f"{measured['first_centre']:g}", f"{measured['centre_of_gravity'] - centre:+.1f}",
            f"{min(others):g} to {max(others):g}" if len(others) > 1 else "",
            f"{computed['map_sizes'][0]} at {each['sides'][0]}",
            str(each["smallest_input"]) + (f" (to {each['multiple']}s)" if each["multiple"] > 1 else ""),
            f"{computed['field']:,}", ", ".join(each["left_out"]),
        ])  # fmt: skip
    return f"Networks of timm (timm {found['timm']}, torch {found['torch']}: {found['command']})", header, rows


def main(arguments: Sequence[str]) -> None:
    """Compare all networks, print the table and write it as JSON."""
    import timm

    options = parse_options(Options, arguments, "python benchmarks/backbones.py out=results/backbones.json")
    results = describe_run("python benchmarks/backbones.py", torch.device("cpu"), timm=timm.__version__, nets=[])
    if options.out and Path(options.out).is_file():
        # Networks can be added in several calls.
        results["nets"] = json.loads(Path(options.out).read_text())["nets"]
    for name in options.nets or NETS:
        found = compare(name)
        results["nets"] = [each for each in results["nets"] if each["net"] != name] + [found]
        print(format_table(*build_table({**results, "nets": [found]})[1:]), flush=True)
        write_json(results, options.out)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
