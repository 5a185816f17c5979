"""How many workers read images, and what their failures mean."""

import os
import signal
from collections.abc import Iterable

from spp_cls.cli.errors import UserError


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers(num_workers: int | str, local_world_size: int = 1) -> int:
    """Return the workers of a training process; auto divides the CPUs among the processes on this machine.

    Raises:
        UserError: if num_workers is neither auto nor a whole number from 0.
    """
    if num_workers == "auto":
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_CPUS_PER_TASK" in os.environ:
            # Each task of a job has its own CPUs; where SLURM binds them, a process sees no others.
            return min(count_cpus(), int(os.environ["SLURM_CPUS_PER_TASK"]))
        return max(1, count_cpus() // local_world_size)
    if not isinstance(num_workers, int) or isinstance(num_workers, bool) or num_workers < 0:
        raise UserError(f"num_workers is auto or a whole number from 0, not {num_workers!r}")
    return num_workers


def explain_worker_failure(
    error: RuntimeError, exit_codes: Iterable[int], root: object, timeout: float
) -> UserError | None:
    """Return a failure of a DataLoader's workers, with their exit codes, as one line; None for other errors."""
    text = str(error)
    if "timed out after" in text:
        return UserError(
            f"no batch came for {timeout:g} seconds: reading {root} hangs; check its disk or network, "
            "or set a longer data.timeout (0: no limit)"
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
