"""A checkpoint and protocols -> the rows of a table."""

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from lightning_fabric import Fabric

from spp_cls.checkpoint import load_checkpoint, net_from_checkpoint, training_sizes
from spp_cls.data.sources import ImageSource
from spp_cls.errors import UserError
from spp_cls.evaluation.evaluate import evaluate
from spp_cls.evaluation.predictions import Predictions
from spp_cls.evaluation.views import PROTOCOLS, Protocol, custom_protocol, get_protocol
from spp_cls.models.net import SPPNet
from spp_cls.rows import Row, file_sha256, hardware


def checkpoints_in(path: str | Path) -> list[Path]:
    """Return the checkpoint itself, or the best checkpoint of every run below a folder.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("best.ckpt"))
    if not found:
        raise UserError(f"there is no best.ckpt in the folders below {path}; give a checkpoint or a folder of runs")
    return found


def chosen_protocols(
    names: str | Sequence[str], scales: Sequence[int] | None, positions: Sequence[str], flips: bool
) -> list[Protocol] | None:
    """Return the protocols that were asked for by name; None for `all`, which is for each network to say.

    Raises:
        UserError: a name that is no protocol's, or scales without protocol=custom.
    """
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if scales is not None and "custom" not in names:
        raise UserError("scales are for protocol=custom; add custom to protocol or leave scales out")
    if names == ["all"]:
        return None
    if not names:
        raise UserError("protocol is empty; give one or more, such as protocol=[crop1,full1]")
    return [custom_protocol(scales or [], positions, flips) if n == "custom" else get_protocol(n) for n in names]


def runnable_protocols(net: SPPNet) -> list[Protocol]:
    """Return every protocol that a network can run: without SPP, those on crops."""
    on_maps = net.recipe.pooling == "spp"
    return [p for p in PROTOCOLS.values() if on_maps or not any(view.on_maps for view in p.views)]


def checkpoint_rows(
    path: Path,
    protocols: Sequence[Protocol] | None,
    files: ImageSource,
    data: str,
    fabric: Fabric,
    *,
    precision: str = "32-true",
    max_pixels: int = 8_000_000,
    num_workers: int = 0,
    done: frozenset[tuple[str, str, str]] = frozenset(),
) -> tuple[list[Row], dict[str, Predictions]]:
    """Test a checkpoint under protocols (None: all it can run); give a row for each, and the predictions.

    `data` names the data set in the rows. `done` are the (checkpoint's SHA-256, protocol, data) to leave out.

    Raises:
        UserError: as evaluate and load_checkpoint do.
    """
    checkpoint = load_checkpoint(path)
    net = net_from_checkpoint(checkpoint)
    digest = file_sha256(path)
    wanted = runnable_protocols(net) if protocols is None else protocols
    wanted = [protocol for protocol in wanted if (digest, protocol.name, data) not in done]
    if not wanted:
        return [], {}
    fabric.to_device(net.to(memory_format=torch.channels_last))
    start = time.perf_counter()
    predictions = evaluate(net, files, wanted, fabric, max_pixels, num_workers)
    seconds = time.perf_counter() - start
    crop10 = predictions.get("crop10")
    rows = [
        Row(
            protocol=protocol.name,
            views=len(protocol.views),
            top1_error=predictions[protocol.name].error(1),
            top5_error=predictions[protocol.name].error(5),
            images=len(predictions[protocol.name]),
            agreement_with_crop10=predictions[protocol.name].agreement(crop10) if crop10 else None,
            net=net.recipe.name,
            pooling=net.recipe.pooling,
            levels=" ".join(map(str, net.pool.levels)),
            sizes=training_sizes(checkpoint),
            input_size=net.recipe.input_size,
            epochs=checkpoint["epoch"] + 1,
            parameters=sum(parameter.numel() for parameter in net.parameters()),
            data=data,
            checkpoint=str(path),
            checkpoint_sha256=digest,
            precision=precision,
            seconds=round(seconds, 3),
            images_per_second=round(len(files) / seconds, 3),
            spp_cls=version("spp_cls"),
            torch=torch.__version__,
            python=platform.python_version(),
            hardware=hardware(),
        )
        for protocol in wanted
    ]
    return rows, predictions
