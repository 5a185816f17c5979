"""The charts of the documents, drawn from results/: python benchmarks/charts.py."""

import csv
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from report.mini import read_imagenette

from spp_cls.cli.arguments import NoOptions, parse_keys, run_tool
from spp_cls.evaluation.seeds import compute_spread, select_single

_USAGE = """python benchmarks/charts.py

Draws the charts in docs/images from results/."""

REPOSITORY = Path(__file__).parent.parent
RESULTS, IMAGES = REPOSITORY / "results", REPOSITORY / "docs/images"

# The files in results/ that each chart is drawn from.
SOURCES = {
    "speed": ("train_step.json", "loader.json", "multiview.json"),
    "errors": ("mini.csv",),
    "curves": ("curves/mini.csv",),
}

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

NETS = {"zf5": "ZF-5", "convnet5": "Convnet*-5", "overfeat5": "Overfeat-5", "overfeat7": "Overfeat-7"}
TRAININGS = {
    ("none", "single"): "no SPP",
    ("spp", "single"): "SPP, single-size",
    ("spp", "alternate"): "SPP, multi-size",
}
PROTOCOLS = ("crop1", "full1", "crop10", "map10", "map96", "map98")


def draw_errors(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Draw the top-1 error of each network and training by protocol: mean and standard deviation over seeds."""
    figure = _create_figure(9, 3.4)
    nets = [net for net in NETS if any(row["net"] == net for row in rows)]
    panels: Any = figure.subplots(1, len(nets), sharey=True, squeeze=False)[0]
    for panel, net in zip(panels, nets, strict=True):
        for number, ((pooling, sizes), label) in enumerate(TRAININGS.items()):
            for place, protocol in enumerate(PROTOCOLS):
                errors = [
                    float(row["top1_error"])
                    for row in rows
                    if (row["net"], row["pooling"], row["sizes"], row["protocol"]) == (net, pooling, sizes, protocol)
                ]
                if errors:
                    spread = compute_spread(errors)
                    panel.errorbar(
                        place + 0.22 * (number - 1), spread.mean, spread.deviation or 0, fmt="o", ms=4, capsize=2,
                        color=COLOURS[number], label=label,
                    )  # fmt: skip
        panel.set_xticks(range(len(PROTOCOLS)), PROTOCOLS, rotation=60)
        panel.set_title(NETS[net], fontsize=10)
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("top-1 error, %")
    _add_legend(figure)
    return figure


def draw_curves(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Draw the validation error of each epoch of the three trainings: mean over seeds, lowest and highest as a band."""
    figure = _create_figure(9, 2.8)
    nets = [net for net in NETS if any(row["net"] == net for row in rows)]
    panels: Any = figure.subplots(1, len(nets), sharey=True, squeeze=False)[0]
    for panel, net in zip(panels, nets, strict=True):
        for number, ((pooling, sizes), label) in enumerate(TRAININGS.items()):
            errors: dict[int, list[float]] = {}
            for row in rows:
                if (row["net"], row["pooling"], row["sizes"]) == (net, pooling, sizes):
                    errors.setdefault(int(row["epoch"]), []).append(float(row["val_top1_error"]))
            epochs = sorted(errors)
            if epochs:
                means = [statistics.mean(errors[epoch]) for epoch in epochs]
                ended = [epoch + 1 for epoch in epochs]
                panel.plot(ended, means, color=COLOURS[number], label=label, lw=1.5)
                low, high = [min(errors[epoch]) for epoch in epochs], [max(errors[epoch]) for epoch in epochs]
                panel.fill_between(ended, low, high, color=COLOURS[number], alpha=0.2, lw=0)
        panel.set_title(NETS[net], fontsize=10)
        panel.set_xlabel("epochs")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("validation top-1 error, %")
    _add_legend(figure)
    return figure


def draw_speed(results: Path) -> Figure:
    """Draw ratios of speed: a point right of 1 means that ours is faster."""
    bars: list[tuple[str, float]] = []
    trained = json.loads((results / "train_step.json").read_text())
    for step in trained["steps"]:
        if (step["size"], step["precision"]) == (224, "32-true"):
            seconds = step["seconds"]
            bars.append((f"training step, {NETS[step['net']]} / plain PyTorch", seconds["plain"] / seconds["ours"]))
    rates = json.loads((results / "loader.json").read_text())["one_core"]["images_per_second"]
    for name, rate in rates.items():
        if name.startswith(("torchvision", "timm")):
            bars.append((f"reading photographs, one core / {name}", rates["ours from files"] / rate))
    multiview = json.loads((results / "multiview.json").read_text())
    for net, name in NETS.items():
        for kind, measured in multiview.get(net, {}).items():
            if "views" in measured:
                bars.append((f"testing, {name}, {kind} / as many crops", measured["ratio"]))
    figure = _create_figure(9, 0.28 * len(bars) + 0.7)
    axes: Axes = figure.subplots()
    places = range(len(bars))[::-1]
    axes.hlines(places, 1, [ratio for _, ratio in bars], color=COLOURS[0], lw=2)
    axes.plot([ratio for _, ratio in bars], places, "o", color=COLOURS[0])
    for place, (_, ratio) in zip(places, bars, strict=True):
        axes.annotate(f"{ratio:.2f}", (ratio, place), (8, 0), textcoords="offset points", va="center", fontsize=9)
    axes.axvline(1, color="0.4", lw=1)
    axes.set_yticks(places, [label for label, _ in bars], fontsize=9)
    axes.set_xlim(0.8, 1.15 * max(ratio for _, ratio in bars))
    axes.set_xlabel(f"times the speed, on {trained['hardware']}")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _add_legend(figure: Figure) -> None:
    """Put what stands in any panel above all."""
    found: dict[str, Any] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = [label for label in TRAININGS.values() if label in found]
    figure.legend(
        handles=[found[label] for label in labels], labels=labels, loc="outside upper center", ncols=3, fontsize=9
    )


def _create_figure(width: float, height: float) -> Figure:
    # White behind everything: readable on dark pages too.
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def identify_sources(name: str) -> str:
    """Return the digest of the files that a chart is drawn from, which its file keeps."""
    return hashlib.sha256(b"".join((RESULTS / file).read_bytes() for file in SOURCES[name])).hexdigest()


def main(arguments: Sequence[str]) -> None:
    """Draw the charts whose results there are."""
    parse_keys(NoOptions, arguments, _USAGE, "python benchmarks/charts.py")
    charts: dict[str, Callable[[], Figure]] = {"speed": lambda: draw_speed(RESULTS)}
    if errors := select_single(read_imagenette(RESULTS)):
        charts["errors"] = lambda: draw_errors(errors)
    if curves := _read(RESULTS / "curves/mini.csv"):
        charts["curves"] = lambda: draw_curves(curves)
    IMAGES.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "spp_cls"
    for name, draw in charts.items():
        # Without the date, and with names that are not random, the same results give the same file.
        draw().savefig(IMAGES / f"{name}.svg", metadata={"Date": None, "Source": identify_sources(name)})
        print(f"docs/images/{name}.svg")


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
