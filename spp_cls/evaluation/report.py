"""Checkpoints and protocols -> rows of results."""

import hashlib
import platform
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from spp_cls.cli.errors import UserError
from spp_cls.cli.reading import is_file, is_folder
from spp_cls.cli.schema import has_type
from spp_cls.data.sources import ImageSource, SourceIdentity
from spp_cls.data.sources.identity import hash_file
from spp_cls.evaluation.evaluate import evaluate
from spp_cls.evaluation.images import MAX_PIXELS
from spp_cls.evaluation.predictions import Predictions
from spp_cls.evaluation.protocols import NINE_POSITIONS, PROTOCOLS, Protocol, get_protocol, make_protocol
from spp_cls.evaluation.rows import Row, describe_hardware, find_version
from spp_cls.evaluation.seeds import JOINT
from spp_cls.models.checkpoint import (
    count_epochs,
    create_net_from_checkpoint,
    describe_seed,
    describe_training_sizes,
    load_checkpoint,
)
from spp_cls.models.net import SPPNet

# What a row of results measures: rows that agree in these are the same measurement.
TEST_KEY = ("checkpoint_sha256", "protocol", "data_digest", "precision")

# The order of the networks of an ensemble.
_MEMBER_ORDER = ("net", "seed", "checkpoint_sha256")


def find_checkpoints(names: Any) -> list[Path]:
    """Return the checkpoints of a path or a list of paths; of a folder, the best checkpoint of every run below it.

    Raises:
        UserError: if there are no paths, or there is no such file, or no checkpoint below a folder.
    """
    names = [names] if isinstance(names, str) else names
    if not has_type(names, list[str]) or not names:
        raise UserError(
            f"ckpt is a path or a list of paths, such as [runs/a/best.ckpt,runs/b/best.ckpt], not {names!r}"
        )
    if "" in names:
        raise UserError("ckpt is empty; give a checkpoint, or a folder of runs")
    return list(dict.fromkeys(path for name in names for path in _find_below(Path(name))))


def _find_below(path: Path) -> list[Path]:
    if is_file(path):
        return [path]
    if not is_folder(path):
        raise UserError(f"there is no checkpoint {path}; check the path")
    found = sorted(path.rglob("best.ckpt"))
    if not found:
        raise UserError(f"there is no best.ckpt in the folders below {path}; give a checkpoint or a folder of runs")
    return found


def group_checkpoints(paths: Sequence[Path], ensemble: bool) -> list[list[Path]]:
    """Return each checkpoint by itself and, for an ensemble, all together.

    Raises:
        UserError: if an ensemble has one member.
    """
    if ensemble and len(paths) < 2:
        raise UserError(f"ensemble=true averages several networks, and ckpt has {len(paths)}; give a list or a folder")
    return [*([path] for path in paths), *([list(paths)] if ensemble else [])]


def choose_protocols(
    names: str | Sequence[str],
    scales: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    flips: bool | None = None,
) -> list[Protocol] | None:
    """Return the protocols of names; None for `all`, which depends on the network.

    `scales`, `positions` (None: all nine) and `flips` (None: true) are those of `custom`.

    Raises:
        UserError: if a name is unknown, or keys of custom are given without it.
    """
    names = [names] if isinstance(names, str) else names
    if not has_type(names, list[str]):
        raise UserError(f"protocol is a name or a list of names, such as [crop1,full1], not {names!r}")
    names = list(dict.fromkeys(names))
    for key, value in {"scales": scales, "positions": positions, "flips": flips}.items():
        if value is not None and "custom" not in names:
            raise UserError(f"{key} are for protocol=custom; add custom to protocol or leave {key} out")
    if names == ["all"]:
        return None
    if "all" in names:
        raise UserError("protocol=all is every protocol; leave the others out")
    if not names:
        raise UserError("protocol is empty; give one or more, such as protocol=[crop1,full1]")
    positions = NINE_POSITIONS if positions is None else positions
    return [
        make_protocol(scales or [], positions, flips is not False) if name == "custom" else get_protocol(name)
        for name in names
    ]


