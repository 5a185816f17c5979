"""docs/backbones.md: its commands and Python, on small data."""

import re
import shlex
from pathlib import Path

import pytest

from spp_cls.models.timm_models import get_architecture
from spp_cls.models.tracing.traits import find_traits
from tests.conftest import REPOSITORY, Command, Tool, error_of, write_image_folder

TEXT = (REPOSITORY / "docs/backbones.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)

SMALL = (
    "model.input_size=64", "data.batch_size=8", "data.num_workers=0", "trainer.max_epochs=1", "sizes=single",
    "optimizer.lr=0.001", "trainer.accelerator=cpu",
)  # fmt: skip


@pytest.mark.slow
def test_the_guide(tmp_path: Path, command: Command, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path / "flowers", train=4, val=1)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "docs/backbones.md", "exec"), {})
            continue
        for line in text.splitlines():
            python, first, *arguments = shlex.split(line)
            assert python == "python"
            small = SMALL if first == "train.py" else ("data.num_workers=0",)
            result = tool(*arguments) if first == "-m" else command(first, *arguments, *small)
            assert result.returncode == 0, result.stderr
            if first == "train.py":
                assert "timm/resnet10t, " in result.stdout
                assert ("warning: at 64 pixels" in result.stdout) == ("avg" not in line)
            ran += 1
    assert ran == 4


def test_every_network_of_the_table_is_as_measured() -> None:
    rows = [line.split("|")[1:-1] for line in TEXT.splitlines() if line.startswith("| ") and "channels" not in line]
    assert len(rows) >= 30
    compared = []
    for row in rows:
        name, _, stride, computed, measured, *_ = (cell.strip() for cell in row)
        assert computed == measured, name
        if name in ("resnet10t", "convnext_atto", "densenet121", "tf_efficientnet_b0", "dla34"):
            geometry = find_traits(get_architecture(f"timm/{name}")).geometry
            assert (stride, computed) == (str(geometry.stride), f"{geometry.first_centre:g}")
            compared.append(name)
    assert len(compared) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.name=timm/resnet5O"], "timm has no network 'resnet5O'; did you mean resnet50 or"),
        (["model.name=timm/vit_tiny_patch16_224"], "timm/vit_tiny_patch16_224 has no feature map of free size"),
        (["model.name=timm/resnet10t", "model.pooling=none"], "model.pooling spp or avg"),
        (["model.name=timm/vgg11", "model.input_size=20"], "the smallest side it takes is 32"),
        (["model.name=timm/resnet10t", "model.interpolation=lanczos"], "model.interpolation is bilinear or bicubic"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(
    options: list[str], message: str, tmp_path: Path, command: Command
) -> None:
    write_image_folder(tmp_path / "flowers", train=4, val=1)
    run = ("experiment=paper", "model=timm", "data=imagefolder", "data.root=flowers")
    assert message in error_of(command("train.py", *run, *options))
    assert not (tmp_path / "runs").exists()


def test_the_runs_name_has_one_level(tmp_path: Path, command: Command) -> None:
    write_image_folder(tmp_path / "flowers", train=4, val=1)
    run = ("experiment=paper", "model=timm", "model.name=timm/resnet10t", "data=imagefolder", "data.root=flowers")
    result = command("train.py", *run, *SMALL, "trainer.limit_train_batches=1", "trainer.limit_val_batches=1")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["imagefolder-timm-resnet10t-spp"]
