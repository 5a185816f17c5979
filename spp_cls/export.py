"""A trained network in the formats of others: python -m spp_cls.export CHECKPOINT [format=[...]] [out=FOLDER]."""

import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import Tensor
from torch.fx.experimental import _config as symbolic_shapes

from spp_cls.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_net, recipe_to_plain
from spp_cls.errors import UserError, one_line
from spp_cls.exported import INPUT, OUTPUT, metadata, onnx_module, open_exported, preprocessing
from spp_cls.models.net import SPPNet
from spp_cls.models.portable import portable
from spp_cls.options import names_and_options, words

DEFAULTS: dict[str, Any] = {"format": "[safetensors,onnx,torch]", "out": None}

# Heights and widths that an export is tried at, beside the smallest that the network takes.
SIZES = ((180, 180), (224, 224), (224, 320), (373, 256), (560, 747), (301, 225))

# Largest difference of a logit from the network's own. Absolute, as scores are functions of differences of logits;
# and relative to the largest logit where that is under 1, or any export of an untrained network would pass.
TOLERANCE = 1e-4

# A protocol buffer, which an ONNX file is, holds no more.
_LARGEST_ONNX = 2**31

Run = Callable[[Tensor], Tensor]


class Trial(NamedTuple):
    """Images, N x in_chans x H x W, and the network's own logits of them."""

    images: Tensor
    logits: Tensor


def export(checkpoint: str | Path, formats: Sequence[str], out: str | Path) -> list[str]:
    """Write a network in each format into the folder `out`; return a line on each, and one on the sizes tried.

    safetensors (config.json and model.safetensors, timm's layout), onnx (model.onnx) and torch (model.pt2). Every
    file is read back and run beside the network before any of them gets its name.

    Raises:
        UserError: no checkpoint, another format, or an export whose logits are not the network's.
    """
    unknown = [name for name in formats if name not in _WRITERS]
    if unknown or not formats:
        raise UserError(f"format is {', '.join(_WRITERS)} or a list of them, not {', '.join(unknown) or 'empty'}")
    if "onnx" in formats:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            onnx_module(name)
    net = load_net(checkpoint)
    trials = list(_trials(net))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        lines = [_written_and_tried(name, net, trials, Path(aside), out) for name in dict.fromkeys(formats)]
        out.mkdir(exist_ok=True)
        for file in sorted(Path(aside).iterdir()):
            os.replace(file, out / file.name)
    sizes = ", ".join(" x ".join(map(str, trial.images.shape[-2:])) for trial in trials)
    return [*lines, f"Each was run beside the network at {sizes} pixels"]


def _written_and_tried(name: str, net: SPPNet, trials: Sequence[Trial], aside: Path, out: Path) -> str:
    write, reopen, file = _WRITERS[name]
    try:
        write(net, aside)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out / file}: {error}; free some space or choose another folder") from error
    difference = largest_difference(reopen(aside), trials, name)
    largest = max(float(trial.logits.abs().max()) for trial in trials)
    megabytes = (aside / file).stat().st_size / 1e6
    return f"{out / file}: {megabytes:.1f} MB, largest difference of a logit {difference:.1e} of {largest:.3g}"


def largest_difference(run: Run, trials: Sequence[Trial], name: str) -> float:
    """Return the largest difference of an export's logits from the network's.

    Raises:
        UserError: it is over the tolerance.
    """
    largest = 0.0
    for images, logits in trials:
        with torch.inference_mode():
            difference = float((run(images) - logits).abs().max())
        limit = TOLERANCE * min(1.0, float(logits.abs().max()))
        # Not "over the limit", which not-a-number never is.
        if not difference <= limit:
            size = " x ".join(map(str, images.shape[-2:]))
            raise UserError(
                f"the {name} export is not the network: at {size} pixels a logit differs by {difference:.2g}, "
                f"over {limit:.2g}; no file was written"
            )
        largest = max(largest, difference)
    return largest


