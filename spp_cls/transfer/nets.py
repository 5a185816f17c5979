"""The network whose features are taken: from a file, or by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spp_cls.cli.errors import UserError
from spp_cls.cli.reading import is_folder
from spp_cls.models.checkpoint import (
    WEIGHTS_FILE,
    count_epochs,
    create_net_from_checkpoint,
    describe_training_sizes,
    load_checkpoint,
    load_net,
)
from spp_cls.models.net import SPPNet, build_net, create_net
from spp_cls.transfer.features.extraction import hash_net


@dataclass(frozen=True)
class NetFacts:
    """What a row says about the network. `sizes` and `epochs` are those of its training, where the file has them."""

    net: str
    pooling: str
    levels: str
    width: float
    sizes: str
    input_size: int
    epochs: int | None
    checkpoint: str
    network_sha256: str


def open_net(path: str, untrained: bool = False, seed: int = 0) -> tuple[SPPNet, NetFacts]:
    """Open a checkpoint or an exported folder, in evaluation mode; `untrained` gives its network new weights.

    Raises:
        UserError: if there is no such file, it is not of this package, or a checkpoint does not say its epoch.
    """
    if untrained:
        config = load_net(path).config
        torch.manual_seed(seed)
        return _describe(create_net(config), path, "", 0)
    if is_folder(path) or Path(path).name == WEIGHTS_FILE:
        return _describe(load_net(path), path, "", None)
    checkpoint = load_checkpoint(path)
    net = create_net_from_checkpoint(checkpoint)
    return _describe(net, path, describe_training_sizes(checkpoint), count_epochs(checkpoint))


def build_named_net(name: str, pooling: str, pretrained: bool, seed: int = 0) -> tuple[SPPNet, NetFacts]:
    """Build a network by its name, with new weights or, if `pretrained`, published ones; in evaluation mode.

    Raises:
        UserError: if there is no such network, or no such weights.
    """
    options: dict[str, Any] = {"pooling": pooling, **({"pretrained": True} if pretrained else {})}
    torch.manual_seed(seed)
    return _describe(build_net(name, **options), name, "", None if pretrained else 0)


def _describe(net: SPPNet, place: str, sizes: str, epochs: int | None) -> tuple[SPPNet, NetFacts]:
    config = net.config
    if config.in_chans != 3:
        raise UserError(f"the network has {config.in_chans} input channels; transfer is for RGB images")
    levels = " ".join(map(str, net.pool.levels))
    facts = NetFacts(
        config.name, config.pooling, levels, config.width, sizes, config.input_size, epochs, place, hash_net(net)
    )
    return net.eval(), facts
