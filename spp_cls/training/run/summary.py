"""What a run says of itself: before it starts, at its end and in the table of several runs."""

import shlex
from typing import Any

from omegaconf import DictConfig

from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.data.sources.kinds import KINDS
from spp_cls.models.net import SPPNet
from spp_cls.training.run.folder import RunFolder


def describe_run(folder: RunFolder, net: SPPNet, data: ImageNetDataModule) -> str:
    """Return a line on what a run is about to do."""
    parameters = sum(parameter.numel() for parameter in net.parameters())
    pooling = {"spp": f"SPP {net.pool.levels}", "avg": "average pooling", "none": "no SPP"}[net.config.pooling]
    name = net.config.name + (f" at width {net.config.width:g}" if net.config.width != 1 else "")
    sizes = data.shapes.describe(data.batch_size)
    return (
        f"{name}, {pooling}, {parameters:,} parameters; {data.root}: {len(data.train_source):,} images to "
        f"train on, {len(data.val_source):,} to validate, {net.num_classes} classes; {sizes}; {folder.path}"
    )


def summarise_run(folder: RunFolder, cfg: DictConfig, validation_errors: list[float]) -> str:
    """Return what to print after a run: its lowest error, where the files are, and the commands to type next."""
    if not validation_errors:
        return f"Stopped before the end of the first epoch; there is no checkpoint in {folder.path} yet"
    lowest, epochs = _find_best(validation_errors)
    protocols = "crop1,crop10,full1,map10" if cfg.model.pooling != "none" else "crop1,crop10"
    kind = [f"data={cfg.data.kind}"] if cfg.data.kind in KINDS else ["data=custom", f"data.kind={cfg.data.kind}"]
    plugins = [f"plugins=[{','.join(cfg.plugins)}]"] if cfg.plugins else []
    test = ["eval.py", f"ckpt={folder.best}", *kind, f"data.root={cfg.data.root}", *plugins]
    lines = [
        f"\nLowest validation top-1 error: {lowest:.2f} % (after {epochs} of {len(validation_errors)} epochs)",
        f"Checkpoints: {folder.best} {folder.last}",
    ]
    if folder.tensorboard.exists():
        lines.append(f"Curves:      tensorboard --logdir {shlex.quote(str(folder.tensorboard))}")
    if folder.csv.exists():
        lines.append(f"Metrics:     {folder.csv}")
    lines.append(f"Test it:     python {shlex.join([*test, f'protocol=[{protocols}]'])}")
    return "\n".join(lines)


def collect_result(folder: RunFolder, validation_errors: list[float]) -> dict[str, Any]:
    """Return the lowest validation top-1 error of a run and the epochs before it, for the table of --multirun."""
    lowest, epochs = _find_best(validation_errors) if validation_errors else (None, None)
    return {"run_folder": str(folder.path), "top1_error": lowest, "epochs": epochs}


def _find_best(validation_errors: list[float]) -> tuple[float, int]:
    """Return the lowest error, and how many epochs were trained until then, as the tables of tests count them."""
    lowest = min(validation_errors)
    return lowest, validation_errors.index(lowest) + 1
