"""docs/transfer.md: its commands, on small data and at small sides."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Tool, write_checkpoint, write_image_folder
from tests.transfer.data import write_caltech, write_voc
from tests.transfer.test_command import VOC

TEXT = (REPOSITORY / "docs/transfer.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]

SMALL = {"224": "64", "256": "80", "392": "80", "/data/caltech": "caltech", "/data/voc": "voc", "/data/mine": "mine"}


def test_the_commands(tmp_path: Path, tool: Tool) -> None:
    write_checkpoint(tmp_path / "runs/mine/best.ckpt", hidden=(16, 8))
    write_caltech(tmp_path / "caltech", images=5)
    write_voc(tmp_path / "voc", VOC)
    write_image_folder(tmp_path / "mine", train=4, val=2)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/paper.csv").write_bytes((REPOSITORY / "results/paper.csv").read_bytes())
    assert len(COMMANDS) == 6
    for line in COMMANDS:
        for old, new in SMALL.items():
            line = line.replace(old, new)  # noqa: PLW2901
        python, first, module, *arguments = shlex.split(line)
        assert (python, first) == ("python", "-m")
        few = ["draws=2", "train=3"] if "data=caltech101" in arguments else []
        workers = ["data.num_workers=0"] if module == "spp_cls.transfer" else []
        result = tool(module, *arguments, *few, *workers)
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    tables = result.stdout
    assert "Table 7: Caltech-101, accuracy" in tables
    assert "full views beat crops" in tables


@pytest.mark.parametrize("word", ["layer", "view", "data"])
def test_every_choice_is_a_row(word: str) -> None:
    assert f"| `{word}` |" in TEXT
