"""A run that is killed or stopped at any moment goes on, bit for bit, as if it had not been."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spp_cls.models.checkpoint import load_checkpoint
from tests.conftest import write_image_folder
from tests.server import Server

# Five steps an epoch, of which each is logged and every second is saved; dropout is on.
RUN = (
    "data=imagefolder", "data.root=images", "data.batch_size=8", "model.input_size=64", "model.hidden=[16,16]",
    "trainer.max_epochs=3", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "optimizer.lr=3e-4",
    "checkpoint.every_steps=2", "run_folder=run", "experiment=paper", "model=zf5_tiny",
)  # fmt: skip
SCHEDULES = {
    "plateau": ("schedule.patience=0",),
    "milestones and average": ("schedule=milestones", "schedule.epochs=[1,2]", "ema_decay=0.9"),
}
KINDS = {
    f"{sizes}, {schedule}, {workers} workers": (f"data.num_workers={workers}", f"sizes={sizes}", *keys)
    for sizes in ("single", "alternate")
    for schedule, keys in SCHEDULES.items()
    for workers in (0, 2)
} | {
    f"recipe, {workers} workers": (
        f"data.num_workers={workers}", "sizes=alternate", "augmentation=mix", "augmentation.mixup_alpha=1.0",
        "schedule=cosine", "schedule.warmup=1", "optimizer=lamb", "loss.label_smoothing=0.1", "ema_decay=0.9",
    )
    for workers in (0, 2)
}  # fmt: skip

# Running statistics, and their average.
NORMS = "batch norm and average, 0 workers"
KINDS[NORMS] = (
    "data.num_workers=0", "sizes=alternate", "schedule.patience=0", "ema_decay=0.9", "model.name=timm/resnetblur18",
    "model.width=1", "model.hidden=[]", "model.levels=[2,1]", "model.interpolation=bicubic",
)  # fmt: skip

STEP = "spp_cls.training.module:LitClassifier.training_step"
VALIDATION = "spp_cls.training.module:LitClassifier.validation_step"
WRITING = "spp_cls.training.run.checkpointing:_read_back"
LOGGING = "spp_cls.training.logging:EpochMetrics.on_train_epoch_end"


class Runs:
    """Runs of train.py on some images, in processes of a server."""

    def __init__(self, images: Path, server: Server) -> None:
        self.images = images
        self.server = server

    def __call__(self, folder: Path, *overrides: str, **options: Any) -> int:
        """Run train.py as Server.start does; return the status."""
        folder.mkdir(exist_ok=True)
        if not (folder / "images").exists():
            (folder / "images").symlink_to(self.images)
        return self.server.start(folder, "train.py", *RUN, *overrides, output=folder / "output", **options)


@pytest.fixture(scope="session")
def runs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(write_image_folder(tmp_path_factory.mktemp("runs") / "images", train=14, val=6), server)


@pytest.fixture(scope="module")
def uninterrupted(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("whole")
            assert runs(made[kind], *KINDS[kind]) == 0, (made[kind] / "output").read_text()
        return made[kind]

    return run


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars as TensorBoard shows them, but for the speed."""
    events = EventAccumulator(str(folder / "run/tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - {"images_per_second"}
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in sorted(tags)}


def plain(tree: Any) -> Any:
    """Make values comparable: tensors as bytes."""
    if isinstance(tree, torch.Tensor):
        return tree.dtype, tuple(tree.shape), tree.contiguous().numpy().tobytes()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    return tree


def assert_same(ours: Path, theirs: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (load_checkpoint(folder / "run" / name) for folder in (ours, theirs))
        for key in ("state_dict", "optimizer_states", "validation_errors", "current_model_state", "averaging_state"):
            assert plain(a.get(key)) == plain(b.get(key)), (name, key)
        assert (a["epoch"], a["global_step"]) == (b["epoch"], b["global_step"])
        # Dropped or counted twice, images would show here.
        assert a["train_counts"] == b["train_counts"]
    assert scalars(ours) == scalars(theirs)


def test_what_an_uninterrupted_run_logs(uninterrupted: Callable[[str], Path]) -> None:
    logged = scalars(uninterrupted("single, plateau, 0 workers"))
    assert [step for step, _ in logged["train/step_loss"]] == list(range(15))
    for tag in ("train/loss", "val/loss", "train/top1_error", "val/top1_error", "learning_rate", "epoch"):
        assert [step for step, _ in logged[tag]] == [5, 10, 15], tag
    assert len({value for _, value in logged["train/step_loss"]}) == 15
    checkpoint = load_checkpoint(uninterrupted("single, plateau, 0 workers") / "run/last.ckpt")
    assert checkpoint["train_counts"][0]["seen"] == 40
    assert checkpoint["global_step"] == 15


@pytest.mark.parametrize(
    ("kind", "strikes"),
    [
        # The so-and-so-many-th call after the start of a step, of a validation batch, of a check of what was written.
        ("single, plateau, 0 workers", [(STEP, 4), (VALIDATION, 2), (WRITING, 3), (STEP, 1), (LOGGING, 1)]),
        pytest.param(
            "alternate, plateau, 2 workers", [(WRITING, 1), (STEP, 8), (VALIDATION, 1)], marks=pytest.mark.slow
        ),
        pytest.param(
            "single, milestones and average, 2 workers",
            [(VALIDATION, 3), (WRITING, 2), (STEP, 5)],
            marks=pytest.mark.slow,
        ),
        # EMA, mixup and CutMix, RandAugment, cosine with a warm-up, inside it and after it.
        pytest.param("recipe, 0 workers", [(STEP, 4), (WRITING, 6), (STEP, 3)], marks=pytest.mark.slow),
        pytest.param("recipe, 2 workers", [(VALIDATION, 1), (STEP, 4), (WRITING, 3)], marks=pytest.mark.slow),
        pytest.param(NORMS, [(STEP, 4), (VALIDATION, 2), (STEP, 3)], marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_as_one_that_was_not(
    kind: str, strikes: list[tuple[str, int]], runs: Runs, uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    for place, call in strikes:
        assert runs(tmp_path, *KINDS[kind], strikes=[(place, call, signal.SIGKILL)]) == -signal.SIGKILL
    assert runs(tmp_path, *KINDS[kind]) == 0, (tmp_path / "output").read_text()
    assert_same(tmp_path, uninterrupted(kind))


@pytest.mark.parametrize(
    ("number", "place", "call", "steps"),
    [
        (signal.SIGTERM, STEP, 4, 4),
        pytest.param(signal.SIGINT, STEP, 10, 10, marks=pytest.mark.slow),
        (signal.SIGUSR1, VALIDATION, 3, 5),
        pytest.param(signal.SIGTERM, WRITING, 3, 5, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, LOGGING, 1, 5, marks=pytest.mark.slow),
    ],
)
def test_signals_save_and_leave_with_a_line(
    number: int, place: str, call: int, steps: int, runs: Runs, uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    kind = "alternate, plateau, 2 workers" if call == 10 else "single, plateau, 0 workers"
    # Without regular checkpoints.
    status = runs(tmp_path, *KINDS[kind], "checkpoint.every_steps=null", strikes=[(place, call, number)])
    printed = (tmp_path / "output").read_text()
    assert "Traceback" not in printed
    if place == WRITING:
        # The third checkpoint is the last of the first epoch, in which the signal came.
        assert load_checkpoint(tmp_path / "run/last.ckpt")["global_step"] == 5
    assert status == 128 + number
    name, epoch = signal.Signals(number).name, (steps - 1) // 5
    assert f"{name}: saving and stopping after this step" in printed
    line = f"Stopped by {name} after step {steps} (epoch {epoch}); run/last.ckpt is saved, and the same command resumes"
    assert line in printed
    assert load_checkpoint(tmp_path / "run/last.ckpt")["global_step"] == steps
    assert runs(tmp_path, *KINDS[kind]) == 0
    assert_same(tmp_path, uninterrupted(kind))


def test_a_second_interrupt_leaves_at_once(runs: Runs, tmp_path: Path) -> None:
    # The first comes in the fourth step, the second as the checkpoint that follows is checked.
    strikes = [(STEP, 4, signal.SIGINT), (WRITING, 1, signal.SIGINT)]
    assert runs(tmp_path, *KINDS["single, plateau, 0 workers"], "checkpoint.every_steps=null", strikes=strikes) == 130
    assert "stopped at once; the last checkpoint is as it was" in (tmp_path / "output").read_text()
    assert not (tmp_path / "run/last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != NORMS])
def test_many_random_moments(
    kind: str, number: int, runs: Runs, uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    stop_at_random_moments(int(os.environ.get("SPP_CLS_STOPS", "1")), kind, number, runs, tmp_path)
    assert_same(tmp_path, uninterrupted(kind))


def stop_at_random_moments(stops: int, kind: str, number: int, runs: Runs, folder: Path) -> None:
    """Stop a run so often, at random moments after it was started, then let it end."""
    moments = random.Random(f"{kind} {number}")
    begun = time.perf_counter()
    assert runs(folder / "timed", *KINDS[kind], "trainer.max_epochs=1") == 0
    # Of one epoch with the start; some come before the first step and some, in validation or in writing.
    whole = time.perf_counter() - begun
    places: list[str] = []
    stopped = 0
    while stopped < stops:
        status = runs(folder, *KINDS[kind], after=moments.uniform(0.3, 0.9) * whole, number=number)
        if status == 0:
            # It was at its end: begin anew, as there is nothing left to stop.
            shutil.rmtree(folder / "run")
            continue
        assert status in (-number, 128 + number), (folder / "output").read_text()
        stopped += 1
        last = folder / "run/last.ckpt"
        step = load_checkpoint(last)["global_step"] if last.exists() else 0
        places.append(f"{step}{' writing' if list(folder.glob('run/.last.ckpt-*')) else ''}")
    print(f"{kind}, {signal.Signals(number).name}: steps saved at each stop: {', '.join(places)}")
    assert runs(folder, *KINDS[kind]) == 0, (folder / "output").read_text()
