"""The loader of batches: workers that stay, a place in the epoch that checkpoints keep, failures told in one line."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from spp_cls.data.batch import Batch
from spp_cls.data.sampler import TrainingSampler
from spp_cls.data.workers import failure_of_workers

Item = TypeVar("Item")


class BatchLoader(DataLoader[Any]):
    """A DataLoader of data sets that make whole batches (`__getitems__`).

    Its workers live as long as it does. On a GPU each batch is copied while the one before is computed on. A worker
    that dies, a read that takes over `timeout` seconds (0: no limit) and full shared memory end in a UserError.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        sampler: Sampler[Any],
        drop_last: bool,
        num_workers: int,
        timeout: float,
        place: object,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device is not None and device.type == "cuda",
            timeout=timeout if num_workers else 0,
        )
        self.place = place
        self.device = device

    def __iter__(self) -> Any:
        """Start the workers, or have them begin anew, at once; then go through the batches."""
        batches = told(super().__iter__(), self.place, self.timeout)
        return _ahead(batches, self.device) if self.device is not None and self.device.type == "cuda" else batches


class TrainingLoader(BatchLoader):
    """The loader of training batches. Lightning keeps its state in checkpoints: the images trained on in the epoch.

    `trained` tells the number of batches of the epoch that the network has been trained on, which are fewer than
    those that the workers have made.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        sampler: TrainingSampler,
        trained: Callable[[], int],
        **options: Any,
    ) -> None:
        super().__init__(dataset, batch_size, sampler, drop_last=True, **options)
        self._order = sampler
        self._images_of_step = batch_size * sampler.processes
        self._trained = trained

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and the images of it that all processes together have been trained on."""
        return {"epoch": self._order.epoch, "images": self._trained() * self._images_of_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin that epoch after those images."""
        self._order.resume(state["epoch"], state["images"])


def told(batches: Iterator[Item], place: object, timeout: float = 0) -> Iterator[Item]:
    """Go through a DataLoader's batches of data from `place`; failures of its workers are told in one line.

    Raises:
        UserError: a worker died, a batch took longer than the DataLoader's timeout, or shared memory is full.
    """
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            workers = getattr(batches, "_workers", [])
            ends = [worker.exitcode for worker in workers if worker.exitcode]
            failure = failure_of_workers(error, ends, place, timeout)
            if failure is None:
                raise
            raise failure from error
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy each batch to the GPU on a stream of its own while the network works on the one before."""
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = Batch(*(_moved(part, device) for part in batch))
            copied = stream.record_event()
        if waiting is not None:
            yield _handed_over(*waiting)
        waiting = moved, copied
    if waiting is not None:
        yield _handed_over(*waiting)


def _moved(part: Any, device: torch.device) -> Any:
    return part.to(device, non_blocking=True) if isinstance(part, Tensor) else part


def _handed_over(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Make the network wait for the copy, and the memory stay until the network is done with it."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for part in batch:
        if isinstance(part, Tensor):
            part.record_stream(current)
    return batch
