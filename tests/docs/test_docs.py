"""The README and the guides: their commands and Python examples, as they stand but for paths and sizes.

The other guides have tests of their own.
"""

import importlib
import itertools
import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import spp_cls.cli.arguments as arguments_module
from spp_cls.cli.command import compose_checked, read_keys
from spp_cls.cli.schema import check_fields
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

BUILD = runpy.run_path(str(REPOSITORY / "train.py"))["build"]

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


class AcceptedError(Exception):
    """Instead of the work, once a command has found its keys to be right."""


@pytest.mark.parametrize("guide", ["docs/results.md", "benchmarks/README.md"])
def test_commands_that_take_hours_or_a_gpu_are_accepted(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_and_stop(options: object) -> None:
        check_fields(options)
        raise AcceptedError

    monkeypatch.setattr(arguments_module, "check_fields", check_and_stop)
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    accepted = 0
    for line in find_commands(guide):
        words = [word for word in shlex.split(line, comments=True) if not word.startswith(("OMP_NUM", "SPP_CLS"))]
        if words[0] in ("pytest", "sha256sum", "pip"):
            continue
        assert words[0] == ("bash" if words[1].endswith(".sh") else "python")
        if words[1] in ("train.py", "eval.py"):
            for overrides in expand_choices([word for word in words[2:] if word != "--multirun"]):
                keys = read_keys(compose_checked(REPOSITORY / "conf", words[1].removesuffix(".py"), overrides))
                if words[1] == "train.py":
                    BUILD(keys)
        elif words[1] == "-m" or len(words) > 2 or words[1].endswith(".sh"):
            name = f"{words[2]}.__main__" if words[1] == "-m" else Path(words[1]).stem
            with pytest.raises(AcceptedError):
                importlib.import_module(name).main(words[3 if words[1] == "-m" else 2 :])
        else:
            assert (REPOSITORY / words[1]).exists()
        accepted += 1
    assert accepted >= 10


def expand_choices(overrides: list[str]) -> list[list[str]]:
    """List the overrides of each run of a sweep."""
    choices = [
        [f"{name}={value}" for value in values.split(",")] if name in ("experiment", "seed") else [f"{name}={values}"]
        for name, _, values in (override.partition("=") for override in overrides)
    ]
    return [list(each) for each in itertools.product(*choices)]
