"""The learning rate as a pure function of the epoch, or of the validation errors so far.

A run that is stopped and resumed, at any epoch, has the same rates as one that never stopped.
"""

import math
from collections.abc import Sequence


def drops_on_plateau(errors: Sequence[float], patience: int, times: int) -> int:
    """Return how often the rate has been divided after these validation errors, one an epoch: at most `times`.

    It is divided when more than `patience` epochs in a row have brought no new lowest error. The paper divides by 10
    twice "when the error plateaus" (section 3.1) and gives no patience.
    """
    lowest, waited, drops = math.inf, 0, 0
    for error in errors:
        waited = 0 if error < lowest else waited + 1
        lowest = min(error, lowest)
        if waited > patience:
            drops, waited = drops + 1, 0
    return min(drops, times)


def drops_at_milestones(epoch: int, milestones: Sequence[int]) -> int:
    """Return how many milestones (epochs, counted from 0) have been reached."""
    return sum(epoch >= milestone for milestone in milestones)
