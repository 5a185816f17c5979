"""The kit for a machine with NVIDIA GPUs: python benchmarks/gpu.py [key=value ...]; benchmarks/gpu.sh starts it.

Tests of what runs on CUDA, benchmarks, and Table 2 in miniature at full width, part by part, each with a time limit.
Results are written as they come: a JSON file for each benchmark, mini.csv, a log for each part and summary.json. The
status is 0 if all parts that were asked for passed. Called again, trainings that were cut off resume.
"""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kit.commands import GRACE_SECONDS, run_commands, stop
from kit.parts import PARTS, Kit, Part, SkipError
from timing import choose_device, describe_run, write_json

from spp_cls.cli.arguments import parse_keys, run_tool
from spp_cls.cli.errors import UserError, suggest
from spp_cls.cli.schema import key
from spp_cls.cli.terminal import format_table
from spp_cls.data.loading.workers import count_cpus

LINES_OF_A_FAILURE = 25


@dataclass(frozen=True)
class Options:
    """The keys of the kit."""

    device: str = key("cuda", words=("cuda", "cpu"), help="cpu: on a machine without a GPU, to try the kit itself")
    size: str = key("full", words=("full", "toy"), help="toy: the smallest sizes at which every part runs")
    parts: tuple[str, ...] = key(tuple(PARTS), help="what to run, in this order")
    data: str = key("data/gpu", help="data set made by benchmarks/gpu_data.py; toy draws its own")
    out: str | None = key(None, help="folder for the results; null: results/gpu, of toy runs/gpu-toy/results")
    runs: str | None = key(None, help="folder for the trainings and checkpoints; null: runs/gpu, of toy runs/gpu-toy")
    minutes: float = key(25.0, above=0, help="time of all parts together")
    at_once: int | None = key(None, least=1, help="trainings side by side on one GPU; null: one for every four CPUs")
    wheels: str | None = key(None, help="for gpu.sh: folder of wheels to install from, without a connection")


def run_part(name: str, part: Part, kit: Kit, deadline: float) -> dict[str, Any]:
    """Run the commands of a part, and return how each went and how the whole did."""
    start = time.monotonic()
    try:
        commands = part.list_commands(kit)
    except (SkipError, UserError) as reason:
        # A damaged data set ends the parts that read it, and no other.
        status = "skipped" if isinstance(reason, SkipError) else "failed"
        return {"part": name, "status": status, "seconds": 0.0, "reason": str(reason), "commands": []}
    environment = {"SPP_CLS_DEVICE": kit.device, "PYTHONUNBUFFERED": "1"}
    if kit.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    logged = [(command, find_log(kit, name, number, part)) for number, command in enumerate(commands)]
    at_once = kit.at_once if part.is_parallel else 1
    found = run_commands(logged, at_once, deadline, environment, fork=kit.device == "cpu")
    statuses = {each["status"] for each in found}
    status = next(each for each in ("failed", "cut off", "passed") if each in statuses)
    return {"part": name, "status": status, "seconds": round(time.monotonic() - start, 1), "commands": found}


def find_log(kit: Kit, name: str, number: int, part: Part) -> Path:
    """Return the log of a command: one for a part, or one for each command where they run side by side."""
    log = kit.out / f"{name}-{number + 1}.log" if part.is_parallel else kit.out / f"{name}.log"
    if part.is_parallel or not number:
        log.unlink(missing_ok=True)
    return log


def read_earlier(path: Path, results: dict[str, Any], chosen: Sequence[str]) -> list[dict[str, Any]]:
    """Return the other parts of an earlier call on the same machine, so that parts can be run in several calls."""
    old = json.loads(path.read_text()) if path.is_file() else {}
    if any(old.get(name) != value for name, value in results.items() if name != "parts"):
        return []
    return [each for each in old["parts"] if each["part"] not in chosen]


def print_failures(found: dict[str, Any]) -> None:
    """Print the ends of the logs of commands that failed."""
    for command in found["commands"]:
        if command["status"] == "failed":
            lines = Path(command["log"]).read_text(errors="replace").splitlines()
            print("\n".join(["", command["log"], *lines[-LINES_OF_A_FAILURE:], ""]), flush=True)


def main(arguments: Sequence[str]) -> None:
    """Run the parts, print how each went, and leave with status 1 if one did not pass."""
    options = parse_keys(
        Options, arguments, "bash benchmarks/gpu.sh [key=value ...]",
        "bash benchmarks/gpu.sh data=data/gpu parts=tests,steps",
    )  # fmt: skip
    chosen = [name for words in options.parts for name in words.split(",")]
    for name in chosen:
        if name not in PARTS:
            raise UserError(f"there is no part {name}; {suggest(name, PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no NVIDIA GPU here; device=cpu size=toy tries the kit on a CPU")
    device = choose_device(options.device)
    is_toy = options.size == "toy"
    # What toy measures means nothing, and its trainings are not those of the full size.
    out = Path(options.out or ("runs/gpu-toy/results" if is_toy else "results/gpu")).absolute()
    runs = Path(options.runs or ("runs/gpu-toy" if is_toy else "runs/gpu")).absolute()
    out.mkdir(parents=True, exist_ok=True)
    results = describe_run("bash benchmarks/gpu.sh", device, size=options.size, cpus=count_cpus(), parts=[])
    earlier = read_earlier(out / "summary.json", results, chosen)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stop.set())
    end = time.monotonic() + 60 * options.minutes - GRACE_SECONDS
    with tempfile.TemporaryDirectory() as scratch:
        kit = Kit(
            device=options.device, is_toy=is_toy, data=Path(options.data).absolute(), out=out, runs=runs,
            scratch=Path(scratch), at_once=options.at_once or max(1, count_cpus() // 4), hardware=results["hardware"],
        )  # fmt: skip
        for number, name in enumerate(chosen):
            # What earlier parts did not need is shared by those that are left.
            now, shares = time.monotonic(), [PARTS[each].share for each in chosen[number:]]
            found = run_part(name, PARTS[name], kit, now + (end - now) * shares[0] / sum(shares))
            results["parts"].append(found)
            print(f"{name}: {found['status']} after {found['seconds']:.0f} s", flush=True)
            print_failures(found)
            write_json(results | {"parts": [*earlier, *results["parts"]]}, str(out / "summary.json"))
    rows = [
        (each["part"], each["status"], f"{each['seconds']:.0f}", each.get("reason", "")) for each in results["parts"]
    ]
    print(f"\n{format_table(('part', 'status', 'seconds', ''), rows)}")
    print(json.dumps({each["part"]: each["status"] for each in results["parts"]}))
    if any(each["status"] != "passed" for each in results["parts"]):
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
