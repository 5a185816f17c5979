"""SLURM on one machine, as far as submitit and Lightning use it: sbatch, srun, scontrol requeue, sacct.

Nodes are groups of processes of this machine. A job and its tasks leave their process numbers and states as files in
the folder FAKE_SLURM.
"""

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def install(folder: Path) -> dict[str, str]:
    """Write the commands into a folder; return the environment in which they are found."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        (programs / name).chmod(0o755)
    # What a SLURM around the tests says of its own job is not meant for them.
    outside = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return outside | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def options_of(script: Path) -> dict[str, str]:
    """Read the #SBATCH lines of a batch script."""
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    words = [word.removeprefix("--") for line in lines for word in shlex.split(line)[1:]]
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def sbatch(folder: Path, script: str) -> None:
    """Start a job for a batch script, or for each element of its array."""
    number = str(os.getpid())
    copy = folder / f"{number}.sh"
    copy.write_text(Path(script).read_text())
    elements = options_of(copy).get("array", "").partition("%")[0].rpartition("-")[2]
    for element in range(int(elements) + 1) if elements else [""]:
        name = f"{number}_{element}" if elements else number
        (folder / f"{name}.state").write_text("RUNNING")
        subprocess.Popen(
            [sys.executable, __file__, "job", number, str(element), str(copy)],
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    print(f"Submitted batch job {number}")


def job(folder: Path, number: str, element: str, script: str) -> None:
    """Run a batch script, again where it was submitted again meanwhile."""
    options = options_of(Path(script))
    nodes, tasks = int(options.get("nodes", 1)), int(options.get("ntasks-per-node", 1))
    name = f"{number}_{element}" if element else number
    environment = os.environ | {
        "SLURM_JOB_ID": number, "SLURM_JOB_NAME": options.get("job-name", "job"), "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes * tasks), "SLURM_NTASKS_PER_NODE": str(tasks), "FAKE_SLURM_JOB": name,
        **({"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": element} if element else {}),
        **({"SLURM_CPUS_PER_TASK": options["cpus-per-task"]} if "cpus-per-task" in options else {}),
    }  # fmt: skip
    output = in_pattern(options.get("output", "slurm-%j.out"), number, element)
    # submitit makes the folder only once it has the job's number.
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    again, starts = True, 0
    while again:
        environment["SLURM_RESTART_COUNT"] = str(starts)
        starts += 1
        with open(output, "ab") as file:
            ended = subprocess.run(
                ["bash", script], env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
            )
        again = (folder / f"{name}.requeue").exists()
        (folder / f"{name}.requeue").unlink(missing_ok=True)
    (folder / f"{name}.state").write_text("COMPLETED" if ended.returncode == 0 else "FAILED")


def srun(folder: Path, *arguments: str) -> int:
    """Run a command as the tasks of this job."""
    words = list(arguments)
    outputs = []
    while words[0].startswith("--"):
        if words.pop(0) in ("--output", "--error"):
            outputs.append(words.pop(0))
    started = []
    per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
    for task in range(int(os.environ["SLURM_NTASKS"])):
        numbers = {"SLURM_PROCID": task, "SLURM_LOCALID": task % per_node, "SLURM_NODEID": task // per_node}
        array = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"]), os.environ.get("SLURM_ARRAY_TASK_ID")
        files = [open(in_pattern(path, *array, str(task)), "ab") for path in outputs]  # noqa: SIM115
        stdout, stderr = files if files else (None, None)
        environment = os.environ | {key: str(value) for key, value in numbers.items()}
        started.append(subprocess.Popen(words, env=environment, stdout=stdout, stderr=stderr, start_new_session=True))
    (folder / f"{os.environ['FAKE_SLURM_JOB']}.tasks").write_text(" ".join(str(process.pid) for process in started))
    return max(abs(process.wait()) for process in started)


def scontrol(folder: Path, _: str, name: str) -> None:
    """Submit a job again; all processes of its tasks are ended, of which this is one."""
    (folder / f"{name}.requeue").touch()
    subprocess.Popen([sys.executable, __file__, "end", name], start_new_session=True)


def end(folder: Path, name: str) -> None:
    """End the tasks of a job."""
    for task in (folder / f"{name}.tasks").read_text().split():
        with suppress(ProcessLookupError):
            os.killpg(int(task), signal.SIGTERM)


def sacct(folder: Path, *_: str) -> None:
    """Print the states of all jobs."""
    print("JobID|State|NodeList")
    for path in folder.glob("*.state"):
        print(f"{path.stem}|{path.read_text()}|localhost")


def in_pattern(path: str, job: str, element: str | None, task: str = "0") -> str:
    """Fill in a name of an output file."""
    whole = f"{job}_{element}" if element else job
    for mark, value in (("%A", job), ("%a", element or ""), ("%j", whole), ("%t", task)):
        path = path.replace(mark, value)
    return path


if __name__ == "__main__":
    command, *given = sys.argv[1:]
    sys.exit(globals()[command](Path(os.environ["FAKE_SLURM"]), *given))
