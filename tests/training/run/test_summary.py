"""What a run prints at its end: its lowest error, and commands that can be typed as they are."""

import shlex
import sys
from pathlib import Path

import pytest

from spp_cls.models.checkpoint import count_epochs, load_checkpoint
from tests.conftest import Command
from tests.test_newcomers import MODULE
from tests.training.run.test_checkpointing import RUN

SOURCE = """
def open_mine(root, split):
    from spp_cls.data.sources import open_source
    return open_source("imagefolder", root, split)
"""


def test_epochs_are_counted_as_in_the_tables_of_tests(image_folder: Path, tmp_path: Path, command: Command) -> None:
    result = command("train.py", *RUN, "trainer.max_epochs=2")
    epochs = count_epochs(load_checkpoint(tmp_path / "runs/small/best.ckpt"))
    assert f" % (after {epochs} of 2 epochs)\n" in result.stdout


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ((), ["data=imagefolder", "data.root=images"]),
        (
            ("data=custom", "data.kind=my_parts.open_mine", "plugins=[my_parts]", "model.name=my_net"),
            ["data=custom", "data.kind=my_parts.open_mine", "data.root=images", "plugins=[my_parts]"],
        ),
    ],
)
def test_the_command_that_tests_the_network_can_be_typed(
    keys: tuple[str, ...],
    words: list[str],
    image_folder: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "my_parts.py").write_text(MODULE + SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    result = command("train.py", *RUN, "model.levels=[2,1]", *keys)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("Test it:"))
    python, *printed = shlex.split(line.removeprefix("Test it:"))
    assert python == "python"
    assert printed == ["eval.py", "ckpt=runs/small/best.ckpt", *words, "protocol=[crop1,crop10,full1,map10]"]
    result = command(*printed, "data.num_workers=0")
    assert result.returncode == 0, result.stderr
