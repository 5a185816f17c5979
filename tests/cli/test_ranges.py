"""Values of another type or range: each is refused by a line that names its key, before anything is written."""

import runpy
from pathlib import Path

import pytest

from spp_cls.cli.command import compose_checked, read_keys
from spp_cls.cli.errors import UserError
from tests.conftest import REPOSITORY

CONF = REPOSITORY / "conf"
BUILD = runpy.run_path(str(REPOSITORY / "train.py"))["build"]

REFUSED = {
    "sizes": ("null", "7", "many", "[]", "[64.5]", "[0]", "[100000]"),
    "model.levels": ("null", "7", "many", "[]", "[0]", "[100000]"),
    "model.mean": ("7", "grey", "[1,2]"),
    "model.std": ("0", "[1,1,0]"),
    "model.drop_rate": ("2", "-0.1", "1.0"),
    "model.input_size": ("64.5", "0", "-3", "100000", "1e20"),
    "model.width": ("0", "-1", "1e20", "null"),
    "schedule.epochs": ("null", "7", "late", "[-1]", "[3,2]"),
    "schedule.factor": ("0", "-1", "2"),
    "schedule.patience": ("-1", "0.5"),
    "optimizer.lr": ("-1", "fast", "null"),
    "optimizer.momentum": ("-1",),
    "optimizer.weight_decay": ("-1",),
    "augmentation.pca_std": ("-0.1", "null"),
    "ema_decay": ("2", "0", "-1", "1.0"),
    "seed": ("1e20", "-1", "0.5", "null"),
    "trainer.max_epochs": ("1.5", "0", "-1", "null"),
    "trainer.accumulate_grad_batches": ("0", "-1", "0.5"),
    "trainer.log_every_n_steps": ("0", "-1"),
    "trainer.limit_train_batches": ("0", "-1", "some", "null"),
    "trainer.limit_val_batches": ("0", "0.0", "-1"),
    "trainer.gradient_clip_val": ("0", "-1"),
    "trainer.devices": ("123456789012345678901234567890", "[5000]"),
    "trainer.strategy": ("ddp_spawn", "ddp_fork", "ddp_notebook", "single_device"),
    "trainer.num_nodes": ("0", "1e9"),
    "trainer.precision": ("64-true", "bf16-true", "half", "8"),
    "checkpoint.every_minutes": ("0", "-1", "soon"),
    "checkpoint.every_steps": ("0", "-1", "abc", "2.5"),
    "data.batch_size": ("0", "-1", "2.5", "null"),
    "data.num_workers": ("100000", "-1", "all", "1.5"),
    "data.timeout": ("-1", "1e300", "null"),
    "data.cache": ("disk", "null"),
    "compile": ("maybe", "3", "null"),
}
# Of keys that are not of every configuration.
MORE = {"schedule.epochs": ["schedule=milestones"], "schedule.patience": ["schedule=plateau"]}


@pytest.mark.parametrize("key", REFUSED)
def test_values_that_are_refused(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in REFUSED[key]:
        with pytest.raises(UserError) as caught:
            BUILD(read_keys(compose_checked(CONF, "train", [*MORE.get(key, []), f"{key}={value}"])))
        line = str(caught.value)
        # An optimizer speaks for itself.
        assert key in line or (key.startswith("optimizer.") and line.startswith("optimizer: Invalid ")), (value, line)
        assert "\n" not in line
    assert not list(tmp_path.iterdir())
