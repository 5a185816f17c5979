"""overwrite=true: at every moment the old results are whole, or the new ones."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spp_cls import UserError
from spp_cls.models.checkpoint import load_checkpoint
from spp_cls.training.run import overwriting
from spp_cls.training.run.folder import RunFolder
from spp_cls.training.run.overwriting import Overwriting
from tests.conftest import Command, error_of
from tests.training.run.test_checkpointing import RUN
from tests.training.run.test_resume import Runs, runs  # noqa: F401 (a fixture)

OLD = {"last.ckpt": "old", "best.ckpt": "old", "config.yaml": "old", "tensorboard/a": "old", "csv/metrics.csv": "old"}
# The checkpoint is written last.
NEW = {"config.yaml": "new", "tensorboard/b": "new", "csv/metrics.csv": "new", "last.ckpt": "new"}
LOGS = ("tensorboard", "csv")


def write_files(folder: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read_files(folder: Path) -> dict[str, Any]:
    """Contents of all files; the run's own lock is none of its results."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def as_bytes(contents: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in contents.items()}


def list_logs(folder: Path) -> list[Path]:
    return [path for name in LOGS for path in (folder / name).rglob("*") if path.is_file()]


def begin(folder: Path) -> Overwriting:
    started = Overwriting(folder)
    started.begin((folder / "last.ckpt", folder / "best.ckpt"), list_logs(folder))
    return started


def write_new(started: Overwriting, *names: str) -> None:
    for name in names:
        path = started.folder / name
        # Event files have names of their own.
        started.find_place(path).write_text("new") if name != "tensorboard/b" else path.write_text("new")


def test_old_results_stay_until_the_first_checkpoint(tmp_path: Path) -> None:
    write_files(tmp_path, OLD)
    for names in ((), ("config.yaml",), ("config.yaml", "tensorboard/b", "csv/metrics.csv")):
        started = begin(tmp_path)
        assert started.is_pending
        write_new(started, *names)
        started.finish()
        assert as_bytes(OLD).items() <= read_files(tmp_path).items()
        # A second start that overwrites takes the notes of the first over.
        assert json.loads((tmp_path / ".overwriting.json").read_text())["old"] == [
            name for name in OLD if name != "config.yaml"
        ]
    Overwriting(tmp_path).take_back(list_logs(tmp_path))
    assert read_files(tmp_path) == as_bytes(OLD)


