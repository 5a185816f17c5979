"""How many processes and threads read images, and what their failures mean."""

import os
import signal
from collections.abc import Iterable
from typing import Literal

from spp_cls.errors import UserError


def available_cpus() -> int:
    """Count the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(num_workers: int | Literal["auto"], processes: int = 1) -> int:
    """Return the workers of each of so many training processes on this machine; auto shares the CPUs among them.

    Raises:
        UserError: neither auto nor a number.
    """
    if num_workers == "auto":
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_CPUS_PER_TASK" in os.environ:
            # The tasks of a job have CPUs of their own, which are all that a process sees where SLURM binds them.
            return min(available_cpus(), int(os.environ["SLURM_CPUS_PER_TASK"]))
        return max(1, available_cpus() // processes)
    if not isinstance(num_workers, int) or isinstance(num_workers, bool) or num_workers < 0:
        raise UserError(f"num_workers is auto or a whole number from 0, not {num_workers!r}")
    return num_workers


def failure_of_workers(
    error: RuntimeError, exit_codes: Iterable[int], root: object, timeout: float
) -> UserError | None:
    """Say in one line what a failure of a DataLoader means, given how its dead workers ended; None for other errors."""
    text = str(error)
    if "timed out after" in text:
        return UserError(
            f"no batch came for {timeout:g} seconds: reading {root} hangs; look after its disk or network, "
            "or set a longer data.timeout (0: wait for ever)"
        )
    if -signal.SIGBUS in exit_codes or "No space left on device" in text:
        return UserError(
            "the worker processes ran out of shared memory; enlarge /dev/shm (docker run --shm-size=8g) "
            "or set a smaller data.num_workers or data.batch_size"
        )
    if "DataLoader worker" in text and "exited unexpectedly" in text:
        ends = sorted({signal.strsignal(-code) or str(code) for code in exit_codes if code < 0})
        return UserError(
            f"a worker process died ({', '.join(ends) or 'without a signal'}); if memory ran out, "
            "set a smaller data.num_workers"
        )
    return None
