"""The metrics: average precision as the devkit of VOC 2007 defines it and as the exact area, and accuracy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Targets = NDArray[np.int8]


def compute_11_point_precision(scores: Scores, targets: Targets) -> float:
    """Compute the average precision of 11 points, from 0 to 1, as the devkit of VOC 2007 defines it.

    The mean, over the recalls 0, 0.1 to 1, of the highest precision at that recall or a higher one. `targets` are 1, -1
    and, for images that do not count, 0. Of equal scores the image that comes first ranks first, as in the devkit's
    sort. Recalls are compared as whole numbers, while the devkit's 0.3 is larger than 3 of 10. Without a positive image
    it is nan: there is nothing to find.
    """
    counted = targets != 0
    order = np.argsort(-scores[counted], kind="stable")
    is_positive = targets[counted][order] > 0
    found = np.cumsum(is_positive)
    if not is_positive.any():
        return float("nan")
    precision = found / np.arange(1, len(found) + 1)
    # The highest precision at each rank or a later one.
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    first_ranks = [np.argmax(10 * found >= tenth * found[-1]) for tenth in range(11)]
    return float(np.mean([highest[rank] for rank in first_ranks]))


def compute_average_precision(scores: Scores, targets: Targets) -> float:
    """Compute the exact area under precision and recall, as scikit-learn does: equal scores count as one rank.

    `targets` are as above. Without a positive image it is nan.
    """
    from sklearn.metrics import average_precision_score

    counted = targets != 0
    if not (targets > 0).any():
        return float("nan")
    return float(average_precision_score(targets[counted] > 0, scores[counted]))


def compute_class_accuracies(scores: Scores, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the part of each class's images whose highest score is that class's; nan for a class without images."""
    correct = scores.argmax(1) == labels
    counts = np.bincount(labels, minlength=scores.shape[1])
    with np.errstate(invalid="ignore"):
        return np.bincount(labels, weights=correct, minlength=scores.shape[1]) / counts
