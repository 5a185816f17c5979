"""Random numbers as a function of (seed, epoch, index), the same for any number of workers and processes."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a generator is for; generators of different purposes are independent."""

    ORDER = 1
    IMAGE_SIZE = 2
    POSITION = 3
    FLIP = 4
    COLOUR = 5
    REPLACEMENT = 6
    DROPOUT = 7
    AUGMENTATION = 8


def create_generator(purpose: Purpose, seed: int, epoch: int, index: int = 0) -> np.random.Generator:
    """Return the generator for one image of an epoch, or for the epoch as a whole."""
    return np.random.default_rng([seed, epoch, index, purpose])
