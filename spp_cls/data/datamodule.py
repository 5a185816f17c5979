"""The data module: training and validation batches of a data set."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import pytorch_lightning as pl

from spp_cls.cli.errors import UserError
from spp_cls.cli.keys import DataKeys
from spp_cls.cli.schema import check_fields
from spp_cls.data.checks import check_batch, check_limit, check_options, check_sources, check_trainer
from spp_cls.data.loading.batch import Batch, finish_on_device, mix_batch
from spp_cls.data.loading.dataset import CentreCrops, TrainingCrops, WholeImages
from spp_cls.data.loading.device_images import CachedCrops, DeviceImages
from spp_cls.data.loading.loader import BatchLoader, TrainingLoader
from spp_cls.data.loading.placement import Placement, find_placement
from spp_cls.data.loading.sampler import BucketSampler, ShardSampler, TrainingSampler
from spp_cls.data.loading.workers import count_workers
from spp_cls.data.sources import ImageSource, open_source
from spp_cls.data.sources.headers import read_image_sizes
from spp_cls.data.transforms.augmentation import (
    Augmentation,
    AugmentFunction,
    PaperAugmentation,
    convert_to_augmentation,
)
from spp_cls.data.transforms.buckets import sort_into_buckets
from spp_cls.data.transforms.crops import compute_min_side
from spp_cls.data.transforms.randomness import Purpose, create_generator
from spp_cls.data.transforms.shapes import TrainingShapes
from spp_cls.models.config import IMAGENET_MEAN, NetConfig, create_config
from spp_cls.models.net import SPPNet, get_shape

_log = logging.getLogger(__name__)

# Of the data module's state in a checkpoint.
NUM_IMAGES_KEY = "train_images"

_PAPER_AUGMENTATION = PaperAugmentation()


class ImageNetDataModule(pl.LightningDataModule):
    """Augmented training images of the size of the epoch, and centre crops of `crop` pixels for validation.

    `kind` and `root` are as in open_source. `batch_size` is the global batch, divided by the number of processes.
    `num_workers` is as in count_workers; `timeout` limits the seconds for reading a batch (0: no limit). With `cache`
    device, all training images are kept decoded on the device. `sizes` is as in choose_size, `shape` one of
    transforms.shapes.KINDS. `augmentation` may also be a function, as ImageAugmentation.augment; one that mixes
    pairs of images needs even chunks. `crop` is the network's input_size. Pixels of 0..255 become
    (pixels - mean) / std. Validation images are resized with `interpolation`, bilinear or bicubic; augmentations have
    their own. Batches are float N x 3 x height x width: square crops, or whole images of one aspect; in validation
    N x 3 x crop x crop, each image once.

    Raises:
        UserError: if the data set is not laid out as its kind says, or too small for a batch, or an argument is wrong.
    """

    def __init__(
        self,
        kind: str,
        root: str,
        batch_size: int = 128,
        num_workers: int | str = "auto",
        timeout: float = 600,
        cache: Literal["none", "device"] = "none",
        crop: int = 224,
        sizes: str | Sequence[int] = "single",
        augmentation: Augmentation | AugmentFunction = _PAPER_AUGMENTATION,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = (1.0, 1.0, 1.0),
        interpolation: str = "bilinear",
        seed: int = 0,
        shape: str = "crop",
    ) -> None:
        super().__init__()
        check_fields(DataKeys(kind, str(root), num_workers, timeout, batch_size, cache), "data.")
        # Those of every network, whose configuration checks them.
        network = create_config("zf5", input_size=crop, mean=mean, std=std, interpolation=interpolation)
        self.kind = kind
        self.root = root
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.timeout = timeout
        self.cache = cache
        self.crop = network.input_size
        self.augmentation = convert_to_augmentation(augmentation)
        self.mean = network.mean
        self.std = network.std
        self.interpolation = network.interpolation
        self.seed = seed
        self.replaced: set[str] = set()
        # Checkpoints carry them, so that results can say what a network was trained on.
        self.save_hyperparameters("sizes", "shape", "seed", logger=False)
        # Those of every aspect; of the images that there are: `shapes`.
        self.possible_shapes = TrainingShapes(sizes, self.crop, seed, shape)
        check_options(cache, self.possible_shapes, self.augmentation)

    @cached_property
    def shapes(self) -> TrainingShapes:
        """The shapes of the training images; of whole images, the headers are read."""
        if not self.possible_shapes.has_whole_images:
            return self.possible_shapes
        return replace(self.possible_shapes, buckets=sort_into_buckets(read_image_sizes(self.train_source)))

    @cached_property
    def train_source(self) -> ImageSource:
        """The training images."""
        return open_source(self.kind, self.root, "train")

    @cached_property
    def val_source(self) -> ImageSource:
        """The validation images."""
        return open_source(self.kind, self.root, "val")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.train_source.class_names

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that resumes compares: the order of the images depends on their number."""
        return {NUM_IMAGES_KEY: len(self.train_source)}

    def setup(self, stage: str) -> None:
        """List the data and check that it fills a batch, before any image is read."""
        if self.trainer:
            self.check_trainer(self.trainer)
            net = getattr(self.trainer.lightning_module, "net", None)
            if isinstance(net, SPPNet):
                self._check_network(net.config)
            if stage == "fit":
                # Sizes may need a number of epochs, which is then missed before the first step.
                self.possible_shapes.choose(self.possible_shapes.largest[0], 0, self.trainer.max_epochs)
                if isinstance(net, SPPNet):
                    for size in self.possible_shapes.all:
                        net.check_size(*get_shape(size))
        else:
            self.check_batch(1)
            check_sources(self.train_source, self.val_source, 1)

    def _check_network(self, config: NetConfig) -> None:
        """Raise UserError if crop, mean, std, interpolation or classes are not the network's."""
        if config.in_chans != 3:
            raise UserError(
                f"the network has {config.in_chans} input channels, and the data module makes RGB images; build it "
                "with in_chans=3, or give the trainer data of your own"
            )
        needed = {
            "crop": config.input_size, "mean": config.mean, "std": config.std, "interpolation": config.interpolation,
        }  # fmt: skip
        for name, value in needed.items():
            if value != getattr(self, name):
                raise UserError(
                    f"the data module has {name}={getattr(self, name)}, and the network {value}; give the data module "
                    f"the {name} of net.config"
                )
        if config.num_classes != len(self.class_names):
            raise UserError(
                f"the network has {config.num_classes} classes, and {self.root} has {len(self.class_names)}; build "
                f"it with num_classes={len(self.class_names)}"
            )
        if config.class_names not in (None, self.class_names):
            raise UserError(
                f"the network's classes have other names than those of {self.root}; call "
                f"net.reset_classifier({len(self.class_names)}) for new ones"
            )

    def check_trainer(self, trainer: pl.Trainer) -> None:
        """Check that the images fill a batch of a trainer, and that its shares of an epoch leave whole steps.

        Raises:
            UserError: as check_batch, check_sources, check_limit and checks.check_trainer do.
        """
        check_trainer(trainer)
        num_local_batches = find_placement(trainer).num_local_batches
        self.check_batch(num_local_batches)
        check_sources(self.train_source, self.val_source, trainer.world_size)
        num_train = len(self.train_source) // self.batch_size * trainer.accumulate_grad_batches
        num_val = -(-(len(self.val_source) // trainer.world_size) // (self.batch_size // num_local_batches))
        check_limit("train", trainer.limit_train_batches, num_train, trainer.accumulate_grad_batches)
        check_limit("val", trainer.limit_val_batches, num_val)

    def check_batch(self, num_local_batches: int) -> None:
        """Check that the training images fill a global batch, and that it divides into equal local batches.

        There is one for each process and each of those whose gradients it accumulates.

        Raises:
            UserError: if they do not fill it, or it does not divide.
        """
        check_batch(self.batch_size, num_local_batches, self.augmentation.mixes_pairs, len(self.train_source))

    @property
    def local_batch_size(self) -> int:
        """Images of a batch of one process; gradients are accumulated over the global batch."""
        return self.batch_size // self._place.num_local_batches

    @property
    def _place(self) -> Placement:
        return find_placement(self.trainer)

    @property
    def _num_workers(self) -> int:
        return count_workers(self.num_workers, self._place.devices)

    def train_dataloader(self) -> TrainingLoader:
        """Return the loader of this process's chunks of the global batches of the current epoch."""
        sampler = self._create_sampler()
        if self.trainer is not None:
            # Lightning sets the sampler's epoch only after it has started the workers of a resumed run, and corrects
            # trainer.current_epoch even later; the number of processed epochs is right from the start.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        is_cached = self.cache == "device"
        return TrainingLoader(
            self._create_dataset(),
            self.local_batch_size,
            sampler=sampler,
            count_trained=self._count_trained,
            # Cached images leave nothing to do for workers, nor to copy to the device.
            num_workers=0 if is_cached else self._num_workers,
            timeout=self.timeout,
            root=self.root,
            device=None if is_cached else self._place.device,
        )

    def _create_sampler(self) -> TrainingSampler:
        options = self.batch_size, self.seed, self._place.rank, self._place.world_size
        if self.shapes.buckets:
            return BucketSampler(self.shapes.buckets.of_images, *options)
        return TrainingSampler(len(self.train_source), *options)

    def _create_dataset(self) -> TrainingCrops:
        if self.shapes.buckets:
            return WholeImages(self.train_source, self.shapes.largest, self.augmentation, self.seed)
        if self.cache == "device":
            return CachedCrops(self._device_images, self.shapes.largest_size, self.augmentation, self.seed)
        return TrainingCrops(self.train_source, self.shapes.largest_size, self.augmentation, self.seed)

    def _count_trained(self) -> int:
        if self.trainer is None:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(progress.processed)

    @cached_property
    def _device_images(self) -> DeviceImages:
        min_side = compute_min_side(self.shapes.largest_size)
        return DeviceImages(self.train_source, min_side, self._place.device, self._num_workers, self.timeout)

    def val_dataloader(self) -> BatchLoader:
        """Return the loader of this process's shard of the validation images."""
        return BatchLoader(
            CentreCrops(self.val_source, self.crop, self.interpolation),
            self.local_batch_size,
            ShardSampler(len(self.val_source), self._place.rank, self._place.world_size),
            drop_last=False,
            num_workers=self._num_workers,
            timeout=self.timeout,
            root=self.root,
            device=self._place.device,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Finish a batch on the device; warn once of each image that could not be decoded."""
        height, width = batch.images.shape[-2:]
        shape = height, width
        is_training = self.trainer is not None and self.trainer.training
        if self.trainer is not None and is_training:
            shape = self.shapes.choose(shape, self.trainer.current_epoch, self.trainer.max_epochs)
        for message in batch.replaced:
            if message not in self.replaced:
                self.replaced.add(message)
                _log.warning("%s; another image takes its place", message)
        batch = finish_on_device(batch, self.mean, self.std, shape)
        if self.trainer is None or not is_training or not self.augmentation.mixes_pairs:
            return batch
        # A batch that is trained on next; all parts of a global batch are mixed alike.
        step = self._count_trained() // self.trainer.accumulate_grad_batches
        random = create_generator(Purpose.MIXING, self.seed, self.trainer.current_epoch, step)
        return mix_batch(batch, self.augmentation, random, len(self.class_names))
