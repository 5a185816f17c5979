"""The Python examples of the README, run as they stand but for paths and sizes."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY, write_checkpoint

CHANGES = {
    "/data/mine": "images",
    "batch_size=64": "batch_size=8, crop=64, num_workers=0",
    'build_net("zf5", num_classes=len': 'build_net("zf5_tiny", input_size=64, num_classes=len',
    "max_epochs=70": "max_epochs=1, logger=False, enable_checkpointing=False, accelerator='cpu'",
}


@pytest.mark.slow
def test_the_examples_run(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "runs/imagenette/best.ckpt")
    text = (REPOSITORY / "README.md").read_text()
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    networks, features, trainer = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {"pixels": np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)}
    exec(networks, names)
    assert names["maps"].shape == (1, 512, 31, 41)
    assert names["logits"].shape == (2, 10)
    exec(features, names)
    shapes = {vector.shape for vector in names["features"].values()}
    assert (len(names["features"]), shapes) == (96, {(1, 64 * 50)})
    exec(trainer, names)
    assert names["trainer"].global_step == 3
