"""Random numbers as a function of (seed, epoch, index), the same for any number of workers and processes."""

import random as python_random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


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
    MIXING = 9
    SPLIT = 10


def create_generator(purpose: Purpose, seed: int, epoch: int, index: int = 0) -> np.random.Generator:
    """Return the generator for one image of an epoch, or for the epoch as a whole."""
    return np.random.default_rng([seed, epoch, index, purpose])


@contextmanager
def seed_libraries(random: np.random.Generator) -> Iterator[None]:
    """Seed the generators that libraries draw from, Python's, NumPy's and torch's, and put them back after the block.

    So what torchvision or timm do at random in the block is a function of `random`.
    """
    states = python_random.getstate(), np.random.get_state(), torch.random.default_generator.get_state()
    seeds = random.integers(2**32, size=3).tolist()
    try:
        python_random.seed(seeds[0])
        np.random.seed(seeds[1])
        # That of the CPU alone, which takes no time where there is a GPU.
        torch.random.default_generator.manual_seed(seeds[2])
        yield
    finally:
        python_random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.default_generator.set_state(states[2])
