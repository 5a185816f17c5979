"""The order of the images of an epoch, and the part of it that each process sees."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from spp_cls.data.transforms.randomness import Purpose, create_generator

# The number of an epoch and the index of an image, all that augmentation depends on beside the seed; of BucketSampler
# also the bucket whose shape the image gets.
EpochIndex = tuple[int, ...]


class TrainingSampler(Sampler[EpochIndex]):
    """A new random order each epoch, cut into global batches, of which each process gets an equal chunk.

    The global batches are the same for any number of processes. The last images of an epoch, which do not fill a
    global batch, are left out; the next epoch has another order. The epoch goes with the index, so that workers
    started in an earlier epoch cannot use a stale one.
    """

    def __init__(self, length: int, global_batch: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.global_batch = global_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._resumed = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this."""
        self.epoch = epoch

    def resume(self, epoch: int, images: int) -> None:
        """Let iterations of `epoch` start after its first `images`, counted over all processes."""
        self._resumed = (epoch, images)

    def __len__(self) -> int:
        """Return the number of images of a whole epoch, resumed or not."""
        return self.length // self.global_batch * (self.global_batch // self.world_size)

    def __iter__(self) -> Iterator[EpochIndex]:
        order = self._draw_order()
        epoch, images = self._resumed
        rest = order[images:] if epoch == self.epoch else order
        batches, columns = len(rest) // self.global_batch, order.shape[1]
        chunks = rest[: batches * self.global_batch].reshape(
            batches, self.world_size, self.global_batch // self.world_size, columns
        )
        for row in chunks[:, self.rank].reshape(-1, columns):
            yield self.epoch, *row.tolist()

    def _draw_order(self) -> NDArray[np.int64]:
        """Return what the epoch yields beside its number, a row an image."""
        return create_generator(Purpose.ORDER, self.seed, self.epoch).permutation(self.length)[:, None]


class BucketSampler(TrainingSampler):
    """As TrainingSampler, with images of one bucket in each global batch, and as many batches.

    `buckets` are those of the images, numbered from high to wide. Images that do not fill a batch of their bucket are
    put together with those of the buckets beside it, and get the shape of the bucket in their middle. Which images
    these are, and which are left out, is random.
    """

    def __init__(
        self, buckets: NDArray[np.int8], global_batch: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(len(buckets), global_batch, seed, rank, world_size)
        self.buckets = buckets

    def _draw_order(self) -> NDArray[np.int64]:
        random = create_generator(Purpose.ORDER, self.seed, self.epoch)
        order = random.permutation(self.length)
        members = [order[self.buckets[order] == bucket] for bucket in np.unique(self.buckets)]
        filled = [images[: self._fill_batches(len(images))] for images in members]
        rest = np.concatenate([images[len(full) :] for images, full in zip(members, filled, strict=True)])
        # In the order of the buckets still.
        kept = np.sort(random.permutation(len(rest))[: self._fill_batches(len(rest))])
        batches = np.concatenate([*filled, rest[kept]]).reshape(-1, self.global_batch)
        batches = random.permutation(batches)
        middle = self.buckets[batches[:, self.global_batch // 2]]
        return np.stack([batches.ravel(), np.repeat(middle, self.global_batch)], 1)

    def _fill_batches(self, images: int) -> int:
        return images // self.global_batch * self.global_batch


class ShardSampler(Sampler[int]):
    """Each image once over all processes, in order and without padding: shards differ by at most one image."""

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
