"""Opens damaged files in a process of its own, each within limits of time and memory, and counts what comes of it.

python -m tests.fuzz.runner FOLDER SEED COUNT START KIND... opens COUNT damaged files of each kind, whose whole files
are in FOLDER/KIND, from the START-th on, and prints a line before and after each.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spp_cls import UserError
from tests.conftest import REPOSITORY
from tests.fuzz.damage import Files
from tests.fuzz.formats import FORMATS

SECONDS, MEMORY = 20, 4 * 2**30


def read_files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_files(files: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def is_same(found: Any, expected: Any) -> bool:
    if isinstance(found, torch.Tensor):
        return isinstance(expected, torch.Tensor) and torch.equal(found, expected)
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(is_same, found, expected))
    return type(found) is type(expected) and found == expected


def list_outside(sandbox: Path) -> list[str]:
    """List what there is beside the folder of the case."""
    return sorted(str(path) for path in sandbox.rglob("*") if "case" not in path.relative_to(sandbox).parts[:1])


def open_case(kind: str, files: Files, sandbox: Path, expected: Any) -> tuple[str, str]:
    """Write files into an empty folder and open them; return the outcome, and what to say of it."""
    case = sandbox / "case"
    write_files(files, case)
    before = list_outside(sandbox)
    try:
        found = FORMATS[kind].open(case)
    except UserError as error:
        outcome, message = ("refused", str(error)) if "\n" not in str(error) else ("several lines", str(error))
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        outcome, message = "traceback", " | ".join([f"{type(error).__name__}: {error}"[:200], *lines[-6:]])
    else:
        is_right = is_same(found, expected) or FORMATS[kind].is_right(found)
        outcome, message = ("accepted and right", "") if is_right else ("accepted and wrong", repr(found)[:300])
    if (sandbox / "canary").exists():
        outcome = "code run"
    elif list_outside(sandbox) != before:
        outcome, message = "files elsewhere", str(set(list_outside(sandbox)) ^ set(before))
    return outcome, message


def run_cases(folder: Path, kinds: Sequence[str], seed: int, count: int, start: int) -> None:
    """Open damaged files, and print the outcome of each."""
    sandbox = folder / "sandbox"
    shutil.rmtree(sandbox, ignore_errors=True)
    for name in ("working", "home", "temporary"):
        (sandbox / name).mkdir(parents=True)
    os.chdir(sandbox / "working")
    os.environ |= {"HOME": str(sandbox / "home"), "TMPDIR": str(sandbox / "temporary")}
    code = f"__import__('os').mkdir({str(sandbox / 'canary')!r})"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    is_limited = False
    for first in range(start - start % count, count * len(kinds), count):
        kind = kinds[first // count]
        whole = read_files(folder / kind)
        write_files(whole, sandbox / "case")
        expected = FORMATS[kind].open(sandbox / "case")
        if not is_limited:
            # Over what the libraries have taken.
            resource.setrlimit(resource.RLIMIT_AS, (_memory_in_use() + MEMORY, resource.RLIM_INFINITY))
            is_limited = True
        for number in range(max(first, start), first + count):
            random = np.random.default_rng([seed, number - first, *kind.encode()])
            files = FORMATS[kind].damage(whole, random, code)
            print(json.dumps({"start": number}), flush=True)
            signal.alarm(SECONDS)
            outcome, message = open_case(kind, files, sandbox, expected)
            signal.alarm(0)
            if outcome == "code run":
                (sandbox / "canary").rmdir()
            print(json.dumps({"end": number, "outcome": outcome, "message": message}), flush=True)


def _memory_in_use() -> int:
    found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def fuzz(folder: Path, kinds: Sequence[str], seed: int, count: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Open `count` damaged files of each kind; return how often each outcome came, by kind, and the failures."""
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    failures: list[str] = []
    start = 0
    while start < count * len(kinds):
        arguments = [sys.executable, "-m", "tests.fuzz.runner", str(folder), *map(str, (seed, count, start)), *kinds]
        # Warnings of libraries are not what this is about.
        process = subprocess.run(
            arguments, cwd=REPOSITORY, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        last = {"end": -1}
        for line in _read_lines(process.stdout):
            last = line
            if "end" in line:
                kind = kinds[line["end"] // count]
                outcomes[kind][line["outcome"]] += 1
                if line["outcome"] not in ("refused", "accepted and right"):
                    failures.append(f"{kind} {line['end'] % count}: {line['outcome']}: {line['message']}")
        if process.returncode == 0:
            break
        if "end" in last:
            raise AssertionError(f"after {last}: {process.stderr[-2000:]}")
        # A signal ended it in the middle of a case: the alarm, or a fault.
        outcome = "hang" if process.returncode == -signal.SIGALRM else f"ended by {-process.returncode}"
        kind = kinds[last["start"] // count]
        outcomes[kind][outcome] += 1
        failures.append(f"{kind} {last['start'] % count}: {outcome}: {process.stderr[-500:]}")
        start = last["start"] + 1
    return outcomes, failures


def _read_lines(printed: str) -> Iterator[dict[str, Any]]:
    for line in printed.splitlines():
        if line.startswith(('{"start"', '{"end"')):
            yield json.loads(line)


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), sys.argv[5:], *map(int, sys.argv[2:5]))
