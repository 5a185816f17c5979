"""Multi-size training: the image size of an epoch, section 2.3 of the paper."""

from collections.abc import Sequence

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import has_type
from spp_cls.data.transforms.randomness import Purpose, create_generator

# The paper's second size for networks trained on crops of 224.
_SMALL = 180 / 224


def choose_size(sizes: str | Sequence[int], epoch: int, crop: int, seed: int) -> int:
    """Return the side in pixels to which the training crops of an epoch are resized: a pure function.

    `single` is the size of the crop, `alternate` that and 180/224 of it in turn (Table 2c), `random` one size per
    epoch, uniform between those two (section 3.1.2). The sizes of a list take turns.

    Raises:
        UserError: if `sizes` is anything else.
    """
    possible = list_sizes(sizes, crop)
    if sizes == "random":
        return int(create_generator(Purpose.IMAGE_SIZE, seed, epoch).integers(possible[0], possible[-1], endpoint=True))
    return possible[epoch % len(possible)]


def list_sizes(sizes: str | Sequence[int], crop: int) -> list[int]:
    """Return all sizes that an epoch can have, in the order of the epochs; for `random`, in rising order.

    Raises:
        UserError: if `sizes` is not one of the words or a list of whole numbers.
    """
    small = round(crop * _SMALL)
    if isinstance(sizes, str):
        words = {"single": [crop], "alternate": [crop, small], "random": list(range(small, crop + 1))}
        if sizes not in words:
            raise UserError(f"sizes is single, alternate, random or a list such as [224,180], not {sizes!r}")
        return words[sizes]
    if not has_type(sizes, list[int]) or not sizes or min(sizes) < 1:
        raise UserError(f"sizes lists whole numbers of pixels, such as [224,180], not {sizes!r}")
    return list(sizes)