def _trials(net: SPPNet) -> Iterator[Trial]:
    """Random pixels at every size, in batches of one, two and three, and the logits that the network gives."""
    recipe = net.recipe
    smallest, side = net.backbone.smallest_input, recipe.input_size
    sizes = (*SIZES, (smallest, 2 * smallest)) if recipe.pooling == "spp" else ((side, side),) * len(SIZES)
    generator = torch.Generator().manual_seed(0)
    for number, (height, width) in enumerate(sizes):
        shape = (1 + number % 3 if height * width <= 320 * 320 else 1, recipe.in_chans, height, width)
        pixels = torch.randint(256, shape, generator=generator).float()
        images = pixels - torch.tensor(recipe.mean).view(1, -1, 1, 1)
        with torch.inference_mode():
            yield Trial(images, net(images))


def _write_safetensors(net: SPPNet, folder: Path) -> None:
    recipe = recipe_to_plain(net.recipe)
    names = recipe["class_names"]
    arguments = {key: value for key, value in recipe.items() if key not in ("name", "pooling")}
    save_for_hf(
        net,
        str(folder),
        model_config={"label_names": names, "preprocessing": preprocessing(net)},
        model_args=arguments,
        safe_serialization=True,
    )
    # safetensors lets nobody else read its files.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def _write_onnx(net: SPPNet, folder: Path) -> None:
    if sum(parameter.numel() * parameter.element_size() for parameter in net.parameters()) >= _LARGEST_ONNX:
        raise UserError("an ONNX file holds no more than 2 GiB, and the network has more; leave onnx out of format")
    axes = {0: "batch", 2: "height", 3: "width"} if net.recipe.pooling == "spp" else {0: "batch"}
    with _for_export():
        program = torch.onnx.export(
            portable(net),
            (_example(net),),
            dynamic_shapes=(axes,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata(net))
    program.save(folder / "model.onnx", external_data=False)


def _write_torch(net: SPPNet, folder: Path) -> None:
    axes = (0, 2, 3) if net.recipe.pooling == "spp" else (0,)
    with _for_export():
        program = torch.export.export(
            portable(net), (_example(net),), dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
        )
    # The only part of the file that would be a pickle.
    program.example_inputs = None
    # Not into the file itself, as PyTorch's writer ends the process when a disk is full.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=metadata(net))
    (folder / "model.pt2").write_bytes(content.getbuffer())


def _example(net: SPPNet) -> Tensor:
    # Three lengths that differ, so that none is taken for another.
    side = net.recipe.input_size
    return torch.zeros(2, net.recipe.in_chans, side, side + 16 if net.recipe.pooling == "spp" else side)


@contextmanager
def _for_export() -> Iterator[None]:
    """Trace without gradients, and for lengths of one as for any other."""
    # It tells at length of every inequality between sizes that it does not solve, and needs none of them.
    solver = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = solver.level
    solver.setLevel(logging.ERROR)
    try:
        # Else a map of one cell and a batch of one image are taken for special cases, and refused later.
        with symbolic_shapes.patch(backed_size_oblivious=True), torch.no_grad():  # type: ignore[attr-defined]
            yield
    finally:
        solver.setLevel(level)


def _timm_run(folder: Path) -> Run:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


# How a format is written into a folder and opened again, and the name of its weights there.
_WRITERS: dict[str, tuple[Callable[[SPPNet, Path], None], Callable[[Path], Run], str]] = {
    "safetensors": (_write_safetensors, _timm_run, WEIGHTS_FILE),
    "onnx": (_write_onnx, lambda folder: open_exported(folder / "model.onnx").run, "model.onnx"),
    "torch": (_write_torch, lambda folder: open_exported(folder / "model.pt2").run, "model.pt2"),
}


def main(arguments: Sequence[str]) -> None:
    """Export a checkpoint; print where to and how far from the network."""
    names, given = names_and_options(DEFAULTS, arguments)
    if len(names) != 1:
        raise UserError("name one checkpoint: python -m spp_cls.export CHECKPOINT [format=[safetensors,onnx,torch]]")
    out = given["out"] or Path(names[0]).parent / "export"
    print("\n".join(export(names[0], words(given["format"]), out)))


if __name__ == "__main__":
    one_line(lambda: main(sys.argv[1:]))
