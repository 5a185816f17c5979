"""The README and the guides: their commands and Python examples, as they stand but for paths and sizes.

The other guides have tests of their own.
"""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY, Command, Tool, write_checkpoint, write_image

GUIDES = ("README.md", "docs/training.md", "docs/recipes.md", "docs/data.md", "docs/testing.md", "docs/networks.md")

PATHS = {"/data/mine": "images", "/data/packed": "packed"}
SMALL = (
    "model.width=0.25", "model.input_size=64",
    "model.hidden=[16,16]", "data.batch_size=8", "data.num_workers=0", "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
)  # fmt: skip

# They install, train on eight GPUs or on ImageNet, download weights, or are every run of this project's tests.
SKIPPED = ("pip install", "devices=8", "experiment=finetune/")

EXAMPLES = {
    "batch_size=64": "batch_size=8, crop=64, num_workers=0",
    'build_net("zf5", num_classes=len': 'build_net("zf5", width=0.25, input_size=64, num_classes=len',
    "max_epochs=70": "max_epochs=1, logger=False, enable_checkpointing=False, accelerator='cpu'",
}


def find_blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / guide).read_text(), re.DOTALL)


def find_commands(guide: str) -> list[str]:
    lines = [line for block in find_blocks(guide, "sh") for line in block.splitlines()]
    return [line for line in lines if not any(word in line for word in SKIPPED)]


@pytest.mark.slow
@pytest.mark.parametrize("guide", [guide for guide in GUIDES if guide != "docs/networks.md"])
def test_commands(guide: str, image_folder: Path, tmp_path: Path, command: Command, tool: Tool) -> None:
    write_checkpoint(tmp_path / "runs/mine/best.ckpt", class_names=("blue", "green", "red"))
    for name in ("photo.jpg", "photos/a.jpg"):
        write_image(tmp_path / name, 150, 110, (200, 40, 40))
    shutil.copytree(REPOSITORY / "results", tmp_path / "results")
    commands = find_commands(guide)
    assert len(commands) >= 3
    for line in commands:
        for old, new in PATHS.items():
            line = line.replace(old, new)  # noqa: PLW2901
        python, first, *arguments = shlex.split(line, comments=True)
        assert python == "python"
        if "name=mine" in arguments:
            shutil.rmtree(tmp_path / "runs/mine")
        small = [*SMALL, "sizes=single"] if "sizes=random" not in arguments else SMALL
        result = tool(*arguments) if first == "-m" else command(first, *arguments, *(small * (first == "train.py")))
        assert result.returncode == 0, f"{line}\n{result.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["README.md", "docs/data.md", "docs/training.md", "docs/networks.md"])
def test_python_examples(guide: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "runs/mine/best.ckpt")
    if guide == "docs/data.md":
        shutil.rmtree(image_folder / "val")
    images = sorted(path.relative_to(image_folder / "train") for path in image_folder.glob("train/*/*"))
    names: dict = {"pixels": np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)}
    for block in find_blocks(guide, "python"):
        for old, new in {**PATHS, **EXAMPLES}.items():
            block = block.replace(old, new)  # noqa: PLW2901
        exec(compile(block, guide, "exec"), names)
    if guide == "README.md":
        assert names["logits"].shape == (1, 10)
    elif guide == "docs/data.md":
        moved = sorted(path.relative_to(image_folder / "val") for path in image_folder.glob("val/*/*"))
        assert moved == images[::10]
        assert len(moved) >= 2
    elif guide == "docs/networks.md":
        assert names["maps"].shape == (1, 512, 31, 41)
        assert names["logits"].shape == (2, 10)
        assert {vector.shape for vector in names["features"].values()} == {(1, 64 * 50)}
        assert len(names["features"]) == 96
    else:
        assert names["trainer"].global_step == 3


@pytest.mark.parametrize(
    "guide", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(guide: str) -> None:
    path = REPOSITORY / guide
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) < 200


@pytest.mark.parametrize("folder", ["mini", "mini_caltech", "mini_timm"])
def test_one_command_trains_every_cell_of_a_table_in_miniature(folder: str) -> None:
    (line,) = [line for line in find_commands("docs/results.md") if f" --multirun experiment={folder}/" in line]
    named = line.split("experiment=")[1].split()[0].split(",")
    files = (REPOSITORY / "conf/experiment" / folder).glob("*.yaml")
    assert sorted(named) == sorted(f"{folder}/{path.stem}" for path in files)
