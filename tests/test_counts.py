"""Counts against loops."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spp_cls.counts import Counts


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
    figures = counts.over_processes()
    assert figures == counts.so_far()
    assert figures["top1_error"] == 100 * (50 - top1) / 50
    assert figures["top5_error"] == 100 * (50 - top5) / 50
    assert figures["images"] == 50
    # A sum of 50 float32 values, batch by batch.
    assert figures["loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)
    counts.reset()
    assert counts.so_far() == {}
