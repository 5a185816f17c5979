"""What `train.py` does when nothing else is said."""

from pathlib import Path

import pytest
import torch

from tests.conftest import run_process


@pytest.mark.slow
def test_the_demo_learns(tmp_path: Path) -> None:
    result = run_process(tmp_path, "train.py")
    assert result.returncode == 0, result.stderr
    errors = torch.load(tmp_path / "runs/demo-zf5-spp/best.ckpt", weights_only=True)["validation_errors"]
    # Chance is 90 %.
    assert min(errors) < 15
