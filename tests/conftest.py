"""Small generated data for the tests.

The large libraries are imported where they are used: the process that hands the tests to others needs none of them.
"""

from __future__ import annotations

import importlib
import logging
import os
import runpy
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    import torch

    from spp_cls import SPPNet
    from spp_cls.data.loading.batch import Batch
    from tests.server import Server

REPOSITORY = Path(__file__).parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:
    # A process for each core already; threads of two of them, and of what they start, would wait for each other.
    # PyTorch reads it as it is imported.
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


def write_image(path: Path, width: int, height: int, colour: tuple[int, int, int], seed: int = 0) -> None:
    """Write a noisy picture of one colour."""
    noise = np.random.default_rng(seed).normal(0, 20, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=95)


def write_image_folder(root: Path, train: int = 8, val: int = 3) -> Path:
    """Three classes of different colours, in images of different shapes."""
    colours = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}
    shapes = [(150, 120), (120, 150), (128, 128), (260, 130)]
    for split, count in (("train", train), ("val", val)):
        for number, (name, colour) in enumerate(colours.items()):
            for i in range(count):
                write_image(root / split / name / f"{i}.jpg", *shapes[(i + number) % 4], colour, seed=i)
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images")


@pytest.fixture(scope="session")
def shared_image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("shared") / "images")


def load_epochs(data: Any, epochs: int = 2) -> list[Batch]:
    """Return the training batches of the first epochs of a data module."""
    loader = data.train_dataloader()
    found: list[Batch] = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        found += list(loader)
    return found


@pytest.fixture(scope="session")
def _loaders() -> Iterator[set[Any]]:
    """Iterators of DataLoaders with workers that have not ended."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    started: weakref.WeakSet[Any] = weakref.WeakSet()
    init = _MultiProcessingDataLoaderIter.__init__

    def init_and_note(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        started.add(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_MultiProcessingDataLoaderIter, "__init__", init_and_note)
        yield started


@pytest.fixture(autouse=True)
def end_workers(_loaders: set[Any]) -> Iterator[Callable[[], None]]:
    """End the workers of a test with it: the garbage collector, which finds them later, waits five seconds for each."""

    def end() -> None:
        for batches in list(_loaders):
            batches._shutdown_workers()

    yield end
    end()


Result = subprocess.CompletedProcess[str]
Command = Callable[..., Result]


def run_here(patch: pytest.MonkeyPatch, folder: Path, script: str, *overrides: str) -> int:
    """Run train.py or eval.py in a folder, but in this process; return the status."""
    patch.chdir(folder)
    patch.setattr(sys, "argv", [str(REPOSITORY / script), *overrides])
    # It composes the configuration once more, for a key that no test sets.
    patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
    handlers = logging.root.handlers[:]
    with warnings.catch_warnings():
        # As in a process of its own: filters of the tests before are not in the way.
        warnings.resetwarnings()
        warnings.simplefilter("default")
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as leave:
            return int(leave.code or 0)
        finally:
            # Hydra's writes to a stream that the test closes.
            logging.root.handlers = handlers
    return 0


@pytest.fixture
def command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    end_workers: Callable[[], None],
) -> Command:
    """Run train.py or eval.py in this process, as importing its libraries takes seconds; first in an empty folder."""

    def run(script: str, *overrides: str, folder: Path = tmp_path) -> Result:
        capfd.readouterr()
        status = run_here(monkeypatch, folder, script, *overrides)
        end_workers()
        printed = capfd.readouterr()
        return Result([script, *overrides], status, printed.out, printed.err)

    return run


Tool = Callable[..., Result]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tool:
    """Run a command such as spp_cls.export in an empty folder and in this process, as python -m does."""

    def run(module: str, *arguments: str) -> Result:
        from spp_cls.cli.arguments import run_tool

        found = importlib.import_module(module)
        main = importlib.import_module(f"{module}.__main__").main if hasattr(found, "__path__") else found.main
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        status = 0
        try:
            run_tool(main, list(arguments))
        except SystemExit as leave:
            status = int(leave.code or 0)
        printed = capfd.readouterr()
        return Result([module, *arguments], status, printed.out, printed.err)

    return run


HIDDEN = (16, 16)


def write_checkpoint(path: Path, **options: Any) -> SPPNet:
    """Write a checkpoint as training does, with new weights that tell images apart; return its network."""
    import torch

    from spp_cls import build_net

    std = (57.6,) * options.get("in_chans", 3)
    # Hidden layers of the network's own width would make files of 18 MB.
    defaults = {"name": "zf5_tiny", "hidden": HIDDEN, "num_classes": 3, "init": "kaiming", "std": std, "input_size": 64}
    net = build_net(**{**defaults, **options})
    weights = {f"net.{key}": value for key, value in net.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net_config": asdict(net.config), "state_dict": weights, "epoch": 0}, path)
    return net.eval()


CLASSES = ("blue", "green", "red")

FEW_SIZES = ((64, 64), (96, 70))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with best.ckpt of three classes, and below it the folder of its exports in all formats."""
    import torch

    from spp_cls.export import trials
    from spp_cls.export.formats import export_net

    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    write_checkpoint(folder / "best.ckpt", class_names=CLASSES)
    with pytest.MonkeyPatch.context() as patch:
        # Fewer and smaller images to try the exports on.
        patch.setattr(trials, "SIZES", FEW_SIZES)
        export_net(folder / "best.ckpt", ["safetensors", "onnx", "torch"], folder / "export")
    return folder


def make_inputs(net: SPPNet, *shapes: tuple[int, int, int]) -> list[torch.Tensor]:
    """Random inputs for a network, one batch for each shape of N, H, W: smooth colours with some noise, normalised."""
    import torch

    from spp_cls.data.loading.batch import normalize

    batches = []
    for number, height, width in shapes:
        coarse = torch.rand(number, net.config.in_chans, 4, 5)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        pixels = (255 * (0.7 * smooth + 0.3 * torch.rand(number, net.config.in_chans, height, width))).round()
        batches.append(normalize(pixels, net.config.mean, net.config.std))
    return batches


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Processes of train.py and the other commands that need not import their libraries."""
    from tests.server import Server

    with Server() as started:
        yield started


def run_process(folder: Path, script: str, *overrides: str, **options: Any) -> Result:
    """Run train.py or eval.py in a folder, as a user would."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / script), *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **options,
    )


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line on stderr of a command that was refused."""
    assert result.returncode == 1, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write what tests print with backslashes where it is not text, or it could not be sent between processes."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests of many cases counted."""
    # Reports of setting up and clearing up, at which the counts are complete, are under no name.
    for report in terminalreporter.stats.get("", []):
        for name, value in getattr(report, "user_properties", []):
            if name == "counts" and report.when == "teardown":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
