"""Several runs by one command, --multirun: a folder for each, and a table of their results."""

import csv
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from spp_cls.cli.errors import FailedError, UserError, catch_errors
from spp_cls.cli.terminal import format_table

# Values that are all on the command line: a,b,c and choice(a,b,c), range(1,4).
_LISTED_VALUES = (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP, ValueType.RANGE_SWEEP)
# What the runs returned, in their order.
_ROWS = "row-*.json"

_BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def list_runs(arguments: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each of the runs of --multirun, without keys whose values the sweeper finds."""
    choices = [
        [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
        if each.value_type in _LISTED_VALUES
        else [cast(str, each.input_line)]
        for each in _parse(arguments)
        if each.value_type in _LISTED_VALUES or not each.is_sweep_override()
    ]
    return [list(run) for run in itertools.product(*choices)]


class RunFolders(NamedTuple):
    """The folder of a run: as the configuration has it, with ${} of other keys, and with their values."""

    written: str
    resolved: str


def set_run_folders(config_dir: Path, arguments: Sequence[str], runs: Sequence[RunFolders]) -> list[str]:
    """Return the arguments of --multirun with a run folder for each of the runs.

    `runs` are those of list_runs; their folders stay if they differ already, and have folders of their own below the
    one that they share otherwise.
    """
    sweeps = [each for each in _parse(arguments) if each.is_sweep_override()]
    all_listed = all(each.value_type in _LISTED_VALUES for each in sweeps)
    if all_listed and len({run.resolved for run in runs}) == len(runs):
        return list(arguments)
    swept = [each.key_or_group for each in sweeps]
    given = [argument for argument in arguments if argument.split("=")[0] == "run_folder"]
    written = {run.written for run in runs}
    folder = written.pop() if len(written) == 1 else "runs/${name}"
    parts = [
        f"{key}=${{hydra:runtime.choices.{key}}}" if (config_dir / key).is_dir() else f"{key}=${{{key}}}"
        for key in swept
    ]
    return [
        *(argument for argument in arguments if argument not in given),
        f"run_folder='{'/'.join([folder, *parts])}'",
    ]


def check_sweep(cfg: DictConfig, launcher: str) -> None:
    """Raise UserError if runs need several processes each, which one launcher cannot give them."""
    devices = cfg.trainer.devices
    one = devices in (1, "1") or (not isinstance(devices, str | int) and len(devices) == 1)
    if launcher == _BASIC_LAUNCHER and not (one and cfg.trainer.num_nodes == 1):
        raise UserError(
            "--multirun trains on one device here, one run after the other; set trainer.devices=1, start each run "
            "by a command of its own, or give each a job of its own with hydra/launcher=slurm"
        )
    if launcher.endswith(".SlurmLauncher") and not isinstance(devices, int):
        raise UserError(f"a job of SLURM has one task a device; set trainer.devices to their number, not {devices}")


def _parse(arguments: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides([each for each in arguments if not each.startswith("-")])


def record_run(action: Callable[[], dict[str, Any]], run_folder: str) -> dict[str, Any]:
    """Run one of several runs; return its row of results, or print its failure and return a row that says so."""
    try:
        return catch_errors(action, Path(run_folder))
    except FailedError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return {"run_folder": run_folder, "error": str(failure)}
    except SystemExit as left:
        if left.code != 1:
            raise
        # The first process of the run says why, and returns the row.
        return {}


class ResultsTable(Callback):
    """Hydra's callback that collects what each run of --multirun returns, in results.csv of the sweep's folder."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget what the runs of an earlier sweep into the same folder returned."""
        for path in Path(config.hydra.sweep.dir).glob(_ROWS):
            path.unlink()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Keep what a run returned, for the process that started it."""
        several = config.hydra.mode.name == "MULTIRUN" and cast(Any, rank_zero_only).rank == 0
        if several and job_return.status == JobStatus.COMPLETED:
            folder = Path(config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            row = {"overrides": " ".join(config.hydra.overrides.task), **job_return.return_value}
            (folder / _ROWS.replace("*", f"{config.hydra.job.num:06}")).write_text(json.dumps(row))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write and print the table; exit with 1 where a run failed."""
        folder = Path(config.hydra.sweep.dir)
        rows = [json.loads(path.read_text()) for path in sorted(folder.glob(_ROWS))]
        if not rows:
            print("error: no run gave a result; is a list of values empty?", file=sys.stderr)
            sys.exit(1)
        with (folder / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
        columns = {
            "run_folder": "run",
            "top1_error": "lowest top-1 error %",
            "epochs": "after epochs",
            "error": "error",
        }
        shown = [key for key in columns if any(key in row for row in rows)]
        print(format_table([columns[key] for key in shown], [[row.get(key, "") for key in shown] for row in rows]))
        print(f"The same as CSV: {folder / 'results.csv'}")
        if "error" in shown:
            sys.exit(1)
