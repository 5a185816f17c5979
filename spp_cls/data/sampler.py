"""Which images an epoch visits, in which order, and which process sees which."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from spp_cls.data.randomness import Purpose, generator

# An epoch's number and an image's place in the source: all that an image's order and augmentation depend on.
EpochIndex = tuple[int, int]


class TrainingSampler(Sampler[EpochIndex]):
    """A new random order each epoch, cut into global batches and each of these into equal parts, one a process.

    The sequence of global batches is the same for any number of processes. The last images of an epoch that do not
    fill a global batch are left out of it; the next epoch's order is another. The epoch travels with the index, so
    that workers started in an earlier epoch cannot use a stale one.
    """

    def __init__(self, length: int, global_batch: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.length = length
        self.global_batch = global_batch
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.epoch = 0
        self._resumed = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of; Lightning calls this."""
        self.epoch = epoch

    def resume(self, epoch: int, images: int) -> None:
        """Let iterations of `epoch` begin after the first `images` of it, counted over all processes."""
        self._resumed = (epoch, images)

    def __len__(self) -> int:
        """Count the images of a whole epoch, whether it was resumed or not."""
        return self.length // self.global_batch * (self.global_batch // self.processes)

    def __iter__(self) -> Iterator[EpochIndex]:
        order = generator(Purpose.ORDER, self.seed, self.epoch).permutation(self.length)
        epoch, images = self._resumed
        rest = order[images:] if epoch == self.epoch else order
        batches = len(rest) // self.global_batch
        shares = rest[: batches * self.global_batch].reshape(
            batches, self.processes, self.global_batch // self.processes
        )
        for index in shares[:, self.rank].ravel():
            yield self.epoch, int(index)


class ShardSampler(Sampler[int]):
    """Every image once over all processes, in order, without padding: shards differ by at most one image."""

    def __init__(self, length: int, rank: int = 0, processes: int = 1) -> None:
        self.indices = range(rank, length, processes)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
