"""Checkpoints are whole or not there; a run that cannot be right stops; results are not overwritten unawares."""

import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn

from spp_cls.models.checkpoint import load_checkpoint
from spp_cls.training.run import checkpointing
from spp_cls.training.run.checkpointing import AtomicCheckpoints, Checkpointing
from spp_cls.training.run.folder import RunFolder
from tests.conftest import Command, error_of

RUN = (
    "data=imagefolder", "data.root=images", "data.batch_size=8", "data.num_workers=0", "model.input_size=64",
    "model.hidden=[16,16]",
    "sizes=single", "name=small", "trainer.log_every_n_steps=2", "trainer.max_epochs=1",
)  # fmt: skip


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    path.write_bytes(content)


def full_disk(descriptor: int) -> None:
    """Refuse to write checkpoints to the disk."""
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".ckpt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("trouble", ["damaged", "full", "not plain"])
def test_the_earlier_checkpoint_stays_until_the_new_one_is_read_back(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpoints()
    io.save_checkpoint({"weights": torch.arange(10000)}, path)
    before = path.read_bytes()
    new: dict[str, Any] = {"weights": torch.arange(20000)}
    read_back = checkpointing._read_back
    if trouble == "full":
        monkeypatch.setattr(os, "fsync", full_disk)
    elif trouble == "damaged":

        def damage_first(unfinished: Path) -> None:
            damage(unfinished)
            read_back(unfinished)

        monkeypatch.setattr(checkpointing, "_read_back", damage_first)
    else:
        new["path"] = Path("/")
    message = "No space left" if trouble == "full" else "cannot be read back"
    with pytest.raises(OSError, match=message) as caught:
        io.save_checkpoint(new, path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]
    monkeypatch.undo()
    io.save_checkpoint({"weights": torch.arange(20000)}, path)
    assert torch.equal(torch.load(path)["weights"], torch.arange(20000))


def test_a_disk_that_fills_up_and_is_cleared(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("train.py", *RUN).returncode == 0
    last = tmp_path / "runs/small/last.ckpt"
    before = last.read_bytes()
    # Three steps an epoch: the disk is full at the fifth, in the second epoch.
    more = ("trainer.max_epochs=3", "checkpoint.every_steps=5")
    monkeypatch.setattr(os, "fsync", full_disk)
    line = error_of(command("train.py", *RUN, *more))
    assert line.startswith("error: cannot write runs/small/last.ckpt: No space left on device; free some space")
    assert last.read_bytes() == before
    assert [path.name for path in last.parent.glob(".*")] == [".lock"]
    monkeypatch.undo()
    result = command("train.py", *RUN, *more)
    assert result.returncode == 0, result.stderr
    assert "Epoch 0:" not in result.stdout
    assert load_checkpoint(last)["global_step"] == 9


def test_weights_that_are_not_finite_are_not_saved(image_folder: Path, tmp_path: Path, command: Command) -> None:
    assert command("train.py", *RUN).returncode == 0
    last = tmp_path / "runs/small/last.ckpt"
    checkpoint = load_checkpoint(last)
    # The loss of the next step is finite, the weights after it are not.
    checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"].fill_(float("inf"))
    torch.save(checkpoint, last)
    before = last.read_bytes()
    line = error_of(command("train.py", *RUN, "trainer.max_epochs=3", "checkpoint.every_steps=1"))
    assert line == (
        "error: a weight after step 4 (epoch 1) is not finite; set a smaller optimizer.lr or a "
        "trainer.gradient_clip_val; the last good checkpoint: runs/small/last.ckpt (step 3)"
    )
    assert last.read_bytes() == before


def test_the_step_of_the_first_loss_that_is_not_finite_is_named(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spp_cls.training import losses

    cross_entropy = losses.F.cross_entropy
    calls = 0

    def fails_once(logits: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal calls
        # Before the run starts, the loss is tried on zeros.
        calls += logits.requires_grad
        return cross_entropy(logits, *arguments, **keywords) * (float("nan") if calls == 3 else 1)

    monkeypatch.setattr(losses.F, "cross_entropy", fails_once)
    line = error_of(command("train.py", *RUN, "data.batch_size=4", "checkpoint.every_steps=2"))
    # Seen only when the loss is next looked at, after the fourth.
    assert line.startswith("error: the loss of step 3 (epoch 0) is not finite")
    assert line.endswith("the last good checkpoint: runs/small/last.ckpt (step 2)")
    assert load_checkpoint(tmp_path / "runs/small/last.ckpt")["global_step"] == 2


def test_minutes(image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = AtomicCheckpoints.save_checkpoint

    def noted(self: Any, checkpoint: dict[str, Any], *arguments: Any, **keywords: Any) -> None:
        saved.append(checkpoint["global_step"])
        save(self, checkpoint, *arguments, **keywords)

    # A clock that moves on by a minute with each look at it; each step looks once, each checkpoint once.
    minutes = iter(range(1000))
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: 60.0 * next(minutes))
    monkeypatch.setattr(AtomicCheckpoints, "save_checkpoint", noted)
    arguments = ("data.batch_size=2", "checkpoint.every_minutes=4", "trainer.limit_val_batches=1")
    assert command("train.py", *RUN, *arguments).returncode == 0
    # Twelve steps; the last one is saved before validation, as the best and as the end of the epoch.
    assert saved == [4, 8, 12, 12, 12]


def test_results_are_not_overwritten_unless_told(image_folder: Path, tmp_path: Path, command: Command) -> None:
    assert command("train.py", *RUN, "resume=false").returncode == 0
    last = tmp_path / "runs/small/last.ckpt"
    before = last.read_bytes()
    line = error_of(command("train.py", *RUN, "resume=false"))
    assert line == (
        "error: runs/small holds results (last.ckpt, best.ckpt, tensorboard); choose another name=..., resume=true to "
        "resume from them or overwrite=true to remove them"
    )
    assert last.read_bytes() == before
    # A mistake costs no results.
    assert error_of(command("train.py", *RUN, "overwrite=true", "trainer.devices=many")).startswith("error: trainer: ")
    assert last.read_bytes() == before
    # Other keys, with which the run would not resume.
    result = command("train.py", *RUN, "overwrite=true", "seed=5", "data.batch_size=4")
    assert result.returncode == 0, result.stderr
    assert load_checkpoint(last)["global_step"] == 6
    assert len(list((tmp_path / "runs/small/tensorboard").iterdir())) <= 2
    assert not list((tmp_path / "runs/small").rglob(".first-*"))


@pytest.mark.parametrize("key", ["overwrite=true", "resume=false"])
def test_a_job_that_slurm_submits_again_goes_on(
    key: str, image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("train.py", *RUN, key).returncode == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    result = command("train.py", *RUN, key, "trainer.max_epochs=2")
    assert result.returncode == 0, result.stderr
    assert "Epoch 0:" not in result.stdout
    assert load_checkpoint(tmp_path / "runs/small/last.ckpt")["global_step"] == 6


def test_a_signal_in_validation_stops_one_process_at_once_and_several_later(tmp_path: Path) -> None:
    saving = Checkpointing(RunFolder(tmp_path))
    saving._preemption.received = signal.SIGTERM
    trainer: Any = SimpleNamespace(
        world_size=2, is_global_zero=True, global_step=5, current_epoch=0, sanity_checking=False,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
    )  # fmt: skip
    saving.on_validation_batch_end(trainer)
    trainer.world_size = 1
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        saving.on_validation_batch_end(trainer)


@pytest.mark.parametrize("fails", [False, True])
def test_signals_are_given_back(
    fails: bool, image_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fails:
        monkeypatch.setattr(os, "fsync", full_disk)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    assert command("train.py", *RUN).returncode == int(fails)
    assert [signal.getsignal(number) for number in numbers] == before