def list_protocols(nets: Sequence[SPPNet]) -> list[Protocol]:
    """Return every protocol that all of the networks can run: those on crops, if one takes a single image size."""
    take_any_size = all(net.config.takes_any_size for net in nets)
    return [protocol for protocol in PROTOCOLS.values() if take_any_size or not protocol.needs_any_size]


def evaluate_checkpoints(
    paths: Sequence[Path],
    protocols: Sequence[Protocol] | None,
    source: ImageSource,
    data: SourceIdentity,
    fabric: Fabric,
    *,
    max_pixels: int = MAX_PIXELS,
    num_workers: int = 0,
    timeout: float = 0,
    done: Collection[tuple[str, ...]] = (),
) -> tuple[list[Row], dict[str, Predictions]]:
    """Test a checkpoint, or the mean of the scores of several, under protocols; return rows and predictions.

    `protocols` None are all that the networks can run; there is a row for each. `data` is the identity of `source`.
    `done` are the values of TEST_KEY to leave out. A batch may take `timeout` seconds to be read by workers (0: any
    time).

    Raises:
        UserError: as evaluate and load_checkpoint do.
    """
    # An ensemble is the same in any order.
    opened = sorted(map(_open_checkpoint, paths), key=lambda each: [each[1][name] for name in _MEMBER_ORDER])
    nets, descriptions = zip(*opened, strict=True)
    description = _join_descriptions(descriptions)
    wanted = list_protocols(nets) if protocols is None else protocols
    # Not what was asked for: on CPUs 16-mixed is computed as bf16-mixed, and 32 is another name of 32-true.
    precision = fabric.strategy.precision.precision
    identity = (data.digest, precision)
    wanted = [each for each in wanted if (description["checkpoint_sha256"], each.name, *identity) not in done]
    if not wanted:
        return [], {}
    for net in nets:
        fabric.to_device(net.to(memory_format=torch.channels_last))
    start = time.perf_counter()
    predictions = evaluate(nets, source, wanted, fabric, max_pixels, num_workers, timeout=timeout)
    seconds = time.perf_counter() - start
    crop10 = predictions.get("crop10")
    rows = [
        Row(
            protocol=protocol.name,
            views=len(protocol.views),
            top1_error=predictions[protocol.name].error(1),
            top5_error=predictions[protocol.name].error(5),
            images=len(predictions[protocol.name]),
            agreement_with_crop10=predictions[protocol.name].agreement_with(crop10) if crop10 is not None else None,
            **description,
            data=data.name,
            data_digest=data.digest,
            stored_side=data.stored_side,
            precision=precision,
            seconds=round(seconds, 3),
            images_per_second=round(len(source) / seconds, 3),
            spp_cls=find_version(),
            torch=torch.__version__,
            python=platform.python_version(),
            hardware=describe_hardware(fabric.device, fabric.world_size),
        )
        for protocol in wanted
    ]
    return rows, predictions


def _open_checkpoint(path: Path) -> tuple[SPPNet, dict[str, Any]]:
    """Return the network of a checkpoint, and what a row says of it."""
    checkpoint = load_checkpoint(path)
    net = create_net_from_checkpoint(checkpoint)
    return net, {
        "networks": 1,
        "net": net.config.name,
        "width": f"{net.config.width:g}",
        "pooling": net.config.pooling,
        "levels": " ".join(map(str, net.pool.levels)),
        "sizes": describe_training_sizes(checkpoint),
        "input_size": net.config.input_size,
        "seed": describe_seed(checkpoint),
        "epochs": count_epochs(checkpoint),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "checkpoint": str(path),
        "checkpoint_sha256": hash_file(path),
    }


def _join_descriptions(descriptions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Describe networks whose scores are averaged: Row says how."""
    first = descriptions[0]
    if len(descriptions) == 1:
        return first
    digests = "".join(each["checkpoint_sha256"] for each in descriptions)
    joined = {name: JOINT.join(dict.fromkeys(str(each[name]) for each in descriptions)) for name in first}
    return joined | {
        "networks": len(descriptions),
        "input_size": first["input_size"],
        "epochs": max(each["epochs"] for each in descriptions),
        "parameters": sum(each["parameters"] for each in descriptions),
        "checkpoint_sha256": hashlib.sha256(digests.encode()).hexdigest(),
    }
