"""Collective operations over the processes of a run; a single process gets its own value back."""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed import ReduceOp

Value = TypeVar("Value")


def get_world_size() -> int:
    """Return the number of processes of the run."""
    return torch.distributed.get_world_size() if _are_several() else 1


def all_gather(value: Value) -> list[Value]:
    """Return the value of every process, in the order of their ranks. Every process must call it."""
    if not _are_several():
        return [value]
    values: list[Value | None] = [None] * get_world_size()
    torch.distributed.all_gather_object(values, value)
    return cast(list[Value], values)


def all_reduce(values: Tensor, operation: Any = ReduceOp.SUM) -> Tensor:
    """Return the sum (or maximum ...) of a tensor over all processes. Every process must call it."""
    if not _are_several():
        return values
    result = values.to(_device(), copy=True)
    torch.distributed.all_reduce(result, op=operation)
    return result.to(values.device)


def _are_several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _device() -> torch.device:
    on_gpu = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
