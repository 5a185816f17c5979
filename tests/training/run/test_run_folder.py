"""What a run folder may be called, and what a run in it is resumed with."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from spp_cls import UserError
from spp_cls.models.checkpoint import load_checkpoint
from spp_cls.training.run.folder import check_names
from tests.conftest import CLASSES, Command, error_of
from tests.training.run.test_checkpointing import RUN
from tests.training.run.test_overwriting import read_files


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("../x", "runs/../x", "name='../x' is not a folder below runs/; set run_folder to a folder elsewhere"),
        ("a/../../x", "runs/x", "is not a folder below runs/"),
        ("/x", "runs//x", "is not a folder below runs/"),
        ("", "runs/", "name='' is not a folder below runs/"),
        (".", "runs/.", "name='.' is not a folder below runs/"),
        ("a\nb", "runs/a\nb", "has characters that cannot be printed"),
        ("a", "x/a\0b", "run_folder='x/a\\x00b' has characters that cannot be printed"),
        ("a" * 256, "runs/a", "name has a part of 256 bytes, and file systems take 255; shorten it"),
        ("a", "", "run_folder is empty; set it to a folder for the run"),
        ("a", "runs/" + "ü" * 128, "run_folder has a part of 256 bytes"),
    ],
)
def test_names_that_are_refused(name: str, folder: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_names(name, folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_taken() -> None:
    for name, folder in (("a", "runs/a"), ("a/b", "runs/a/b"), ("a", "../x"), ("ü" * 127, "/x"), ("a..b", "runs/a..b")):
        check_names(name, folder)


def test_a_name_is_refused_before_anything_is_made(image_folder: Path, tmp_path: Path, command: Command) -> None:
    for name in ("../x", "a" * 300):
        assert "name" in error_of(command("train.py", *RUN, f"name={name}"))
    # A path of too many parts is found by the system.
    long = "/".join(["a" * 250] * 20)
    assert "File name too long" in error_of(command("train.py", *RUN, f"run_folder={long}"))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_what_is_not_resumed(image_folder: Path, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "runs/small"
    more = ("trainer.max_epochs=2",)
    assert command("train.py", *RUN, *more).returncode == 0
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    line = error_of(command("train.py", *RUN))
    assert line == "error: the run in runs/small is in its epoch 2 already; set trainer.max_epochs to 2 or more"

    # One batch of an epoch, not the whole.
    line = error_of(command("train.py", *RUN, *more, "trainer.limit_train_batches=1"))
    assert "(trainer.limit_train_batches was 1.0, is 1)" in line

    config = (run / "config.yaml").read_text()
    for text in ("- a\n- b\n", "a: [", "\x00", "7", "data: 3", "optimizer: [1]", "${a}", "data: ${nothing}"):
        (run / "config.yaml").write_text(text)
        line = error_of(command("train.py", *RUN, *more))
        is_other = "the run in runs/small was started with other keys" in line
        assert is_other or line.startswith("error: runs/small/config.yaml is not a configuration of train.py (")
    (run / "config.yaml").write_bytes(b"\xff\xfe")
    assert "is not a configuration of train.py" in error_of(command("train.py", *RUN, *more))
    (run / "config.yaml").write_text(config)

    for name in CLASSES:
        shutil.move(image_folder / f"train/{name}/7.jpg", tmp_path / f"{name}.jpg")
    line = error_of(command("train.py", *RUN, *more))
    assert "(there were 24 training images, there are 21)" in line
    assert before == {path: path.read_bytes() for path in before}
    for name in CLASSES:
        shutil.move(tmp_path / f"{name}.jpg", image_folder / f"train/{name}/7.jpg")
    # All as it was: nothing is left to train.
    assert command("train.py", *RUN, *more).returncode == 0
    last = torch.load(run / "last.ckpt")
    torch.save({key: value for key, value in last.items() if key != "train_counts"}, run / "last.ckpt")
    line = error_of(command("train.py", *RUN, *more))
    assert "runs/small/last.ckpt cannot be resumed, as its train_counts is missing or damaged" in line


def test_a_run_resumes_from_its_best_checkpoint_where_the_last_is_missing(
    image_folder: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "runs/small"
    keys = (*RUN, "logger=csv")
    assert command("train.py", *keys).returncode == 0
    (run / "last.ckpt").unlink()
    before = read_files(run)
    assert {"best.ckpt", "csv/metrics.csv"} <= set(before)
    # Other keys are not trained over it; nor does a run that overwrites and fails cost it.
    assert "was started with other keys (optimizer.lr was" in error_of(command("train.py", *keys, "optimizer.lr=0.5"))
    failing = ("overwrite=true", "optimizer.lr=1e30", "trainer.log_every_n_steps=1")
    assert "is not finite" in error_of(command("train.py", *keys, *failing))
    assert before.items() <= read_files(run).items()
    resumed = command("train.py", *keys, "trainer.max_epochs=3")
    assert resumed.returncode == 0, resumed.stderr
    with (run / "csv/metrics.csv").open() as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row["epoch"]]
    assert [float(epoch) for epoch in epochs] == [0, 1, 2]
    assert load_checkpoint(run / "last.ckpt")["epoch"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches is a whole number above 0 or a number above 0"),
        ("trainer.limit_val_batches=0.1", "trainer.limit_val_batches=0.1 of 2 batches is none; set a number of"),
        ("trainer.limit_train_batches=0.01", "trainer.limit_train_batches=0.01 of 3 batches is none"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches is a whole number above 0 or a number above 0"),
        ("trainer.max_epochs=0", "trainer.max_epochs is a whole number from 1, not 0"),
    ],
)
def test_runs_that_would_train_or_validate_on_nothing(
    override: str, message: str, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    assert message in error_of(command("train.py", *RUN, override))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("limit", "batches"), [("5", 5), ("0.9", 5), ("1", 1)])
def test_a_limit_that_leaves_half_a_step_is_refused(
    limit: str, batches: int, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    # Six batches of four images in an epoch.
    keys = ("trainer.accumulate_grad_batches=2", f"trainer.limit_train_batches={limit}")
    assert error_of(command("train.py", *RUN, *keys)) == (
        f"error: trainer.limit_train_batches={limit} leaves {batches} batches, and a step accumulates 2; set a "
        f"multiple of trainer.accumulate_grad_batches, such as {batches + 1}"
    )
    assert not (tmp_path / "runs").exists()
