"""Tables of speed, from the JSON files that the benchmarks wrote; without a file there is no table."""

import json
from pathlib import Path
from typing import Any

from train_step import RATIOS, divide_seconds

from spp_cls.cli.terminal import Table


def build_data_tables(folder: str | Path) -> list[Table]:
    """Build the table of reading training crops: ours, other libraries, and bare decoding."""
    found = read_json(folder, "loader")
    if not found:
        return []
    rates = found["one_core"]["images_per_second"]
    ours = [name for name in rates if name.startswith("ours")]
    header = ("images a second, one core", *(f"{name} / this" for name in ours))
    rows = [[name, *(f"{rates[own] / rate:.2f}" for own in ours)] for name, rate in rates.items()]
    title = f"JPEG files of {found['mean_kilobytes']:.0f} kB on average, to crops of 224 ({describe(found)})"
    return [(title, header, rows)]


def build_testing_tables(folder: str | Path) -> list[Table]:
    """Build the tables of testing on maps against testing on crops, and of peak memory."""
    tables: list[Table] = []
    if found := read_json(folder, "multiview"):
        header = (
            "net",
            "windows",
            "crops / maps, time",
            "crops / maps, multiply-adds",
            "pool_windows, share of a scale",
        )
        rows = []
        for net in (name for name, entry in found.items() if isinstance(entry, dict)):
            share = f"{100 * found[net]['pool_windows']['share']:.1f} %"
            for kind, measured in found[net].items():
                if "ratio" in measured:
                    count = measured.get("views") or measured["windows"]
                    ratios = [f"{measured[key]:.2f}" for key in ("ratio", "ratio_of_multiply_adds")]
                    rows.append([net, f"{count} ({kind.replace('_', ' ')})", *ratios, share])
        tables.append((f"Testing on crops against feature maps ({describe(found)})", header, rows))
    if found := read_json(folder, "peak_memory"):
        rows = [[name, f"{size:,}"] for name, size in found["mib"].items()]
        title = f"Peak memory of map98, ZF-5, images up to 4000 x 3000 ({describe(found)})"
        tables.append((title, ("", "MiB"), rows))
    return tables


def build_transfer_tables(folder: str | Path) -> list[Table]:
    """Build the tables of one pass for all features against a pass for each, and of memory."""
    found = read_json(folder, "transfer_speed")
    if not found:
        return []
    sharing, sides = found["sharing"], " ".join(map(str, found["sides"]))
    ratios = [f"{sharing[key]:.2f}" for key in ("ratio", "ratio_of_multiply_adds")]
    net = f"ZF-5 at width {found['width']:g}"
    title = f"A pass for each layer, view and side against one pass for all, {net}, sides {sides} ({describe(found)})"
    header = ("features", "images", "each / one pass, time", "each / one pass, multiply-adds")
    memory = [[f"{int(images):,} images", f"{size:,}"] for images, size in found["mib"].items()]
    return [
        (title, header, [[str(sharing["features"]), str(sharing["images"]), *ratios]]),
        (f"Peak memory of writing these features ({describe(found)})", ("", "MiB"), memory),
    ]


def build_training_tables(folder: str | Path) -> list[Table]:
    """Build the table of training steps: ours, plain PyTorch, and a ceiling of convolutions and fc layers alone."""
    found = read_json(folder, "train_step")
    if not found:
        return []
    ratios = [f"{one} / {other}" for one, other in RATIOS]
    header = ("net", "size", "batch", "precision", *ratios, "float32 / bf16, ours")
    steps = {(s["net"], s["size"], s["batch"], s["precision"]): s["seconds"] for s in found["steps"]}
    rows = []
    for (net, size, batch, precision), seconds in steps.items():
        exact = steps.get((net, size, batch, "32-true"))
        is_comparable = exact and precision != "32-true" and "ours" in exact and "ours" in seconds
        of_precision = f"{exact['ours'] / seconds['ours']:.2f}" if exact and is_comparable else ""
        rows.append([net, str(size), str(batch), precision, *divide_seconds(seconds), of_precision])
    return [(f"Time of a training step ({describe(found)})", header, rows)]


def build_timm_tables(folder: str | Path) -> list[Table]:
    """Build the table of training steps on a network of timm, beside a bare loop."""
    found = read_json(folder, "timm_step")
    if not found:
        return []
    header = ["net", "size", "batch", "precision", "compiled", "version", "of the bare loop's speed"]
    settings = [str(found[each]) for each in ("net", "size", "batch", "precision", "compile")]
    seconds = found["seconds"]
    rows = [[*settings, name, f"{100 * seconds['bare'] / seconds[name]:.1f} %"] for name in ("avg", "spp")]
    # Of shared CPU cores, ratios alone can be compared with other machines'.
    if "CPU" not in found["hardware"]:
        header.append("images/s")
        for row, name in zip(rows, ("avg", "spp"), strict=True):
            row.append(f"{found['batch'] / seconds[name]:.1f}")
    return [(f"Training steps on a network of timm, beside a bare loop ({describe(found)})", header, rows)]


def build_layer_tables(folder: str | Path) -> list[Table]:
    """Build the tables of LRN and the pyramid against plain PyTorch, and of each layer's part of a training step."""
    tables: list[Table] = []
    for name, plain, title in (
        ("lrn", "torch", "Time of LRN, forward and backward, beside torch.nn.LocalResponseNorm"),
        ("spp", "level by level", "Time of the pyramid, forward and backward, beside one pooling a level"),
    ):
        if found := read_json(folder, name):
            shape = " x ".join(map(str, found["shape"]))
            rows = []
            for layout in (key for key in found if isinstance(found[key], dict)):
                seconds, memory = found[layout]["seconds"], found[layout].get("extra_feature_maps", {})
                for version in seconds:
                    extra = f"{abs(memory[version]):.2f}" if version in memory else ""
                    rows.append([layout, version, f"{seconds[plain] / seconds[version]:.1f}", extra])
            header = ("layout", "version", "times the speed", "extra memory, in feature maps")
            tables.append((f"{title}, {shape} ({describe(found)})", header, rows))
    if found := read_json(folder, "layers"):
        header = ("net", "size", *found["kinds"])
        rows = [
            [
                entry["net"],
                str(entry["size"]),
                *(f"{100 * entry['shares'].get(kind, 0):.1f} %" for kind in found["kinds"]),
            ]
            for entry in found["steps"]
        ]
        tables.append((f"Where the time of a training step goes ({describe(found)})", header, rows))
    return tables


def read_json(folder: str | Path, name: str) -> dict[str, Any]:
    """Read the results of a script, or nothing where it did not run."""
    path = Path(folder) / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def describe(found: dict[str, Any]) -> str:
    """Say on what, with what and by what results were measured."""
    return f"{found['hardware']}, torch {found['torch']}: {found['command']}"
