"""A network written in each format, read back, and run beside the network."""

import inspect
import io
import logging
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import Tensor
from torch.fx.experimental import _config as symbolic_shapes

from spp_cls.cli.errors import UserError
from spp_cls.export.exported import (
    INPUT,
    OUTPUT,
    describe_preprocessing,
    import_for_onnx,
    make_metadata,
    open_exported,
)
from spp_cls.export.portable import make_portable
from spp_cls.export.trials import Run, Trial, find_largest_difference, make_trials
from spp_cls.models.backbone import PaperBackbone
from spp_cls.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, convert_config_to_dict, load_net
from spp_cls.models.config import ANY_NET, get_timm_name
from spp_cls.models.net import SPPNet
from spp_cls.models.timm_backbone import TimmBackbone

# A protocol buffer, which an ONNX file is, holds no more.
_LARGEST_ONNX = 2**31

# Files whose lines are operations of a network.
_NETWORK_CODE = re.compile(r"/timm/(models|layers)/|/spp_cls/models/")


def export_net(checkpoint: str | Path, formats: Sequence[str], out: str | Path) -> list[str]:
    """Write a network in each format into the folder `out`; return a line on each, and one on the sizes tried.

    safetensors (config.json and model.safetensors, timm's layout), onnx (model.onnx) and torch (model.pt2). Every
    file is read back and run beside the network before any of them gets its name.

    Raises:
        UserError: if there is no checkpoint, a format is unknown, or an export's logits are not the network's.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"format is {', '.join(FORMATS)} or a list of them, not {', '.join(unknown) or 'empty'}")
    if "onnx" in formats:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            import_for_onnx(package)
    net = load_net(checkpoint)
    trials = list(make_trials(net))
    out = Path(out)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        # Inside, as `out` may be on another disk than the folder that it is in.
        with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as unfinished:
            lines = [_write_and_try(name, net, trials, Path(unfinished), out) for name in dict.fromkeys(formats)]
            for file in sorted(Path(unfinished).iterdir()):
                os.replace(file, out / file.name)
    except BaseException:
        if is_new:
            with suppress(OSError):
                out.rmdir()
        raise
    sizes = ", ".join(" x ".join(map(str, trial.images.shape[-2:])) for trial in trials)
    return [*lines, f"Each was run beside the network at {sizes} pixels"]


def _write_and_try(name: str, net: SPPNet, trials: Sequence[Trial], folder: Path, out: Path) -> str:
    write, reopen, file = _FORMATS[name]
    try:
        write(net, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out / file}: {error}; free some space or choose another folder") from error
    except UserError:
        raise
    except Exception as error:  # exporters raise what they like
        if isinstance(net.backbone, PaperBackbone):
            raise
        raise UserError(
            f"{net.config.name} cannot be written as {name} for images of any size: {_find_operation(net, error)}; "
            f"leave {name} out of format"
        ) from error
    difference = find_largest_difference(reopen(folder), trials, name)
    largest = max(float(trial.logits.abs().max()) for trial in trials)
    megabytes = (folder / file).stat().st_size / 1e6
    return f"{out / file}: {megabytes:.1f} MB, largest difference of a logit {difference:.1e} of {largest:.3g}"


def _find_operation(net: SPPNet, error: BaseException) -> str:
    """Return the operation of the network at which an export failed, and why."""
    while error.__cause__ is not None:
        error = error.__cause__
    own = inspect.getmodule(type(net.backbone))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if _NETWORK_CODE.search(frame.filename) or frame.filename == getattr(own, "__file__", None)
    ]
    # Paragraphs of advice follow, which is for those who write exporters.
    reason = " ".join(str(error).strip().split("\n\n")[0].split()).rstrip(".") or type(error).__name__
    if isinstance(net.backbone, TimmBackbone) and net.backbone.traits.multiple > 1:
        return f"the padding of sides to multiples of {net.backbone.traits.multiple} gives: {reason}"
    return f"{frames[-1].line} ({Path(frames[-1].filename).name}) gives: {reason}" if frames else reason


def _write_safetensors(net: SPPNet, folder: Path) -> None:
    config = convert_config_to_dict(net.config)
    implied = () if get_timm_name(net.config) == ANY_NET else ("name", "pooling")
    save_for_hf(
        net,
        str(folder),
        model_config={"label_names": config["class_names"], "preprocessing": describe_preprocessing(net)},
        model_args={name: value for name, value in config.items() if name not in implied},
        safe_serialization=True,
    )
    # safetensors lets nobody else read its files.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def _write_onnx(net: SPPNet, folder: Path) -> None:
    if sum(parameter.numel() * parameter.element_size() for parameter in net.parameters()) >= _LARGEST_ONNX:
        raise UserError("an ONNX file holds no more than 2 GiB, and the network has more; leave onnx out of format")
    axes = {0: "batch", 2: "height", 3: "width"} if net.config.takes_any_size else {0: "batch"}
    with _trace_any_size():
        program = torch.onnx.export(
            make_portable(net),
            (_make_example(net),),
            dynamic_shapes=(axes,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(make_metadata(net))
    program.save(folder / "model.onnx", external_data=False)


def _write_torch(net: SPPNet, folder: Path) -> None:
    axes = (0, 2, 3) if net.config.takes_any_size else (0,)
    with _trace_any_size():
        program = torch.export.export(
            make_portable(net), (_make_example(net),), dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
        )
    # The only part of the file that would be a pickle.
    program.example_inputs = None
    # Not into the file itself, as PyTorch's writer ends the process when a disk is full.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=make_metadata(net))
    (folder / "model.pt2").write_bytes(content.getbuffer())


def _make_example(net: SPPNet) -> Tensor:
    # Three lengths that differ, so that none is taken for another.
    side = net.config.input_size
    return torch.zeros(2, net.config.in_chans, side, side + 16 if net.config.takes_any_size else side)


@contextmanager
def _trace_any_size() -> Iterator[None]:
    """Trace without gradients, and treat lengths of one as any other."""
    # It logs every inequality between sizes that it does not solve; the export needs none of them.
    solver = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = solver.level
    solver.setLevel(logging.ERROR)
    try:
        # Otherwise maps of one cell and batches of one image become special cases, which the export then refuses.
        any_length = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
        # Where it fails it prints the whole graph so far.
        with any_length, torch.no_grad(), redirect_stderr(io.StringIO()):
            yield
    finally:
        solver.setLevel(level)


def _open_folder(folder: Path) -> Run:
    net = load_net(folder)
    # timm does not know the backbones of plugins.
    if timm.is_model(net.pretrained_cfg["architecture"]):
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return net


class _Format(NamedTuple):
    """How a format is written into a folder and opened again, and the name of its weights there."""

    write: Callable[[SPPNet, Path], None]
    open: Callable[[Path], Run]
    file: str


_FORMATS = {
    "safetensors": _Format(_write_safetensors, _open_folder, WEIGHTS_FILE),
    "onnx": _Format(_write_onnx, lambda folder: open_exported(folder / "model.onnx").run, "model.onnx"),
    # By PyTorch itself, as others will open it; the file is our own.
    "torch": _Format(_write_torch, lambda folder: torch.export.load(folder / "model.pt2").module(), "model.pt2"),
}
FORMATS = tuple(_FORMATS)
