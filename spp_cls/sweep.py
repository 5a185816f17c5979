"""Several runs by one command, --multirun: a folder for each, and a table of their results."""

import csv
import json
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from spp_cls.errors import UserError
from spp_cls.text_tables import terminal_table

_BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def own_folders(config_dir: Path, arguments: list[str]) -> list[str]:
    """Return the arguments of --multirun with a run folder of its own for each of the runs."""
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    swept = [
        each.key_or_group for each in OverridesParser.create().parse_overrides(overrides) if each.is_sweep_override()
    ]
    if not swept or any(key in ("name", "run_folder") for key in swept):
        return arguments
    given = [argument for argument in overrides if argument.split("=")[0] == "run_folder"]
    folder = given[-1].partition("=")[2] if given else "runs/${name}"
    parts = [
        f"{key}=${{hydra:runtime.choices.{key}}}" if (config_dir / key).is_dir() else f"{key}=${{{key}}}"
        for key in swept
    ]
    return [
        *(argument for argument in arguments if argument not in given),
        f"run_folder='{'/'.join([folder, *parts])}'",
    ]


def check_sweep(cfg: DictConfig, launcher: str) -> None:
    """Raise UserError where runs one after the other in this process would need other processes."""
    devices = cfg.trainer.devices
    one = devices in (1, "1") or (not isinstance(devices, str | int) and len(devices) == 1)
    if launcher == _BASIC_LAUNCHER and not (one and cfg.trainer.num_nodes == 1):
        raise UserError(
            "--multirun trains on one device here, one run after the other; set trainer.devices=1, start each run "
            "by a command of its own, or give each a job of its own with hydra/launcher=submitit_slurm"
        )


class ResultsTable(Callback):
    """Hydra's callback that collects what each run of --multirun returns, in results.csv of the sweep's folder."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Keep what a run returned, for the process that started it."""
        if config.hydra.mode.name == "MULTIRUN" and isinstance(job_return.return_value, dict):
            folder = Path(config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            row = {"overrides": " ".join(config.hydra.overrides.task), **job_return.return_value}
            (folder / f"{config.hydra.job.num}.json").write_text(json.dumps(row))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write and print the table."""
        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob("*.json"), key=lambda path: int(path.stem))
        rows = [json.loads(path.read_text()) for path in files]
        if not rows:
            return
        with (folder / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        header = ("run", "lowest top-1 error %", "epoch")
        print(terminal_table(header, [(row["run_folder"], row["top1_error"], row["epoch"]) for row in rows]))
        print(f"The same as CSV: {folder / 'results.csv'}")
