"""A checkpoint and protocols -> rows of results."""

import platform
import time
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from lightning_fabric import Fabric

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import has_type
from spp_cls.data.sources import ImageSource, SourceIdentity
from spp_cls.evaluation.evaluate import evaluate
from spp_cls.evaluation.predictions import Predictions
from spp_cls.evaluation.protocols import PROTOCOLS, Protocol, get_protocol, make_protocol
from spp_cls.evaluation.rows import Row, describe_hardware, hash_file
from spp_cls.models.checkpoint import create_net_from_checkpoint, describe_training_sizes, load_checkpoint
from spp_cls.models.net import SPPNet


def find_checkpoints(path: str | Path) -> list[Path]:
    """Return the checkpoint itself, or the best checkpoint of every run below a folder.

    Raises:
        UserError: if a folder has no checkpoint below it.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("best.ckpt"))
    if not found:
        raise UserError(f"there is no best.ckpt in the folders below {path}; give a checkpoint or a folder of runs")
    return found


def choose_protocols(
    names: str | Sequence[str], scales: Sequence[int] | None, positions: Sequence[str], flips: bool
) -> list[Protocol] | None:
    """Return the protocols of names; None for `all`, which depends on the network.

    Raises:
        UserError: if a name is unknown, or there are scales without protocol=custom.
    """
    names = [names] if isinstance(names, str) else names
    if not has_type(names, list[str]):
        raise UserError(f"protocol is a name or a list of names, such as [crop1,full1], not {names!r}")
    names = list(dict.fromkeys(names))
    if scales is not None and "custom" not in names:
        raise UserError("scales are for protocol=custom; add custom to protocol or leave scales out")
    if names == ["all"]:
        return None
    if not names:
        raise UserError("protocol is empty; give one or more, such as protocol=[crop1,full1]")
    return [make_protocol(scales or [], positions, flips) if name == "custom" else get_protocol(name) for name in names]


def list_protocols(net: SPPNet) -> list[Protocol]:
    """Return every protocol that a network can run: without SPP, those on crops."""
    return [
        protocol
        for protocol in PROTOCOLS.values()
        if net.config.takes_any_size or not any(view.on_maps for view in protocol.views)
    ]


def evaluate_checkpoint(
    path: Path,
    protocols: Sequence[Protocol] | None,
    source: ImageSource,
    data: SourceIdentity,
    fabric: Fabric,
    *,
    precision: str = "32-true",
    max_pixels: int = 8_000_000,
    num_workers: int = 0,
    timeout: float = 0,
    done: Collection[tuple[str, ...]] = (),
) -> tuple[list[Row], dict[str, Predictions]]:
    """Test a checkpoint under protocols (None: all it can run); return a row for each, and the predictions.

    `data` is the identity of `source`. `done` are the (checkpoint's SHA-256, protocol, data's digest, precision) to
    leave out. A batch may take `timeout` seconds to be read by workers (0: any time).

    Raises:
        UserError: as evaluate and load_checkpoint do.
    """
    checkpoint = load_checkpoint(path)
    net = create_net_from_checkpoint(checkpoint)
    sha256 = hash_file(path)
    wanted = list_protocols(net) if protocols is None else protocols
    wanted = [protocol for protocol in wanted if (sha256, protocol.name, data.digest, precision) not in done]
    if not wanted:
        return [], {}
    fabric.to_device(net.to(memory_format=torch.channels_last))
    start = time.perf_counter()
    predictions = evaluate(net, source, wanted, fabric, max_pixels, num_workers, timeout=timeout)
    seconds = time.perf_counter() - start
    crop10 = predictions.get("crop10")
    rows = [
        Row(
            protocol=protocol.name,
            views=len(protocol.views),
            top1_error=predictions[protocol.name].error(1),
            top5_error=predictions[protocol.name].error(5),
            images=len(predictions[protocol.name]),
            agreement_with_crop10=predictions[protocol.name].agreement_with(crop10) if crop10 else None,
            net=net.config.name,
            pooling=net.config.pooling,
            levels=" ".join(map(str, net.pool.levels)),
            sizes=describe_training_sizes(checkpoint),
            input_size=net.config.input_size,
            epochs=checkpoint["epoch"] + 1,
            parameters=sum(parameter.numel() for parameter in net.parameters()),
            data=data.name,
            data_digest=data.digest,
            stored_side=data.stored_side,
            checkpoint=str(path),
            checkpoint_sha256=sha256,
            precision=precision,
            seconds=round(seconds, 3),
            images_per_second=round(len(source) / seconds, 3),
            spp_cls=version("spp_cls"),
            torch=torch.__version__,
            python=platform.python_version(),
            hardware=describe_hardware(),
        )
        for protocol in wanted
    ]
    return rows, predictions
