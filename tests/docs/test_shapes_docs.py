"""docs/shapes.md: its commands, on small images and CPUs, and its figures."""

import re
import shlex
from pathlib import Path

import pytest

from spp_cls.data.transforms.buckets import ASPECTS, MOST_SQUEEZE
from spp_cls.data.transforms.shapes import compute_shape
from spp_cls.models.checkpoint import load_checkpoint
from tests.conftest import REPOSITORY, Command, error_of, write_checkpoint

TEXT = (REPOSITORY / "docs/shapes.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]

# For a run of seconds on the test's own images.
SMALL = (
    "data.batch_size=4", "data.num_workers=0", "model=zf5_tiny", "model.hidden=[]", "model.input_size=64",
    "trainer.max_epochs=1", "trainer.accelerator=cpu",
)  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str, image_folder: Path, tmp_path: Path, command: Command) -> None:
    python, script, *arguments = shlex.split(line)
    assert python == "python"
    if script == "eval.py":
        (checkpoint,) = (word.removeprefix("ckpt=") for word in arguments if word.startswith("ckpt="))
        write_checkpoint(tmp_path / checkpoint, class_names=("blue", "green", "red"))
        result = command(script, *arguments, "data.num_workers=0", "trainer.accelerator=cpu")
    else:
        result = command(script, *arguments, *SMALL)
    assert result.returncode == 0, result.stderr
    if "shape=natural" in line:
        # 24 images, six of each of 5:4, 4:5, 1:1 and 2:1, in batches of four: two of each bucket do not fill one.
        listed = (
            r"up to (\d+ x \d+ \(6\)(, |: )){4}in an epoch up to 8 images take a shape beside theirs and 0 are left out"
        )
        assert re.search(listed, result.stdout)


def test_there_are_commands_of_each_kind() -> None:
    for word in (
        "sizes=progressive ",
        "sizes=random:",
        "sizes=progressive:",
        "sizes=[160]",
        "natural ",
        "natural_area",
    ):
        assert any(word in f"{line} " for line in COMMANDS)


def test_the_table_of_shapes() -> None:
    for width, height in ASPECTS:
        side, area = (compute_shape((width, height), 224, kind) for kind in ("natural", "natural_area"))
        assert f"| {width}:{height} | {side[0]} x {side[1]} | {area[0]} x {area[1]} |" in TEXT
    assert TEXT.count(f"{100 * (MOST_SQUEEZE - 1):.1f} %") == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shape=square"], "shape is crop or natural or natural_area, not 'square'"),
        (["shape=natural", "data.cache=device"], "set data.cache=none for shape=natural"),
        (["shape=natural", "model.pooling=none", "sizes=single"], "with SPP it takes any size"),
        (["sizes=[48]", "model.pooling=none"], "zf5 without SPP takes images of 64 x 64 pixels, not 48 x 48"),
        (["sizes=progressive:96"], "the range of sizes is smallest-largest in pixels"),
        (["shape=natural_area", "sizes=[26]"], "an image of 18 x 37 pixels leaves no cell in the last map of zf5"),
        (
            ["shape=natural", "augmentation=custom", "augmentation._target_=tests.data.test_augmentation.RandomWindow"],
            "shape=natural takes augmentations of whole images",
        ),
    ],
)
def test_mistakes(overrides: list[str], message: str, image_folder: Path, tmp_path: Path, command: Command) -> None:
    data = ("experiment=paper", "data=imagefolder", "data.root=images")
    assert message in error_of(command("train.py", *data, *SMALL, *overrides))
    assert not (tmp_path / "runs").exists()


def test_a_run_with_another_shape_is_not_resumed(image_folder: Path, tmp_path: Path, command: Command) -> None:
    run = ("experiment=paper", "data=imagefolder", "data.root=images", *SMALL, "name=mine", "sizes=single")
    assert command("train.py", *run).returncode == 0
    assert "shape was crop, is natural" in error_of(command("train.py", *run, "shape=natural"))
    # The configuration of a version that knew crops only.
    config = tmp_path / "runs/mine/config.yaml"
    config.write_text(config.read_text().replace("shape: crop\n", ""))
    assert command("train.py", *run, "trainer.max_epochs=2").returncode == 0
    assert len(load_checkpoint(tmp_path / "runs/mine/last.ckpt")["validation_errors"]) == 2
