"""Multi-size training: the image size of an epoch, section 2.3 of the paper."""

from collections.abc import Sequence

from spp_cls.data.randomness import Purpose, generator
from spp_cls.errors import UserError

# The paper's second size for networks trained on crops of 224.
_SMALL = 180 / 224


def size_of_epoch(sizes: str | Sequence[int], epoch: int, crop: int, seed: int) -> int:
    """Return the side in pixels to which the training crops of an epoch are resized: a pure function.

    `single` is the crop's own size, `alternate` that and 180/224 of it in turn (Table 2c), `random` one size an
    epoch, uniform between those two (section 3.1.2). A list of sizes is gone through in turn.

    Raises:
        UserError: anything else.
    """
    possible = possible_sizes(sizes, crop)
    if sizes == "random":
        return int(generator(Purpose.IMAGE_SIZE, seed, epoch).integers(possible[0], possible[-1], endpoint=True))
    return possible[epoch % len(possible)]


def possible_sizes(sizes: str | Sequence[int], crop: int) -> list[int]:
    """Return every size that an epoch can have, in the order of the epochs; for `random`, in rising order.

    Raises:
        UserError: sizes is none of the words and no list of whole numbers.
    """
    small = round(crop * _SMALL)
    if isinstance(sizes, str):
        words = {"single": [crop], "alternate": [crop, small], "random": list(range(small, crop + 1))}
        if sizes not in words:
            raise UserError(f"sizes is single, alternate, random or a list such as [224,180], not {sizes!r}")
        return words[sizes]
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise UserError(f"sizes lists whole numbers of pixels, such as [224,180], not {list(sizes)}")
    return list(sizes)
