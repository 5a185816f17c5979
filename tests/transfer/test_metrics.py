"""Average precision against values worked out by hand, the devkit's own loop, and scikit-learn."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from spp_cls.transfer.metrics import (
    compute_11_point_precision,
    compute_average_precision,
    compute_class_accuracies,
)


def as_arrays(scores: list[float], targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores), np.array(targets, np.int8)


def average_by_loops(scores: list[float], targets: list[int]) -> float:
    """The devkit's VOCevalcls, ranks in the order of a stable sort, recalls as fractions."""
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    positives = sum(target > 0 for target in targets)
    points = []
    tp = fp = 0
    for i in ranked:
        tp += targets[i] > 0
        fp += targets[i] < 0
        if tp + fp:
            points.append((Fraction(tp, positives), tp / (tp + fp)))
    tenths = [Fraction(t, 10) for t in range(11)]
    return sum(max((p for recall, p in points if recall >= t), default=0.0) for t in tenths) / 11


def test_by_hand() -> None:
    # Ranked: yes, no, yes, no. Precision 1, 1/2, 2/3, 1/2 at recall 1/2, 1/2, 1, 1.
    scores, targets = as_arrays([0.9, 0.8, 0.7, 0.6], [1, -1, 1, -1])
    # Recalls 0 to 0.5: 1; 0.6 to 1: 2/3.
    assert compute_11_point_precision(scores, targets) == pytest.approx((6 + 5 * 2 / 3) / 11)
    # The area: half of the positives at 1, half at 2/3.
    assert compute_average_precision(scores, targets) == pytest.approx((1 + 2 / 3) / 2)


def test_every_rank_right_and_every_rank_wrong() -> None:
    best = as_arrays([4, 3, 2, 1], [1, 1, -1, -1])
    worst = as_arrays([4, 3, 2, 1], [-1, -1, 1, 1])
    assert compute_11_point_precision(*best) == compute_average_precision(*best) == 1
    # One of three, then two of four: the highest precision is 1/2 at every recall.
    assert compute_11_point_precision(*worst) == pytest.approx(1 / 2)
    assert compute_average_precision(*worst) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_difficult_images_do_not_count() -> None:
    scores, targets = as_arrays([0.9, 0.85, 0.8, 0.7, 0.65], [0, 1, -1, 0, 1])
    without = as_arrays([0.85, 0.8, 0.65], [1, -1, 1])
    assert compute_11_point_precision(scores, targets) == compute_11_point_precision(*without)
    assert compute_average_precision(scores, targets) == compute_average_precision(*without)
    assert compute_11_point_precision(scores, targets) == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_of_equal_scores_the_first_image_ranks_first() -> None:
    assert compute_11_point_precision(*as_arrays([1, 1], [1, -1])) == 1
    assert compute_11_point_precision(*as_arrays([1, 1], [-1, 1])) == 0.5
    # The area takes equal scores as one rank, in whatever order.
    assert compute_average_precision(*as_arrays([1, 1], [1, -1])) == 0.5
    assert compute_average_precision(*as_arrays([1, 1], [-1, 1])) == 0.5


def test_without_a_positive_there_is_no_precision() -> None:
    assert np.isnan(compute_11_point_precision(*as_arrays([1, 2], [-1, 0])))
    assert np.isnan(compute_average_precision(*as_arrays([1, 2], [-1, -1])))


def test_recalls_are_exact() -> None:
    # Three of ten positives is recall 0.3, which 3 * 0.1 in floating point is not.
    targets = [1, 1, 1, *[-1] * 27, *[1] * 7]
    scores = [float(-i) for i in range(len(targets))]
    found = compute_11_point_precision(*as_arrays(scores, targets))
    assert found == pytest.approx((4 * 1 + 7 * 10 / 37) / 11)


def test_random_scores_with_ties() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        count = int(random.integers(2, 40))
        scores = random.integers(0, 12, count) / 4
        targets = random.choice([1, -1, 0], count, p=[0.4, 0.4, 0.2]).astype(np.int8)
        if not (targets > 0).any():
            continue
        expected = average_by_loops(scores.tolist(), targets.tolist())
        assert compute_11_point_precision(scores, targets) == pytest.approx(expected, abs=1e-12)
        counted = targets != 0
        exact = average_precision_score(targets[counted] > 0, scores[counted])
        assert compute_average_precision(scores, targets) == pytest.approx(exact, abs=1e-12)


def test_accuracy_of_classes() -> None:
    scores = np.array([[3, 1, 0], [0, 2, 1], [5, 4, 0], [1, 9, 2]])
    found = compute_class_accuracies(scores, np.array([0, 0, 0, 1]))
    assert found[:2].tolist() == pytest.approx([2 / 3, 1])
    assert np.isnan(found[2])
