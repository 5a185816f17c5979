"""One pass over the images: each is decoded once, each view goes through the convolutions once, for all layers."""

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from tqdm import tqdm

from spp_cls.cli.errors import UserError
from spp_cls.data.sources import ImageSource
from spp_cls.data.sources.identity import Storage, hash_list
from spp_cls.evaluation.images import MAX_PIXELS, Cut, load_cuts
from spp_cls.evaluation.rows import find_version
from spp_cls.models.checkpoint import convert_config_to_dict
from spp_cls.models.net import SPPNet
from spp_cls.transfer.features.layers import Feature, compute_layers, measure_lengths
from spp_cls.transfer.features.store import FeatureStore

# A run that is killed loses no more than the work of so many seconds.
_SECONDS_BETWEEN_COMMITS = 30


def hash_net(net: SPPNet) -> str:
    """Return the SHA-256 of a network's configuration and weights."""
    digest = hashlib.sha256(json.dumps(convert_config_to_dict(net.config), sort_keys=True).encode())
    for name, value in net.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def create_store(
    net: SPPNet,
    source: ImageSource,
    features: Sequence[Feature],
    folder: str | Path,
    precision: str = "32-true",
    storage: Storage | None = None,
) -> FeatureStore:
    """Make the files for features of a network for the images of a source in a folder, as far as they are not there.

    `storage` is how a pack stored the images.

    Raises:
        UserError: if the folder has features of another network, data set or version, or the disk has no space.
    """
    store = open_store(net, source, folder, precision, storage)
    store.create(measure_lengths(net, features))
    return store


def open_store(
    net: SPPNet,
    source: ImageSource,
    folder: str | Path,
    precision: str = "32-true",
    storage: Storage | None = None,
) -> FeatureStore:
    """Open a folder that create_store has made, in another process."""
    identity = {
        "network": hash_net(net), "data": hash_list(source), "precision": precision, "spp_cls": find_version(),
        "storage": storage and f"min side {storage.min_side}, quality {storage.quality}",
    }  # fmt: skip
    return FeatureStore(folder, identity, len(source))


def get_max_pixels(device: torch.device, max_pixels: int | None) -> int:
    """Return the pixels of one pass: what was asked for, else one image on a CPU and MAX_PIXELS on a GPU.

    On a CPU a batch saves little time, and the last bits of an image's features would depend on the others in it.
    """
    return max_pixels or (1 if device.type == "cpu" else MAX_PIXELS)


def extract_features(
    net: SPPNet,
    source: ImageSource,
    features: Sequence[Feature],
    store: FeatureStore,
    fabric: Fabric | None = None,
    max_pixels: int | None = None,
    num_workers: int = 0,
    timeout: float = 0,
    progress: bool = True,
) -> int:
    """Write the features of all images that the store lacks; return how many images were read.

    create_store has made the files of `features`, in one of the processes. The images are divided among the processes
    of the fabric without padding. On a CPU each image goes through the network alone: its features are, bit for bit,
    those of the network on this image, for any number of processes.

    Raises:
        UserError: if the store cannot be written, features are not finite, or workers take longer than `timeout`
            seconds for a batch.
        UndecodableImageError: if an image is damaged.
    """
    rank, world_size = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    if fabric:
        # create_store has run in one of the processes.
        fabric.barrier()
    unfinished, images = store.list_unfinished(features)
    if fabric:
        # No process marks images before all have read the marks.
        fabric.barrier()
    layers: dict[Cut, list[Feature]] = {}
    for feature in unfinished:
        layers.setdefault(feature.cut, []).append(feature)
    local = images[rank::world_size].tolist()
    pixels = get_max_pixels(next(net.parameters()).device, max_pixels)
    side, interpolation = net.config.input_size, net.config.interpolation
    bar = tqdm(
        total=len(local), unit=" images", desc="Features", disable=not progress or rank > 0 or not len(images),
        dynamic_ncols=True, file=sys.stdout,
    )  # fmt: skip
    committed = time.monotonic()
    store.open_for_writing(unfinished)
    try:
        with bar:
            for batch in load_cuts(source, local, list(layers), side, interpolation, pixels, num_workers, timeout):
                values: dict[Feature, np.ndarray] = {}
                for cut, members in layers.items():
                    with fabric.autocast() if fabric else nullcontext():
                        outputs = compute_layers(net, batch.images[cut], [each.layer for each in members])
                    values |= {each: outputs[each.layer].float().cpu().numpy() for each in members}
                _check_values(values, source, batch.indices.tolist())
                store.write(batch.indices.tolist(), values)
                bar.update(len(batch.indices))
                if time.monotonic() - committed > _SECONDS_BETWEEN_COMMITS:
                    store.commit()
                    committed = time.monotonic()
        store.commit()
    except BaseException:
        # What is finished stays so; a disk that is full fails once more.
        with suppress(UserError):
            store.commit()
        raise
    finally:
        store.close()
    if fabric:
        fabric.barrier()
    return len(images)


def _check_values(values: Mapping[Feature, np.ndarray], source: ImageSource, indices: Sequence[int]) -> None:
    for feature, rows in values.items():
        if not np.isfinite(rows).all():
            index = indices[int(np.flatnonzero(~np.isfinite(rows).all(1))[0])]
            raise UserError(
                f"{feature.layer} of {source.location(index)} is not finite: the network's values overflow; give "
                "other weights, or trainer.precision=32-true"
            )
