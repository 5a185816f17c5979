"""The learning rate as a pure function of a run's progress and of the validation errors so far.

A run that is stopped and resumed, at any step, has the same rates as one that was never stopped. With one exception:
of a checkpoint that Lightning's own ModelCheckpoint saved at a step that a validation follows, Lightning skips that
validation.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import check_fields, key
from spp_cls.cli.targets import call_bound, call_target
from spp_cls.training.module import LitClassifier
from spp_cls.training.optimization import scale_rates


class Progress(NamedTuple):
    """How far a run is before a step: all that a learning rate may depend on.

    `epoch` counts the epochs done and the fraction done of this one, `epochs` those of the whole run (-1: not known);
    `errors` are the validation top-1 errors of the epochs before, in percent.
    """

    epoch: float
    epochs: int
    errors: tuple[float, ...] = ()


# Returns the factor of the learning rate.
Schedule = Callable[[Progress], float]


@dataclass(frozen=True, kw_only=True)
class ScheduleWithWarmUp(ABC):
    """The base of the schedules here: a linear rise to the optimizer's rate, and what a subclass does after it.

    `warmup` is the length of the rise in epochs; a number below 1 is a share of the run. It starts at `warmup_factor`
    of the rate.

    Raises:
        UserError: if a field has a value of another type or range; when it is called, if the rate depends on the number
            of epochs of the run, and this is not known.
    """

    warmup: float = key(0.0, least=0)
    warmup_factor: float = key(0.0, least=0, most=1)

    def __post_init__(self) -> None:
        check_fields(self, "schedule.")

    def __call__(self, progress: Progress) -> float:
        """Return the factor of the learning rate."""
        rise = _convert_to_epochs(self.warmup, progress)
        if progress.epoch < rise:
            return _interpolate(self.warmup_factor, 1.0, progress.epoch / rise)
        return self.compute_factor(progress, rise)

    @abstractmethod
    def compute_factor(self, progress: Progress, start: float) -> float:
        """Return the factor of the learning rate after a rise that ended at the epoch `start`."""


@dataclass(frozen=True)
class Plateau(ScheduleWithWarmUp):
    """Multiply the rate by `factor` when the validation error stops falling, at most `drops` times.

    It has stopped when more than `patience` epochs in a row have brought no new lowest error. The paper divides by 10
    twice "when the error plateaus" (section 3.1) and gives no patience.

    Raises:
        UserError: if a field has a value of another type or range.
    """

    patience: int = key(5, least=0)
    drops: int = key(2, least=0)
    factor: float = key(0.1, above=0, most=1)

    def compute_factor(self, progress: Progress, start: float) -> float:
        """Return the factor of the learning rate."""
        lowest, waited, drops = math.inf, 0, 0
        for error in progress.errors:
            waited = 0 if error < lowest else waited + 1
            lowest = min(error, lowest)
            if waited > self.patience:
                drops, waited = drops + 1, 0
        return _raise_to(self.factor, min(drops, self.drops))


@dataclass(frozen=True)
class Milestones(ScheduleWithWarmUp):
    """Multiply the rate by `factor` at the start of each of `epochs`.

    These are counted from 0; numbers below 1 are shares of the run: 0.75 is epoch 30 of 40.

    Raises:
        UserError: if a field has a value of another type or range, or the epochs are not in ascending order.
    """

    epochs: tuple[float, ...] = key((0.7, 0.9), least=0)
    factor: float = key(0.1, above=0, most=1)

    def __post_init__(self) -> None:
        if isinstance(self.epochs, Sequence) and not isinstance(self.epochs, str):
            object.__setattr__(self, "epochs", tuple(self.epochs))
        super().__post_init__()
        if any(later <= earlier for earlier, later in pairwise(self.epochs)):
            raise UserError(f"schedule.epochs is a list in ascending order, not {list(self.epochs)}")

    def compute_factor(self, progress: Progress, start: float) -> float:
        """Return the factor of the learning rate."""
        # Rounded, as 0.55 * 100 is 55.00000000000001.
        starts = (round(_convert_to_epochs(epoch, progress), 9) for epoch in self.epochs)
        # The rate changes between epochs only.
        return _raise_to(self.factor, sum(math.floor(progress.epoch) >= start for start in starts))


@dataclass(frozen=True)
class Cosine(ScheduleWithWarmUp):
    """Lower the rate along half a cosine, from step to step, to `final_factor` of it at the end of the run.

    After a warm-up the cosine spans the rest of the run (arXiv 1608.03983, without restarts).

    Raises:
        UserError: if a field has a value of another type or range.
    """

    final_factor: float = key(0.0, least=0, most=1)

    def compute_factor(self, progress: Progress, start: float) -> float:
        """Return the factor of the learning rate."""
        done = _compute_share(progress, start)
        return _interpolate(1.0, self.final_factor, (1 - math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class Linear(ScheduleWithWarmUp):
    """Lower the rate along a line, from step to step, to `final_factor` of it at the end of the run.

    Raises:
        UserError: if a field has a value of another type or range.
    """

    final_factor: float = key(0.0, least=0, most=1)

    def compute_factor(self, progress: Progress, start: float) -> float:
        """Return the factor of the learning rate."""
        return _interpolate(1.0, self.final_factor, _compute_share(progress, start))


def _convert_to_epochs(length: float, progress: Progress) -> float:
    """Return a length in epochs; below 1 it is a share of the run."""
    return length * _get_epochs(progress) if 0 < length < 1 else length


def _compute_share(progress: Progress, start: float) -> float:
    """Return which share of the run behind the epoch `start` is done."""
    return (progress.epoch - start) / (_get_epochs(progress) - start)


def _get_epochs(progress: Progress) -> int:
    if progress.epochs < 1:
        raise UserError("the schedule needs the number of epochs of the run; set trainer.max_epochs")
    return progress.epochs


def _interpolate(first: float, last: float, share: float) -> float:
    return first + (last - first) * share


def _raise_to(factor: float, power: int) -> float:
    # So that 0.1 gives 0.01 and not 0.1 ** 2 = 0.010000000000000002.
    return 1 / (1 / factor) ** power


def create_schedule(node: Mapping[str, Any], epochs: int) -> Schedule:
    """Return the schedule of a configuration node, for a run of `epochs` epochs.

    Raises:
        UserError: if it cannot be made, or gives no rate for the first step.
    """
    schedule: Schedule = call_target(node, "schedule")
    LearningRate(schedule).check(epochs)
    return schedule


class LearningRate(Callback):
    """Sets the rate of every parameter group before each step, by a schedule.

    Raises:
        UserError: if the schedule cannot be called, or returns something other than a number from 0.
    """

    def __init__(self, schedule: Schedule) -> None:
        if not callable(schedule):
            raise UserError(f"schedule: {schedule!r} cannot be called; give a function of the progress")
        self.schedule = schedule

    def check(self, epochs: int) -> None:
        """Call the schedule for the first step of a run, to find its errors before the run starts."""
        self._compute_factor(Progress(0.0, epochs))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call the schedule for the first step."""
        self.check(trainer.max_epochs or -1)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates of the step that the batch belongs to."""
        assert isinstance(pl_module, LitClassifier)
        epoch = trainer.current_epoch
        done = batch_idx - batch_idx % trainer.accumulate_grad_batches
        errors = tuple(pl_module.validation_errors)
        progress = Progress(epoch + done / trainer.num_training_batches, trainer.max_epochs or -1, errors)
        scale_rates(trainer.optimizers[0], self._compute_factor(progress))

    def _compute_factor(self, progress: Progress) -> float:
        factor = call_bound(partial(self.schedule), "schedule", progress)
        if not isinstance(factor, Real) or not 0 <= float(factor) < math.inf:
            raise UserError(
                f"schedule: the factor of the learning rate at epoch {progress.epoch:g} is a number from 0, "
                f"not {factor!r}"
            )
        return float(factor)
