"""Training: what happens in a step, in an epoch and in the folder of a run.

In: a network, a data module, a run folder. Out: checkpoints that resume bit for bit, and the metrics of each epoch.
Start with module.py, the step; the callbacks in create_callbacks do the rest, and each is in a file of its own.
"""

from pytorch_lightning.callbacks import Callback

from spp_cls.training.acceleration import Compilation
from spp_cls.training.loggers import create_loggers
from spp_cls.training.logging import EpochMetrics, FilterPictures, StepLoss
from spp_cls.training.losses import BinaryCrossEntropy, CrossEntropy
from spp_cls.training.module import LitClassifier
from spp_cls.training.norms import SyncBatchNorms, WeightAverage
from spp_cls.training.progress import ProgressBar
from spp_cls.training.run.checkpointing import AtomicCheckpoints, Checkpointing
from spp_cls.training.run.folder import RunFolder
from spp_cls.training.schedules import Cosine, LearningRate, Linear, Milestones, Plateau, Progress, Schedule

__all__ = [
    "AtomicCheckpoints", "BinaryCrossEntropy", "Checkpointing", "Compilation", "Cosine", "CrossEntropy", "EpochMetrics",
    "FilterPictures", "LearningRate", "Linear", "LitClassifier", "Milestones", "Plateau", "Progress", "ProgressBar",
    "RunFolder", "Schedule", "StepLoss", "SyncBatchNorms", "WeightAverage", "create_callbacks", "create_loggers",
]  # fmt: skip


def create_callbacks(
    schedule: Schedule | None = None,
    compilation: Compilation | None = None,
    ema_decay: float | None = None,
    checkpointing: Checkpointing | None = None,
) -> list[Callback]:
    """Return the callbacks of training in their order, for a Trainer of train.py or of your own.

    `schedule` None is the paper's, Plateau(). With `ema_decay`, validation and checkpoints take an exponential moving
    average of the weights and running statistics. Without `compilation` the network is not compiled; without
    `checkpointing` nothing is saved and no loss is watched.
    """
    ema = WeightAverage(decay=ema_decay) if ema_decay else None
    rates, metrics = LearningRate(schedule or Plateau()), (EpochMetrics(), StepLoss(), FilterPictures())
    callbacks = (ProgressBar(), compilation, ema, rates, *metrics, checkpointing)
    return [callback for callback in callbacks if callback]
