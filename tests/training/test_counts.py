"""Counts against loops."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spp_cls.models.head import find_best_classes
from spp_cls.training.counts import Counts


@pytest.mark.parametrize("classes", [3, 40])
def test_counts_and_loss_over_batches(classes: int) -> None:
    scores, labels = torch.randn(50, classes), torch.randint(classes, (50,))
    counts = Counts()
    for part in (slice(0, 20), slice(20, 21), slice(21, 50)):
        counts.update(scores[part], labels[part])
    top1 = top5 = 0
    for row, label in zip(scores.numpy(), labels.tolist(), strict=True):
        order = np.argsort(-row)
        top1 += order[0] == label
        top5 += label in order[:5]
    metrics = counts.compute()
    assert metrics == counts.compute_local()
    assert metrics["top1_error"] == 100 * (50 - top1) / 50
    assert metrics["top5_error"] == 100 * (50 - top5) / 50
    assert metrics["images"] == 50
    # A sum of 50 float32 values, batch by batch.
    assert metrics["loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)
    counts.reset()
    assert counts.compute() == counts.compute_local() == {}


def test_counts_go_on_from_states_of_several_processes() -> None:
    scores, labels = torch.randn(30, 7), torch.randint(7, (30,))
    whole, parts = Counts(), [Counts(), Counts()]
    whole.update(scores, labels)
    for part, counts in zip((slice(0, 20), slice(20, 30)), parts, strict=True):
        counts.update(scores[part], labels[part])
    resumed = Counts()
    resumed.load_state_dicts([counts.state_dict() for counts in parts], torch.device("cpu"))
    assert resumed.compute() == pytest.approx(whole.compute(), rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 9), (9,)])
def test_best_classes(shape: tuple[int, ...]) -> None:
    scores = torch.randn(shape)
    order = np.argsort(-scores.numpy(), axis=-1)[..., :5]
    values, classes = find_best_classes(scores)
    np.testing.assert_array_equal(classes, order)
    np.testing.assert_array_equal(values, np.take_along_axis(scores.numpy(), order, -1))
    assert find_best_classes(scores, 2)[1].shape[-1] == 2
