"""The loggers that the metrics of a run go to: TensorBoard, CSV, Weights & Biases, MLflow."""

import csv
import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from spp_cls.cli.errors import UserError, shorten
from spp_cls.cli.files import replace_atomically
from spp_cls.cli.reading import check_regular
from spp_cls.cli.targets import bind_target, call_bound
from spp_cls.training.run.overwriting import Overwriting

TENSORBOARD_FOLDER, WANDB_FOLDER, MLFLOW_FOLDER = "tensorboard", "wandb", "mlflow"
CSV_FILE = Path("csv", "metrics.csv")

# What the loggers write into a run folder. Of MLflow, the description of an experiment is not of a run: the next one
# finds the experiment by it.
LOG_FILES = (
    f"{TENSORBOARD_FOLDER}/**/events.out.tfevents*",
    f"{TENSORBOARD_FOLDER}/hparams.yaml",
    str(CSV_FILE),
    f"{WANDB_FOLDER}/*run-*/**/*",
    f"{WANDB_FOLDER}/debug*.log",
    f"{MLFLOW_FOLDER}/*/*/**/*",
)


def create_loggers(nodes: Mapping[str, Mapping[str, Any]], resume_step: int = 0) -> list[Logger]:
    """Return the logger that each node of the configuration names as `_target_`.

    Nothing is written yet. `resume_step` is the step of the checkpoint that the run resumes from, 0 for a new run; a
    class or function with a parameter of this name gets it, and leaves out what was logged from that step on.

    Raises:
        UserError: if a class or function cannot be found, refuses its keys or is not a Lightning logger.
    """
    loggers = []
    for name, node in nodes.items():
        target = bind_target(node, f"logger.{name}")
        if "resume_step" in inspect.signature(target.func).parameters:
            target = partial(target, resume_step=resume_step)
        logger = call_bound(target, f"logger.{name}")
        if not isinstance(logger, Logger):
            raise UserError(f"logger.{name}: {logger!r} is not a logger of Lightning")
        loggers.append(logger)
    return loggers


def create_tensorboard_logger(folder: str | Path, resume_step: int = 0) -> TensorBoardLogger:
    """Return a logger that writes TensorBoard's event files to `folder`/tensorboard."""
    return TensorBoardLogger(folder, name="", version=TENSORBOARD_FOLDER, purge_step=resume_step)


def create_wandb_logger(
    folder: str | Path, project: str, name: str, mode: Literal["online", "offline"] = "online", resume_step: int = 0
) -> Logger:
    """Return a logger that writes to Weights & Biases; its files are in `folder`/wandb.

    A run that resumes goes on in its run there, whose id is in the name of a folder that wandb made.

    Raises:
        UserError: if wandb is not installed.
    """
    _check_installed("wandb")

    def open_run() -> Logger:
        # Named by date and time, as in offline-run-20260131_235959-a1b2c3d4.
        names = sorted(path.name.removeprefix("offline-") for path in Path(folder, WANDB_FOLDER).glob("*run-*-*"))
        run_id = names[-1].split("-", 2)[2] if names and resume_step else None
        return WandbLogger(name, folder, run_id, offline=mode == "offline", project=project)

    return ServiceLogger(open_run)


def create_mlflow_logger(
    folder: str | Path, experiment: str, name: str, tracking_uri: str | None = None, resume_step: int = 0
) -> Logger:
    """Return a logger that writes to MLflow's server at `tracking_uri`; None: to files in `folder`/mlflow.

    A run that resumes goes on in its run there, which is found by the path of `folder`.

    Raises:
        UserError: if MLflow is not installed.
    """
    _check_installed("mlflow")
    path = Path(folder).absolute()
    address = tracking_uri or f"file:{path / MLFLOW_FOLDER}"

    def open_run() -> Logger:
        if address.startswith("file:"):
            # MLflow itself would rather have a database, which needs more packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            run_id = _find_mlflow_run(address, experiment, str(path)) if resume_step else None
            logger = MLFlowLogger(experiment, name, address, {"run_folder": str(path)}, run_id=run_id)
            # Asks the server for the run, or for a new one.
            assert logger.run_id
        except Exception as error:  # of MLflow, which may not be imported above
            reason = " ".join(str(error).split())
            raise UserError(f"MLflow at {address}: {reason}; set logger.mlflow.tracking_uri") from error
        return logger

    return ServiceLogger(open_run)


def _find_mlflow_run(address: str, experiment: str, run_folder: str) -> str | None:
    """Return the id of the newest run of a run folder; None where there is none."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    return next((run.info.run_id for run in runs if run.data.tags.get("run_folder") == run_folder), None)


def _check_installed(package: str) -> None:
    if find_spec(package) is None:
        raise UserError(f'logger={package} needs {package}; install it with: pip install "spp_cls[{package}]"')


class ServiceLogger(Logger):
    """A logger of Lightning that `open_run` makes when something is first logged, in the first process.

    Nothing is written or sent before. The run is closed at the end, so that the next one of the process opens its own.
    """

    name = "service"
    version = ""

    def __init__(self, open_run: Callable[[], Logger]) -> None:
        super().__init__()
        self._open_run = open_run
        self._logger: Logger | None = None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log metrics of a step."""
        if self._logger is None:
            self._logger = self._open_run()
        self._logger.log_metrics(metrics=metrics, step=step)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Leave them out: the run folder has the configuration."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run."""
        if self._logger is not None:
            self._logger.finalize(status)
            if isinstance(self._logger, WandbLogger):
                self._logger.experiment.finish()
            self._logger = None


def create_csv_logger(folder: str | Path, resume_step: int = 0) -> "CSVLogger":
    """Return a logger that writes `folder`/csv/metrics.csv."""
    return CSVLogger(Path(folder) / CSV_FILE, resume_step, Overwriting(Path(folder)).find_place)


class CSVLogger(Logger):
    """Writes a CSV file with a row for each logging and a column for each metric, empty where it was not logged.

    A file that is there keeps its rows of steps before `resume_step`; Lightning's own CSVLogger would delete it. The
    file is written whole with each checkpoint and at the end, to the path that `find_place` returns for its own.
    """

    name = "csv"
    version = ""

    def __init__(
        self, path: Path, resume_step: int = 0, find_place: Callable[[Path], Path] = lambda path: path
    ) -> None:
        super().__init__()
        self.path = path
        self._find_place = find_place
        self._resume_step = resume_step
        self._rows: list[dict[str, Any]] | None = None
        self._is_saved = True

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, to be written when the logger is saved."""
        if self._rows is None:
            self._rows = self._read_rows()
        self._rows.append({"step": step, **metrics})
        self._is_saved = False

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Leave them out: the run folder has the configuration."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if self._is_saved or self._rows is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(self._find_place(self.path)) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in self._rows for key in row)))
            writer.writeheader()
            writer.writerows(self._rows)
        self._is_saved = True

    def _read_rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        try:
            check_regular(self.path)
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < self._resume_step]
            if any(None in row or None in row.values() for row in rows):
                raise ValueError("a row has more or fewer cells than the header")
        except (KeyError, TypeError, ValueError, csv.Error, OSError) as error:
            raise UserError(f"{self.path} is not a file of metrics ({shorten(error)}); move it away") from error
        return rows
