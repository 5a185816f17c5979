"""Trials of an export: images of many sizes, and how far its logits are from the network's."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spp_cls.cli.errors import UserError, shorten
from spp_cls.data.loading.batch import normalize
from spp_cls.models.net import SPPNet

# Heights and widths that an export is tried at, and about the smallest that the network takes.
SIZES = ((180, 180), (224, 224), (224, 320), (373, 256), (560, 747), (301, 225))

# Largest difference of a logit from the network's own. Absolute, as scores are functions of differences of logits;
# and relative to the largest logit where that is under 1, or any export of an untrained network would pass.
TOLERANCE = 1e-4

Run = Callable[[Tensor], Tensor]


class Trial(NamedTuple):
    """Images, N x in_chans x H x W, and the network's own logits of them."""

    images: Tensor
    logits: Tensor


def find_largest_difference(run: Run, trials: Sequence[Trial], name: str) -> float:
    """Return the largest difference of an export's logits from the network's.

    Raises:
        UserError: if it is over the tolerance.
    """
    largest = 0.0
    for images, logits in trials:
        size = " x ".join(map(str, images.shape[-2:]))
        try:
            with torch.inference_mode():
                difference = float((run(images) - logits).abs().max())
        except RuntimeError as error:
            raise UserError(
                f"the {name} export refuses {size} pixels, which the network takes ({shorten(error)}); "
                "no file was written"
            ) from error
        limit = TOLERANCE * min(1.0, float(logits.abs().max()))
        # Not "over the limit", which not-a-number never is.
        if not difference <= limit:
            raise UserError(
                f"the {name} export is not the network: at {size} pixels a logit differs by {difference:.2g}, "
                f"over {limit:.2g}; no file was written"
            )
        largest = max(largest, difference)
    return largest


def make_trials(net: SPPNet) -> Iterator[Trial]:
    """Draw random pixels of every size, in batches of one, two and three, and compute the network's logits."""
    config = net.config
    smallest, side = net.backbone.smallest_input, config.input_size
    sizes = (*SIZES, (smallest, 2 * smallest)) if config.takes_any_size else ((side, side),) * len(SIZES)
    generator = torch.Generator().manual_seed(0)
    for number, (height, width) in enumerate(sizes):
        shape = (1 + number % 3 if height * width <= 320 * 320 else 1, config.in_chans, height, width)
        images = normalize(torch.randint(256, shape, generator=generator), config.mean, config.std)
        with torch.inference_mode():
            yield Trial(images, net(images))
