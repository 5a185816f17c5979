"""Small generated data for the tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _seed() -> None:
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


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run train.py or eval.py as a user would, in an empty folder."""

    def run(script: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        return subprocess.run(
            [sys.executable, str(REPOSITORY / script), *overrides],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
            check=False,
        )

    return run


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line on stderr of a command that was refused."""
    assert result.returncode == 1, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
