"""The data module: training and validation batches of a data set."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset

from spp_cls.data.batch import Batch, finish_on_device
from spp_cls.data.crops import min_side_of
from spp_cls.data.dataset import CentreCrops, TrainingCrops
from spp_cls.data.device_images import CachedCrops, DeviceImages
from spp_cls.data.loader import BatchLoader, TrainingLoader
from spp_cls.data.sampler import ShardSampler, TrainingSampler
from spp_cls.data.sizes import possible_sizes, size_of_epoch
from spp_cls.data.sources import ImageSource, open_source
from spp_cls.data.workers import worker_count
from spp_cls.errors import UserError
from spp_cls.models.net import IMAGENET_MEAN

_log = logging.getLogger(__name__)


class ImageNetDataModule(pl.LightningDataModule):
    """Crops of `crop` pixels from a data set on disk, resized on the device to the size of the epoch.

    `batch_size` is the global batch, divided by the number of processes. `num_workers` is as in worker_count;
    `timeout` is how many seconds a batch may take to be read (0: any). With `cache` device, all training images are
    kept decoded on the device. `sizes` is as in size_of_epoch. `mean` is subtracted from pixels of 0..255. Batches
    are float N x 3 x size x size in training, N x 3 x crop x crop in validation, which sees each image once.

    Raises:
        UserError: the data set is not as its kind says, or too small for a batch, or sizes are no sizes.
    """

    def __init__(
        self,
        kind: str,
        root: str,
        batch_size: int = 128,
        num_workers: int | Literal["auto"] = "auto",
        timeout: float = 600,
        cache: Literal["none", "device"] = "none",
        crop: int = 224,
        sizes: str | Sequence[int] = "single",
        colour_deviation: float = 0.1,
        mean: Sequence[float] = IMAGENET_MEAN,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.root = root
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.timeout = timeout
        self.cache = cache
        self.crop = crop
        self.sizes = sizes
        self.colour_deviation = colour_deviation
        self.mean = tuple(mean)
        self.seed = seed
        self.replaced: set[str] = set()
        # Checkpoints carry them, so that results can say what a network was trained on.
        self.save_hyperparameters("sizes", logger=False)
        worker_count(num_workers)
        if cache not in ("none", "device"):
            raise UserError(f"data.cache is none or device, not {cache!r}")
        if timeout < 0:
            raise UserError(f"data.timeout is 0 seconds or more, not {timeout}")
        if seed < 0:
            raise UserError(f"seed is 0 or more, not {seed}")
        self.possible_sizes = possible_sizes(sizes, crop)

    @cached_property
    def train_files(self) -> ImageSource:
        """The training images."""
        return open_source(self.kind, self.root, "train")

    @cached_property
    def val_files(self) -> ImageSource:
        """The validation images."""
        return open_source(self.kind, self.root, "val")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return self.train_files.class_names

    def setup(self, stage: str) -> None:
        """List the data and check that it fills a batch, before anything is read."""
        self.check_batch(self._shares)
        if not len(self.val_files):
            raise UserError(f"there are no validation images in {self.val_files.root}")

    def check_batch(self, shares: int) -> None:
        """Raise UserError if the global batch is not `shares` equal ones, or the training images do not fill it.

        Each process takes as many shares as it accumulates gradients of.
        """
        if self.batch_size < 1 or self.batch_size % shares:
            raise UserError(
                f"the global batch of {self.batch_size} does not divide by {shares} (processes times "
                f"accumulated batches); set data.batch_size to a multiple of {shares}"
            )
        if len(self.train_files) < self.batch_size:
            raise UserError(
                f"{len(self.train_files)} training images do not fill a batch of {self.batch_size}; "
                "set a smaller data.batch_size"
            )

    @property
    def batch_size_of_step(self) -> int:
        """Images of a training step of one process, whose gradients are added up over the global batch."""
        return self.batch_size // self._shares

    @property
    def _shares(self) -> int:
        return self._processes * (self.trainer.accumulate_grad_batches if self.trainer else 1)

    @property
    def _processes(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    @property
    def _workers(self) -> int:
        return worker_count(self.num_workers, self.trainer.num_devices if self.trainer else 1)

    def train_dataloader(self) -> TrainingLoader:
        """Batches of the current epoch's training crops, this process's share of each global batch."""
        sampler = TrainingSampler(len(self.train_files), self.batch_size, self.seed, self._rank, self._processes)
        if self.trainer is not None:
            # Lightning tells the sampler the epoch only after it has started the workers of a resumed run, and
            # corrects trainer.current_epoch even later; the epochs processed are right from the start.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        drawn = self.crop, self.seed, self.colour_deviation
        dataset: Dataset[Any] = (
            CachedCrops(self._cached_images, self.train_files.labels, *drawn)
            if self.cache == "device"
            else TrainingCrops(self.train_files, *drawn)
        )
        return TrainingLoader(
            dataset,
            self.batch_size_of_step,
            sampler=sampler,
            trained=self._trained_batches,
            # Cached images leave nothing for them to do.
            num_workers=0 if self.cache == "device" else self._workers,
            timeout=self.timeout,
            place=self.root,
            # They are there already.
            device=None if self.cache == "device" else self._device,
        )

    def _trained_batches(self) -> int:
        if self.trainer is None:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(progress.processed)

    @cached_property
    def _cached_images(self) -> DeviceImages:
        return DeviceImages(self.train_files, min_side_of(self.crop), self._device, self._workers)

    def val_dataloader(self) -> BatchLoader:
        """Batches of this process's share of the validation images."""
        return BatchLoader(
            CentreCrops(self.val_files, self.crop),
            self.batch_size_of_step,
            ShardSampler(len(self.val_files), self._rank, self._processes),
            drop_last=False,
            num_workers=self._workers,
            timeout=self.timeout,
            place=self.root,
            device=self._device,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Finish a batch on the device; tell of images that could not be decoded, each once."""
        size = self.crop
        if self.trainer is not None and self.trainer.training:
            size = size_of_epoch(self.sizes, self.trainer.current_epoch, self.crop, self.seed)
        for message in batch.replaced:
            if message not in self.replaced:
                self.replaced.add(message)
                _log.warning("%s; another image takes its place", message)
        return finish_on_device(batch, self.mean, size)