def test_a_change_that_was_cut_anywhere_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    cut = 1

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == cut:
                raise KeyboardInterrupt
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(overwriting.os, "replace", counted(os.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    cuts = 0
    while True:
        cut = cuts + 1
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        write_files(tmp_path / "run", OLD)
        # Those of begin are not counted.
        calls = 100
        started = begin(tmp_path / "run")
        write_new(started, *NEW)
        calls = 0
        try:
            started.finish()
            break
        except KeyboardInterrupt:
            cuts += 1
        calls = 100
        # The next start.
        Overwriting(tmp_path / "run").finish()
        assert read_files(tmp_path / "run") == as_bytes(NEW)
    # Three old files and the notes are removed; three files get their names.
    assert cuts == 7


def test_unfinished_files_of_a_run_in_a_folder_below_stay(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "below"):
        write_files(folder, OLD)
        begin(folder)
    inner = Overwriting(tmp_path / "below")
    write_new(inner, "config.yaml")
    write_new(begin(tmp_path), *NEW)
    Overwriting(tmp_path).finish()
    assert (tmp_path / "below/.first-config.yaml").read_text() == "new"
    write_new(inner, "last.ckpt")
    inner.finish()
    assert (tmp_path / "below/config.yaml").read_text() == "new"


def test_only_files_of_the_loggers_are_overwritten(tmp_path: Path) -> None:
    logs = (
        "csv/metrics.csv", "tensorboard/events.out.tfevents.1.host.2.0", "wandb/offline-run-20260131_235959-a/files/b",
        "mlflow/12/34/metrics/loss",
    )  # fmt: skip
    write_files(tmp_path, dict.fromkeys([*logs, "csv/notes.txt", "wandb/mine.txt", "mlflow/12/meta.yaml", "a.txt"], ""))
    assert {str(path.relative_to(tmp_path)) for path in RunFolder(tmp_path)._list_logs()} == set(logs)


def test_a_folder_without_results_needs_no_notes(tmp_path: Path) -> None:
    started = begin(tmp_path)
    assert not started.is_pending
    assert started.find_place(tmp_path / "last.ckpt") == tmp_path / "last.ckpt"


@pytest.mark.parametrize("notes", ["", "[]", "{}", '{"old": 3}', '{"old": ["../x"]}', '{"old": ["/etc/passwd"]}'])
def test_damaged_notes(notes: str, tmp_path: Path) -> None:
    write_files(tmp_path, OLD | {".first-last.ckpt": "new", ".overwriting.json": notes})
    with pytest.raises(UserError, match=r"\.overwriting\.json is damaged"):
        Overwriting(tmp_path).finish()
    assert as_bytes(OLD).items() <= read_files(tmp_path).items()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.momentum=-1"], "Invalid momentum value"),
        (["optimizer.lr=-1"], "Invalid learning rate"),
        (["checkpoint.every_steps=abc"], "checkpoint.every_steps is a whole number"),
        # Seen only in training.
        (["optimizer.lr=1e30", "trainer.log_every_n_steps=1"], "is not finite"),
    ],
)
def test_a_run_that_fails_before_its_first_checkpoint_costs_no_results(
    overrides: list[str], message: str, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "runs/small"
    csv = "logger=[tensorboard,csv]"
    assert command("train.py", *RUN, csv).returncode == 0
    before = read_files(run)
    assert "csv/metrics.csv" in before
    assert message in error_of(command("train.py", *RUN, csv, "overwrite=true", *overrides))
    assert before.items() <= read_files(run).items()
    # The old run goes on, and nothing of the other is left.
    result = command("train.py", *RUN, csv, "trainer.max_epochs=2")
    assert result.returncode == 0, result.stderr
    assert load_checkpoint(run / "last.ckpt")["global_step"] == 6
    assert not [name for name in read_files(run) if ".first-" in name or "overwriting" in name]
    # One of the first start, one of the last.
    assert len(list(run.glob("tensorboard/events*"))) == 2


def test_a_job_of_slurm_that_was_killed_before_its_first_checkpoint_starts_anew(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = tmp_path / "runs/small/last.ckpt"
    assert command("train.py", *RUN, "trainer.max_epochs=2").returncode == 0
    assert load_checkpoint(last)["global_step"] == 6
    failing = ("overwrite=true", "optimizer.lr=1e30", "trainer.log_every_n_steps=1")
    assert "is not finite" in error_of(command("train.py", *RUN, *failing))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert command("train.py", *RUN, "overwrite=true").returncode == 0
    assert load_checkpoint(last)["global_step"] == 3


@pytest.mark.slow
def test_killed_at_twenty_random_moments(runs: Runs, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    keys = ("data.num_workers=0", "logger=[tensorboard,csv]", "checkpoint.every_steps=3")
    assert runs(tmp_path, *keys) == 0, (tmp_path / "output").read_text()
    old = read_files(run)
    shutil.copytree(run, tmp_path / "old")
    begun = time.perf_counter()
    assert runs(tmp_path, *keys, "overwrite=true", "seed=1", "trainer.max_epochs=1") == 0
    whole = time.perf_counter() - begun
    moments = random.Random(0)
    kept: list[str] = []
    for number in range(20):
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "old", run)
        after = moments.uniform(0.1, 0.9) * whole
        status = runs(tmp_path, *keys, "overwrite=true", f"seed={number + 1}", after=after)
        assert status in (0, -signal.SIGKILL), (tmp_path / "output").read_text()
        kept.append(check_is_whole(run, old))
    print(f"kept at each kill: {', '.join(kept)}")
    assert set(kept) == {"old", "new"}
    # What the last kill left resumes, or is the old run's end.
    assert runs(tmp_path, *keys, *(["seed=20"] if kept[-1] == "new" else [])) == 0, (tmp_path / "output").read_text()


def check_is_whole(run: Path, old: dict[str, bytes]) -> str:
    """Return whose results a folder holds; all of them must be whole."""
    found = read_files(run)
    if ".first-last.ckpt" in found:
        load_checkpoint(run / ".first-last.ckpt")
        return "new"
    if found["last.ckpt"] == old["last.ckpt"]:
        assert old.items() <= found.items()
        return "old"
    load_checkpoint(run / "last.ckpt")
    assert not [name for name, content in old.items() if found.get(name) == content and "hparams" not in name]
    return "new"
