"""The order of the images of an epoch, and the part of it that each process sees."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from spp_cls.data.transforms.randomness import Purpose, create_generator

# The number of an epoch and the index of an image: all that augmentation depends on beside the seed.
EpochIndex = tuple[int, int]


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
        order = create_generator(Purpose.ORDER, self.seed, self.epoch).permutation(self.length)
        epoch, images = self._resumed
        rest = order[images:] if epoch == self.epoch else order
        batches = len(rest) // self.global_batch
        chunks = rest[: batches * self.global_batch].reshape(
            batches, self.world_size, self.global_batch // self.world_size
        )
        for index in chunks[:, self.rank].ravel():
            yield self.epoch, int(index)


class ShardSampler(Sampler[int]):
    """Each image once over all processes, in order and without padding: shards differ by at most one image."""

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
