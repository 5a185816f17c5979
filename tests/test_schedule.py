"""Learning rates against torch's schedulers."""

import numpy as np
import pytest
import torch

from spp_cls.schedule import drops_at_milestones, drops_on_plateau


@pytest.mark.parametrize("patience", [0, 1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_plateau_is_that_of_torch(patience: int, seed: int) -> None:
    # Falling with noise, and ties, as errors of a few hundred images have.
    random = np.random.default_rng(seed)
    errors = np.round(90 * np.exp(-np.arange(60) / 15) + random.normal(0, 3, 60)).tolist() + [50.0] * 15
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=patience, threshold=0.0, threshold_mode="abs", min_lr=0.01
    )
    for epoch, error in enumerate(errors):
        scheduler.step(error)
        rate = 0.1 ** drops_on_plateau(errors[: epoch + 1], patience, times=2)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_milestones_are_those_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7])
    for epoch in range(10):
        assert 0.1 ** drops_at_milestones(epoch, [3, 7]) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
