"""Losses against PyTorch's and timm's, and formulas."""

import re
from typing import Any

import pytest
import torch
from timm.loss import BinaryCrossEntropy as BinaryOfTimm
from torch.nn import functional as F

from spp_cls.cli.errors import UserError
from spp_cls.training.losses import BinaryCrossEntropy, CrossEntropy, check_loss, create_loss

LABELS = torch.tensor([0, 3, 4, 4])
SHARES = 0.7 * F.one_hot(LABELS, 5).float() + 0.3 * F.one_hot(LABELS.flip(0), 5).float()


def test_cross_entropy_is_that_of_torch_bit_for_bit() -> None:
    logits = torch.randn(4, 5)
    assert torch.equal(CrossEntropy()(logits, LABELS), F.cross_entropy(logits, LABELS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_targets(smoothing: float) -> None:
    logits = torch.randn(4, 5)
    loss = CrossEntropy(smoothing)
    smooth = (1 - smoothing) * SHARES + smoothing / 5
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(logits, SHARES), expected)
    parts = 0.7 * loss(logits, LABELS) + 0.3 * loss(logits, LABELS.flip(0))
    torch.testing.assert_close(loss(logits, SHARES), parts)


@pytest.mark.parametrize("threshold", [None, 0.2, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_that_of_timm(smoothing: float, threshold: float | None) -> None:
    logits = torch.randn(4, 5)
    ours, theirs = BinaryCrossEntropy(smoothing, threshold), BinaryOfTimm(smoothing, threshold)
    torch.testing.assert_close(ours(logits, LABELS), theirs(logits, LABELS))
    # timm smooths mixed targets before.
    smooth = (1 - smoothing) * SHARES + smoothing / 5
    torch.testing.assert_close(ours(logits, SHARES), theirs(logits, smooth))
    assert ours(logits.bfloat16(), LABELS).dtype == torch.float32


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "spp_cls.training.losses.CrossEntropy", "label_smoothing": 1},
            "loss.label_smoothing is a number",
        ),
        ({"_target_": "spp_cls.training.losses.CrossEntropy", "smoothing": 0.1}, "did you mean label_smoothing?"),
        (
            {"_target_": "spp_cls.training.losses.BinaryCrossEntropy", "threshold": -1},
            "loss.threshold is a number from",
        ),
        ({"_target_": "builtins.len"}, "loss: "),
        ({"_target_": f"{__name__}.no_loss"}, "3 cannot be called"),
        ({"_target_": "torch.nn.MSELoss"}, "loss: RuntimeError: The size of tensor a"),
        ({"_target_": f"{__name__}.not_reduced"}, "a loss returns a tensor of one number, not tensor"),
    ],
)
def test_mistakes(node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        check_loss(create_loss(node), 3, torch.device("cpu"), takes_shares=False)
    assert "\n" not in str(error.value)


def test_a_loss_of_labels_alone_is_refused_where_images_are_mixed() -> None:
    loss = create_loss({"_target_": "torch.nn.MultiMarginLoss"})
    check_loss(loss, 3, torch.device("cpu"), takes_shares=False)
    with pytest.raises(UserError, match=r"^loss: RuntimeError: "):
        check_loss(loss, 3, torch.device("cpu"), takes_shares=True)


@pytest.mark.parametrize("takes_shares", [False, True])
def test_a_loss_with_weights_of_the_classes(takes_shares: bool) -> None:
    def weigh(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets, torch.arange(1.0, 11.0))

    check_loss(weigh, 10, torch.device("cpu"), takes_shares)
    with pytest.raises(UserError, match="weight tensor"):
        check_loss(weigh, 4, torch.device("cpu"), takes_shares)


def no_loss() -> int:
    return 3


def not_reduced() -> Any:
    return lambda logits, targets: F.cross_entropy(logits, targets, reduction="none")
