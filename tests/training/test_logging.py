"""Loggers: what they get, what is kept when a run resumes, and those from outside."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger

import spp_cls
from spp_cls.cli.errors import UserError
from spp_cls.data import ImageNetDataModule
from spp_cls.training import LitClassifier, create_callbacks, create_loggers
from spp_cls.training.loggers import CSVLogger
from spp_cls.training.logging import draw_filters
from tests.conftest import Command

RUN = (
    "data=imagefolder", "data.root=images", "data.batch_size=8", "data.num_workers=0", "model.input_size=64",
    "model.hidden=[16,16]",
    "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "name=small", "logger=csv", "optimizer.lr=1e-4",
)  # fmt: skip
METRICS = {
    "val/loss", "val/top1_error", "val/top5_error", "train/loss", "train/top1_error", "train/top5_error",
    "train/undecodable_images", "learning_rate", "image_size", "images_per_second", "epoch",
}  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def comparable(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def test_the_csv_file_of_a_run_that_resumes(image_folder: Path, tmp_path: Path, command: Command) -> None:
    whole = tmp_path / "runs/whole/csv/metrics.csv"
    assert command("train.py", *RUN, "trainer.max_epochs=2", "name=whole").returncode == 0
    rows = read(whole)
    # Three steps an epoch, each with its loss; then the metrics of the epoch.
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "3", "4", "5", "6"]
    assert [set(row) == {"step", "train/step_loss"} for row in rows] == [True, True, True, False] * 2
    assert set(rows[3]) == set(rows[7]) == METRICS | {"step"}
    assert [row["epoch"] for row in rows if "epoch" in row] == ["0.0", "1.0"]

    result = command("train.py", *RUN, "trainer.max_epochs=1")
    path = tmp_path / "runs/small/csv/metrics.csv"
    assert "Metrics:     runs/small/csv/metrics.csv" in result.stdout
    assert "tensorboard" not in result.stdout
    first = read(path)
    # Logged after the checkpoint, by a process that was killed.
    with path.open("a") as file:
        file.write("9" + "," * (len(first[3]) - 1) + "1.5\n")
    assert command("train.py", *RUN, "trainer.max_epochs=2").returncode == 0
    assert comparable(read(path)) == comparable(rows)
    assert read(path)[:3] == first[:3]
    # Nothing is left to do.
    assert command("train.py", *RUN, "trainer.max_epochs=2").returncode == 0
    assert comparable(read(path)) == comparable(rows)
    assert command("train.py", *RUN, "trainer.max_epochs=1", "overwrite=true").returncode == 0
    assert comparable(read(path)) == comparable(first)
    assert list(path.parent.iterdir()) == [path]


def test_a_trainer_of_ones_own_that_logs_no_steps_and_saves_after_validation(
    shared_image_folder: Path, tmp_path: Path
) -> None:
    def fit(epochs: int, checkpoint: Path | None = None) -> list[dict[str, str]]:
        logger = CSVLogger(tmp_path / f"{epochs}.csv")
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, logger=logger, log_every_n_steps=0,
            callbacks=[*create_callbacks(), ModelCheckpoint(tmp_path, "end", save_on_train_epoch_end=False)],
            enable_progress_bar=True, enable_model_summary=False, limit_train_batches=1, limit_val_batches=1,
        )  # fmt: skip
        data = ImageNetDataModule("imagefolder", str(shared_image_folder), 4, 0, crop=48)
        module = LitClassifier(spp_cls.build_net("zf5_tiny", num_classes=3, input_size=48))
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return read(tmp_path / f"{epochs}.csv")

    assert [set(row) for row in fit(1)] == [METRICS | {"step"}]
    # The checkpoint has the metrics of the validation, and not those of the epoch.
    assert [row["epoch"] for row in fit(2, tmp_path / "end.ckpt")][-1] == "1.0"


def test_columns_of_rows_with_other_keys(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "csv/metrics.csv")
    logger.save()
    assert not (tmp_path / "csv").exists()
    logger.log_metrics({"a": 0.1}, 0)
    logger.save()
    logger.log_metrics({"b": 1 / 3}, 1)
    logger.finalize("success")
    assert (tmp_path / "csv/metrics.csv").read_text().splitlines() == ["step,a,b", "0,0.1,", f"1,,{1 / 3}"]
    logger = CSVLogger(tmp_path / "csv/metrics.csv", resume_step=1)
    logger.log_metrics({"a": 2}, 1)
    logger.save()
    assert (tmp_path / "csv/metrics.csv").read_text().splitlines() == ["step,a,b", "0,0.1,", "1,2,"]


class MemoryLogger(Logger):
    """A logger from outside the package, which also takes pictures."""

    made: "list[MemoryLogger]" = []  # noqa: RUF012
    name = "memory"
    version = 0

    def __init__(self, project: str, resume_step: int = -1) -> None:
        super().__init__()
        self.project = project
        self.resume_step = resume_step
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.pictures: list[str] = []
        self.made.append(self)

    @property
    def experiment(self) -> "MemoryLogger":
        return self

    def add_image(self, tag: str, image: Any, step: int) -> None:
        self.pictures.append(tag)

    def log_metrics(self, *, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        assert step is not None
        self.rows.append((step, metrics))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


class PlainLogger(MemoryLogger):
    def __init__(self) -> None:
        super().__init__("plain")


def test_all_loggers_get_everything(image_folder: Path, tmp_path: Path) -> None:
    import pytorch_lightning as pl

    from spp_cls.data.datamodule import ImageNetDataModule
    from spp_cls.training import LitClassifier, create_callbacks

    nodes = {
        "mine": {"_target_": f"{__name__}.MemoryLogger", "project": "x"},
        "plain": {"_target_": f"{__name__}.PlainLogger"},
        "csv": {"_target_": "spp_cls.training.loggers.create_csv_logger", "folder": str(tmp_path / "run")},
    }
    loggers: Any = create_loggers(nodes, resume_step=7)
    mine, plain, table = loggers
    assert (mine.project, mine.resume_step, plain.resume_step) == ("x", 7, -1)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=loggers, callbacks=create_callbacks(), enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, log_every_n_steps=2,
        accumulate_grad_batches=2,
    )  # fmt: skip
    net = spp_cls.build_net("zf5_tiny", num_classes=3, input_size=64)
    trainer.fit(LitClassifier(net), ImageNetDataModule("imagefolder", str(image_folder), 4, 0, crop=64))
    # Six steps of two batches.
    assert [step for step, _ in mine.rows] == [1, 3, 5, 6]
    assert set(mine.rows[3][1]) == METRICS
    assert mine.rows == plain.rows == [(int(row.pop("step")), numbers(row)) for row in read(table.path)]
    assert mine.pictures == ["first_conv/filters"]
    assert trainer.callback_metrics["val/top1_error"] == pytest.approx(mine.rows[3][1]["val/top1_error"])


def numbers(row: dict[str, str]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items()}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "spp_cls.training.Plateau"}, r"logger.mine: Plateau\(.*\) is not a logger of Lightning"),
        ({"_target_": f"{__name__}.MemoryLogger"}, r"logger.mine: .*missing 1 required positional argument: 'project'"),
        ({"_target_": f"{__name__}.MemoryLogger", "projet": "x"}, r"has no parameter projet; did you mean"),
        ({"_target_": "nowhere.Logger"}, r"logger.mine._target_=nowhere.Logger cannot be imported"),
    ],
)
def test_mistakes(node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_loggers({"mine": node})


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_draw_filters(channels: int) -> None:
    picture = draw_filters(spp_cls.build_net("zf5_tiny", in_chans=channels, mean=(0.0,) * channels))
    # 24 filters of 7 x 7, twelve a row, one pixel between.
    assert picture.shape == (3, 2 * 8 + 1, 12 * 8 + 1)
    assert (picture.min(), picture.max()) == (0, 1)
