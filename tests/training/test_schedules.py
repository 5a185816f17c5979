"""Learning rates against formulas and torch's schedulers, and when they are set."""

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler

import spp_cls
from spp_cls.cli.errors import UserError
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.training import Cosine, LearningRate, Linear, LitClassifier, Milestones, Plateau, Progress, Schedule


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
    schedule = Plateau(patience)
    for epoch, error in enumerate(errors):
        scheduler.step(error)
        factor = schedule(Progress(epoch + 1, 75, tuple(errors[: epoch + 1])))
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        assert factor in (1.0, 0.1, 0.01)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize("epochs", [[3, 7], (), (0, 1)])
def test_rates_of_milestones(epochs: Any) -> None:
    schedule = Milestones(epochs)
    for epoch in range(10):
        passed = len([each for each in epochs if each <= epoch])
        assert schedule(Progress(epoch, 10)) == schedule(Progress(epoch + 0.9, 10)) == 1 / 10**passed
    assert Milestones((2,), factor=0.5)(Progress(2.5, 4)) == 0.5


def test_milestones_at_a_share_of_a_run_are_exact() -> None:
    for percent in range(1, 100):
        schedule = Milestones((percent / 100,))
        for epochs in range(1, 301):
            # A product that is not whole is rounded up, as rates change between epochs only.
            drop = math.ceil(Fraction(percent, 100) * epochs)
            found = [schedule(Progress(epoch, epochs)) for epoch in (drop - 0.01, drop)]
            assert found == [1.0, 0.1], (percent, epochs)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Milestones(), Plateau(warmup=0.1)])
def test_a_share_of_a_run_without_end_is_refused(schedule: Schedule) -> None:
    for epoch in (0.0, 1.5):
        with pytest.raises(UserError, match="needs the number of epochs of the run"):
            schedule(Progress(epoch, -1))


def test_schedules_that_need_no_number_of_epochs() -> None:
    assert [Milestones((2,))(Progress(epoch, -1)) for epoch in (1.5, 2.0)] == [1.0, 0.1]
    assert [Plateau(warmup=2)(Progress(epoch, -1)) for epoch in (0.0, 1.0, 2.0)] == [0.0, 0.5, 1.0]


