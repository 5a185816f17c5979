"""Weights & Biases and MLflow beside TensorBoard: the same figures, in one run also after a resume."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spp_cls.training import loggers
from tests.conftest import Command, error_of

RUN = (
    "data=imagefolder", "data.root=images", "data.batch_size=8", "data.num_workers=0", "model.input_size=64",
    "model.hidden=[16,16]",
    "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "name=small", "optimizer.lr=1e-4",
)  # fmt: skip

# Step and value of each point of a metric.
Points = dict[str, set[tuple[int, float]]]


def read_tensorboard(folder: Path) -> Points:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: {(each.step, each.value) for each in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def assert_same(found: Points, expected: Points) -> None:
    assert set(found) == set(expected)
    for name, points in expected.items():
        if name == "images_per_second":
            continue
        assert [step for step, _ in sorted(found[name])] == [step for step, _ in sorted(points)], name
        # TensorBoard keeps 32 bits.
        assert [value for _, value in sorted(found[name])] == pytest.approx([v for _, v in sorted(points)], rel=1e-6)


def train(command: Command, logger: str, epochs: int, *options: str) -> None:
    result = command("train.py", *RUN, f"logger=[tensorboard,{logger}]", f"trainer.max_epochs={epochs}", *options)
    assert result.returncode == 0, result.stderr


def read_wandb(path: Path) -> list[Any]:
    """Return the records of a file of wandb, once its service has written the last of them."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    for _ in range(300):
        store, records = DataStore(), []
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            records.append(Record())
            records[-1].ParseFromString(data)
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.2)
    raise AssertionError(f"{path} has no end")


def test_wandb_offline(image_folder: Path, tmp_path: Path, command: Command) -> None:
    wandb: Any = pytest.importorskip("wandb")
    for epochs in (1, 2):
        train(command, "wandb", epochs, "logger.wandb.mode=offline")
    assert wandb.run is None
    folder = tmp_path / "runs/small"
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    # Two parts of one run.
    assert len(files) == 2
    assert len({path.name for path in files}) == 1
    found: Points = {}
    for record in (record for path in files for record in read_wandb(path)):
        items = {each.key or "/".join(each.nested_key): each.value_json for each in record.history.item}
        for name, value in items.items():
            if not name.startswith(("_", "trainer/")):
                found.setdefault(name, set()).add((json.loads(items["trainer/global_step"]), json.loads(value)))
    assert_same(found, read_tensorboard(folder / "tensorboard"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_mlflow_in_files(overwrite: bool, image_folder: Path, tmp_path: Path, command: Command) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    if overwrite:
        # Of a run whose results are removed.
        train(command, "mlflow", 1)
    train(command, "mlflow", 1, f"overwrite={overwrite}")
    train(command, "mlflow", 2)
    folder = tmp_path / "runs/small"
    client = MlflowClient(f"file:{folder / 'mlflow'}")
    (experiment,) = (each for each in client.search_experiments() if each.name != "Default")
    assert experiment.name == "spp_cls"
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("small", "FINISHED")
    found = {
        name: {(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    assert_same(found, read_tensorboard(folder / "tensorboard"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing(
    name: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    line = error_of(command("train.py", *RUN, f"logger=[csv,{name}]"))
    assert line == f'error: logger={name} needs {name}; install it with: pip install "spp_cls[{name}]"'
    assert not (tmp_path / "runs").exists()


def test_an_address_that_does_not_answer(image_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = "logger.mlflow.tracking_uri=http://localhost:1"
    result = command("train.py", *RUN, "logger=[mlflow]", uri, "trainer.max_epochs=1")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: MLflow at http://localhost:1: ")
    assert last.endswith("; set logger.mlflow.tracking_uri")
