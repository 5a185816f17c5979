"""Multi-size training: the image size of an epoch, section 2.3 of the paper."""

import re
from collections.abc import Sequence

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import has_type
from spp_cls.data.transforms.randomness import Purpose, create_generator

# The paper's second size for networks trained on crops of 224.
_SMALL = 180 / 224

# FFCV's ImageNet recipes grow from 160 pixels, linearly, in multiples of 32.
_SMALLEST_PROGRESSIVE = 160 / 224
_STEP = 32

# Larger sizes are errors of typing.
_MOST_PIXELS = 10_000

# Shares of the run: the defaults of Composer's Progressive Resizing, delay_fraction and 1 - finetune_fraction.
_GROWTH = (0.5, 0.8)

# Words that may be followed by a range, as in random:128-256, and the smallest size without one as a share of the crop.
_RANGED = {"random": _SMALL, "progressive": _SMALLEST_PROGRESSIVE}


def choose_size(sizes: str | Sequence[int], epoch: int, crop: int, seed: int, epochs: int | None = None) -> int:
    """Return the side in pixels that the training images of an epoch have: a pure function.

    `single` is the size of the crop, `alternate` that and 180/224 of it in turn (Table 2c), `random` one size per
    epoch, uniform between those two (section 3.1.2). The sizes of a list take turns. `progressive` grows from 160/224
    of the crop to the crop, in multiples of 32 pixels, over a run of `epochs` epochs: the smallest size for its first
    half, the largest for its last fifth. random:128-256 and progressive:128-256 take the range that is given.

    Raises:
        UserError: if `sizes` is anything else, or progressive and `epochs` is not known.
    """
    possible = list_sizes(sizes, crop)
    word = sizes.partition(":")[0] if isinstance(sizes, str) else ""
    if word == "random":
        return int(create_generator(Purpose.IMAGE_SIZE, seed, epoch).integers(possible[0], possible[-1], endpoint=True))
    if word == "progressive":
        if epochs is None or epochs < 1:
            raise UserError(f"sizes={sizes} needs the number of epochs of the run; set trainer.max_epochs")
        # The last epoch has the largest size in the shortest run too.
        share = epoch / (epochs - 1) if epochs > 1 else 1.0
        grown = min(max((share - _GROWTH[0]) / (_GROWTH[1] - _GROWTH[0]), 0.0), 1.0)
        wanted = possible[0] + grown * (possible[-1] - possible[0])
        return min(possible, key=lambda size: abs(size - wanted))
    return possible[epoch % len(possible)]


def list_sizes(sizes: str | Sequence[int], crop: int) -> list[int]:
    """Return all sizes that an epoch can have, in the order of the epochs; of a range, in rising order.

    Raises:
        UserError: if `sizes` is not one of the words or a list of whole numbers.
    """
    if isinstance(sizes, str):
        word, colon, limits = sizes.partition(":")
        if word in _RANGED:
            smallest, largest = _read_range(sizes, limits) if colon else (max(1, round(crop * _RANGED[word])), crop)
            if word == "random":
                return list(range(smallest, largest + 1))
            return sorted({smallest, *range(smallest - smallest % _STEP + _STEP, largest, _STEP), largest})
        words = {"single": [crop], "alternate": [crop, round(crop * _SMALL)]}
        if sizes not in words:
            raise UserError(
                "sizes is single, alternate, random, progressive, a range such as random:128-256, or a list such as "
                f"[224,180], not {sizes!r}"
            )
        return words[sizes]
    if not has_type(sizes, list[int]) or not sizes or min(sizes) < 1 or max(sizes) > _MOST_PIXELS:
        raise UserError(
            f"sizes lists whole numbers of pixels, such as [224,180], up to {_MOST_PIXELS}, not {sizes!r:.80}"
        )
    return list(sizes)


def _read_range(sizes: str, limits: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})-([1-9]\d{0,4})", limits)
    if not found or not int(found[1]) <= int(found[2]) <= _MOST_PIXELS:
        raise UserError(f"the range of sizes is smallest-largest in pixels, as in random:128-256, not {sizes!r}")
    return int(found[1]), int(found[2])