def rates_of_timm(kind: Any, steps: int, warmup: int, first: float, last: float, **options: Any) -> list[float]:
    """The rates of each step of a run by a scheduler of timm, for a rate of 0.4."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler = kind(
        optimizer, t_initial=steps - warmup, lr_min=0.4 * last, warmup_t=warmup, warmup_lr_init=0.4 * first,
        warmup_prefix=True, t_in_epochs=False, **options,
    )  # fmt: skip
    rates = []
    for step in range(steps):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("warmup", [0, 2, 0.25])
@pytest.mark.parametrize(("first", "last"), [(0.0, 0.0), (0.01, 0.1)])
def test_cosine_and_linear_are_those_of_timm_at_every_step(warmup: float, first: float, last: float) -> None:
    # Eight epochs of seven steps.
    steps = [Progress(step // 7 + step % 7 / 7, 8) for step in range(56)]
    rise = 14 if warmup else 0
    for kind, of_timm, options in ((Cosine, CosineLRScheduler, {}), (Linear, PolyLRScheduler, {"power": 1.0})):
        schedule = kind(last, warmup=warmup, warmup_factor=first)
        expected = rates_of_timm(of_timm, 56, rise, first, last, **options)
        # Of numbers of 64 bits, in another order of operations.
        assert [0.4 * schedule(step) for step in steps] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert rise == 0 or schedule(steps[0]) == first


def test_plateau_and_milestones_after_a_warmup() -> None:
    errors = (9.0, 8.0, 8.0, 8.0, 8.0, 8.0)
    for schedule in (Plateau(0, warmup=3, warmup_factor=0.4), Milestones((0.5,), warmup=3, warmup_factor=0.4)):
        rises = [0.4 + 0.6 * share / 6 for share in range(6)]
        found = [schedule(Progress(epoch / 2, 10, errors[: epoch // 2])) for epoch in range(20)]
        assert found[:6] == pytest.approx(rises)
        if isinstance(schedule, Milestones):
            assert found[6:] == [1.0] * 4 + [0.1] * 10
        else:
            # The third and the fourth epoch brought nothing new.
            assert found[6:] == [0.1] * 2 + [0.01] * 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(final_factor=2), "schedule.final_factor is a number from 0 to 1, not 2"),
        (lambda: Linear(warmup=-1), "schedule.warmup is a number from 0, not -1"),
        (lambda: Plateau(warmup_factor=1.5), "schedule.warmup_factor is a number from 0 to 1, not 1.5"),
        (lambda: Plateau(patience=-1), "schedule.patience is a whole number from 0, not -1"),
        (lambda: Plateau(drops=1.5), "schedule.drops is a whole number from 0, not 1.5"),  # type: ignore[arg-type]
        (lambda: Plateau(factor=0), "schedule.factor is a number above 0 to 1, not 0"),
        (lambda: Milestones([-1, 3]), "schedule.epochs is a list of numbers from 0, not (-1, 3)"),  # type: ignore[arg-type]
        (lambda: Milestones(30), "schedule.epochs is a list of numbers from 0, not 30"),  # type: ignore[arg-type]
        (lambda: Milestones((50, 30)), "schedule.epochs is a list in ascending order, not [50, 30]"),
        (lambda: Milestones((30, 30)), "schedule.epochs is a list in ascending order, not [30, 30]"),
        (lambda: LearningRate(0.1), "schedule: 0.1 cannot be called"),  # type: ignore[arg-type]
        (lambda: LearningRate(lambda _: math.nan).check(9), "at epoch 0 is a number from 0, not nan"),
        (lambda: LearningRate(lambda _: -1).check(9), "at epoch 0 is a number from 0, not -1"),
        (lambda: LearningRate(lambda _: None).check(9), "at epoch 0 is a number from 0, not None"),  # type: ignore[arg-type, return-value]
        (lambda: LearningRate(lambda: 1).check(9), "takes 0 positional arguments but 1 was given"),  # type: ignore[arg-type, misc]
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make()


def cosine(progress: Progress) -> float:
    """Half a wave from 1 to 0, step by step."""
    return (1 + math.cos(math.pi * progress.epoch / progress.epochs)) / 2


class StopHereError(Exception):
    pass


class Watch(pl.Callback):
    """Keep the rates that each step is taken with; save and stop after a number of steps."""

    def __init__(self, stop: int | None = None) -> None:
        self.rates: list[tuple[float, ...]] = []
        self.stop = stop

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        self.rates.append(tuple(group["lr"] for group in optimizer.param_groups))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.stop is not None and trainer.global_step == self.stop:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stop.ckpt")
            raise StopHereError


def fit(
    root: Path, folder: Path, schedule: Schedule, stop: int | None = None, resume: bool = False, parts: int = 1
) -> Watch:
    data = ImageNetDataModule("imagefolder", str(root), 4, 0, crop=64)
    watch = Watch(stop)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        callbacks=[LearningRate(schedule), watch],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        accumulate_grad_batches=parts,
    )
    module = LitClassifier(spp_cls.build_net("zf5_tiny", num_classes=3, input_size=64))
    try:
        trainer.fit(module, data, ckpt_path=folder / "stop.ckpt" if resume else None, weights_only=True)
    except StopHereError:
        assert stop is not None
    return watch


@pytest.mark.parametrize("schedule", [cosine, Cosine(warmup=1)])
def test_a_schedule_of_steps_is_the_same_after_a_resume_inside_an_epoch(
    schedule: Schedule, shared_image_folder: Path, tmp_path: Path
) -> None:
    # Six steps an epoch, eighteen in all, of two batches each.
    rates = [0.01 * (1 + math.cos(math.pi * step / 18)) / 2 for step in range(18)]
    if schedule is not cosine:
        rates = [rate / 40 for rate in rates_of_timm(CosineLRScheduler, 18, 6, 0, 0)]
    watch = fit(shared_image_folder, tmp_path, schedule, stop=9, parts=2)
    watch.rates += fit(shared_image_folder, tmp_path, schedule, resume=True, parts=2).rates
    assert [weights for weights, _ in watch.rates] == pytest.approx(rates)
    assert [biases for _, biases in watch.rates] == pytest.approx([2 * rate for rate in rates])
