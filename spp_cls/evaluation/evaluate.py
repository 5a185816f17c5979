"""(net, source, protocols) -> predictions: each view is computed once, whatever protocols share it."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from lightning_fabric import Fabric
from tqdm import tqdm

from spp_cls.cli.collectives import all_gather
from spp_cls.cli.errors import UserError
from spp_cls.data.sources import ImageSource
from spp_cls.evaluation.features import view_features
from spp_cls.evaluation.images import MAX_PIXELS, get_cuts, load_cuts
from spp_cls.evaluation.predictions import Predictions
from spp_cls.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from spp_cls.models.net import SPPNet


class OtherClassesError(UserError):
    """The data set has other classes than a network was trained on."""


class NeedsAnySizeError(UserError):
    """A network of one image size cannot run `protocols`."""

    def __init__(self, protocols: Sequence[Protocol], net: SPPNet) -> None:
        names = ", ".join(protocol.name for protocol in protocols)
        others = ", ".join(protocol.name for protocol in PROTOCOLS.values() if not protocol.needs_any_size)
        super().__init__(
            f"{names} need{'s' * (len(protocols) == 1)} a net that takes any size; {net.config.name} without SPP runs "
            f"{others}"
        )
        self.protocols = protocols


def evaluate(
    net: SPPNet | Sequence[SPPNet],
    source: ImageSource,
    protocols: Sequence[str | Protocol],
    fabric: Fabric | None = None,
    max_pixels: int = MAX_PIXELS,
    num_workers: int = 0,
    progress: bool = True,
    timeout: float = 0,
) -> dict[str, Predictions]:
    """Score every image once under each protocol; return the predictions by the protocol's name.

    The scores of several networks, all for crops of one size, are averaged. The networks must be in
    evaluation mode. With a fabric they are on the fabric's device, the images are divided among the processes without
    padding, and every process gets the predictions of all images; without one, this process scores them all on the
    networks' device.
    Predictions are in the order of `source`. `max_pixels` bounds the images of one pass through a network. A batch may
    take `timeout` seconds to be read by workers (0: any time).

    Raises:
        UserError: if a protocol is unknown or the network cannot run it, there are no images, the classes are not the
            network's, the networks take different crops, scores are not finite, or a batch takes too long to be read.
        UndecodableImageError: if an image is damaged.
    """
    chosen = list(dict.fromkeys(get_protocol(each) if isinstance(each, str) else each for each in protocols))
    names = [protocol.name for protocol in chosen]
    if not chosen or len(set(names)) < len(names):
        raise UserError(f"give one protocol or more, each with a name of its own, not {names}")
    if not len(source):
        raise UserError(f"there are no images in {source.root} to test on; set data and data.root to others")
    nets = [net] if isinstance(net, SPPNet) else list(net)
    if not nets:
        raise UserError("give one network or more")
    for each in nets:
        check_classes(each, source)
        check_protocols(each, chosen)
    input_size = nets[0].config.input_size
    if (sizes := {each.config.input_size for each in nets}) != {input_size}:
        raise UserError(f"networks of one ensemble take crops of one size, and these {sorted(sizes)}; test them apart")
    interpolation = nets[0].config.interpolation
    if any(each.config.interpolation != interpolation for each in nets):
        raise UserError(
            "the networks take images resized in different ways, bilinear and bicubic; test them one by one"
        )
    rank, world_size = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    views = {view for protocol in chosen for view in protocol.views}
    # Neighbours in a data set often have the same shape; every process should get its share of each shape.
    indices = range(rank, len(source), world_size)
    cuts = get_cuts(views, input_size)
    batches = load_cuts(source, indices, cuts, input_size, interpolation, max_pixels, num_workers, timeout)
    scored: dict[str, list[Predictions]] = {protocol.name: [] for protocol in chosen}
    bar = tqdm(
        total=len(indices),
        unit=" images",
        desc="Testing",
        disable=not progress or rank > 0,
        dynamic_ncols=True,
        # stderr is for what goes wrong.
        file=sys.stdout,
    )
    wrong = seen = 0
    with bar, torch.inference_mode():
        for batch in batches:
            with fabric.autocast() if fabric else nullcontext():
                logits = [view_features(each, batch.images, views, max_pixels=max_pixels) for each in nets]
            scores = {view: torch.stack([each[view].float().softmax(1) for each in logits]).mean(0) for view in views}
            for protocol in chosen:
                mean = torch.stack([scores[view] for view in protocol.views]).mean(0)
                scored[protocol.name].append(Predictions.from_scores(mean, batch.labels, batch.indices))
                _check_scores(scored[protocol.name][-1], protocol, source)
            wrong += len(batch.labels) - scored[names[0]][-1].count_correct(1)
            seen += len(batch.labels)
            bar.update(len(batch.labels))
            bar.set_postfix_str(f"{names[0]} top-1 error {100 * wrong / seen:.2f} %")
    # A process on its own may be one of several that do other things.
    shards = all_gather(scored) if world_size > 1 else [scored]
    results = {name: Predictions.join([each for shard in shards for each in shard[name]]) for name in scored}
    for name, predictions in results.items():
        assert len(predictions) == len(source), f"{name} saw {len(predictions)} of {len(source)} images"
    return results


def _check_scores(predictions: Predictions, protocol: Protocol, source: ImageSource) -> None:
    is_finite = predictions.scores.isfinite().all(1)
    if not is_finite.all():
        index = int(predictions.indices[~is_finite][0])
        raise UserError(
            f"the scores of {source.location(index)} under {protocol.name} are not finite: the network's values "
            "overflow; give another checkpoint, or trainer.precision=32-true"
        )


def check_protocols(net: SPPNet, protocols: Sequence[Protocol]) -> None:
    """Raise UserError if the network cannot run a protocol: NeedsAnySizeError, if it takes one image size alone."""
    if net.config.in_chans != 3:
        raise UserError(f"the network has {net.config.in_chans} input channels; the protocols are for RGB images")
    unsuitable = [protocol for protocol in protocols if protocol.needs_any_size and not net.config.takes_any_size]
    if unsuitable:
        raise NeedsAnySizeError(unsuitable, net)
    for protocol in protocols:
        if not protocol.views:
            raise UserError(f"{protocol.name} has no views; give it one or more")
        input_size = net.config.input_size
        for cut in get_cuts(protocol.views, input_size):
            # The other side of a whole image is no shorter.
            side = cut.min_side if cut.position is None else input_size
            net.check_size(side, side)


def check_classes(net: SPPNet, source: ImageSource) -> None:
    """Raise OtherClassesError if the classes of a dataset source are not those that the network was trained on."""
    if len(source.class_names) != net.num_classes:
        raise OtherClassesError(
            f"the data set in {source.root} has {len(source.class_names)} classes, the checkpoint {net.num_classes}; "
            "set data and data.root to the data set it was trained on"
        )
    known = net.config.class_names
    if known is not None and known != tuple(source.class_names):
        place, (found, expected) = next(
            (place, pair)
            for place, pair in enumerate(zip(source.class_names, known, strict=True))
            if pair[0] != pair[1]
        )
        raise OtherClassesError(
            f"class {place} of {source.root} is {found}, and {expected} in the checkpoint; "
            "set data and data.root to the data set it was trained on"
        )
