"""The loader of batches: persistent workers, a state that checkpoints keep, failures in one line."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from spp_cls.data.loading.batch import Batch
from spp_cls.data.loading.sampler import TrainingSampler
from spp_cls.data.loading.workers import explain_worker_failure

Item = TypeVar("Item")


class BatchLoader(DataLoader[Any]):
    """A DataLoader of data sets that make whole batches (`__getitems__`).

    Its workers live as long as it does. For a GPU, each batch is copied during the computation of the one before. A
    worker that dies, a read that takes over `timeout` seconds (0: no limit) and full shared memory end in a UserError,
    which names `root`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        sampler: Sampler[Any],
        drop_last: bool,
        num_workers: int,
        timeout: float,
        root: object,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=_return_unchanged,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device is not None and device.type == "cuda",
            timeout=timeout if num_workers else 0,
        )
        self.root = root
        self.device = device

    def __iter__(self) -> Any:
        """Start the workers (or their next epoch) at once, before the first batch is asked for."""
        batches = raise_worker_errors(super().__iter__(), self.root, self.timeout)
        return _prefetch(batches, self.device) if self.device is not None and self.device.type == "cuda" else batches


class TrainingLoader(BatchLoader):
    """The loader of training batches. Lightning keeps its state in checkpoints: the images trained on in the epoch.

    `count_trained` returns the number of batches of the epoch that the network was trained on, which is less than the
    number that the workers have made.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        sampler: TrainingSampler,
        count_trained: Callable[[], int],
        **options: Any,
    ) -> None:
        super().__init__(dataset, batch_size, sampler, drop_last=True, **options)
        self._training_sampler = sampler
        self._images_of_batch = batch_size * sampler.world_size
        self._count_trained = count_trained

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its images all processes together were trained on."""
        return {"epoch": self._training_sampler.epoch, "images": self._count_trained() * self._images_of_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start that epoch after those images."""
        self._training_sampler.resume(state["epoch"], state["images"])


def raise_worker_errors(batches: Iterator[Item], root: object, timeout: float = 0) -> Iterator[Item]:
    """Iterate over a DataLoader's batches of data from `root`; raise failures of its workers as one line.

    Raises:
        UserError: if a worker died, a batch took longer than the DataLoader's timeout, or shared memory is full.
    """
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            workers = getattr(batches, "_workers", [])
            exit_codes = [worker.exitcode for worker in workers if worker.exitcode]
            failure = explain_worker_failure(error, exit_codes, root, timeout)
            if failure is None:
                raise
            raise failure from error
        yield batch


def _return_unchanged(batch: Any) -> Any:
    return batch


def _prefetch(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy each batch to the GPU on a separate stream, while the network works on the one before."""
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = Batch(*(_copy_to(part, device) for part in batch))
            copied = stream.record_event()
        if waiting is not None:
            yield _synchronise(*waiting)
        waiting = copy, copied
    if waiting is not None:
        yield _synchronise(*waiting)


def _copy_to(part: Any, device: torch.device) -> Any:
    return part.to(device, non_blocking=True) if isinstance(part, Tensor) else part


def _synchronise(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Let the network wait for the copy, and keep the batch's memory until the network is done with it."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for part in batch:
        if isinstance(part, Tensor):
            part.record_stream(current)
    return batch
