"""docs/exporting.md: every command and every program in it, one after the other."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import spp_cls
from tests.conftest import HIDDEN, REPOSITORY, Command, Tool, write_checkpoint, write_image, write_image_folder

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (REPOSITORY / "docs/exporting.md").read_text(), re.DOTALL)

# For a run of seconds on the test's own images, with a narrow network.
NARROW = {"name": "zf5", "width": 0.125, "hidden": HIDDEN, "std": (1.0,) * 3, "input_size": 64}
SMALL = (
    "model.width=0.125", f"model.hidden={list(HIDDEN)}", "model.input_size=64", "data.batch_size=8",
    "data.num_workers=0", "trainer.max_epochs=1", "sizes=single",
)  # fmt: skip


def shrink_first_layer(path: Path) -> None:
    """Give a network with a std of 1 the logits of one with a std near that of the pixels."""
    checkpoint = torch.load(path)
    checkpoint["state_dict"]["net.backbone.conv1.weight"] /= 57.6
    torch.save(checkpoint, path)


ALONE = 'import sys\nfor name in ("spp_cls", "timm", "pytorch_lightning"):\n    sys.modules[name] = None\n'


@pytest.mark.slow
def test_the_guide_to_exporting(
    tmp_path: Path, tool: Tool, command: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    classes = ("daisy", "rose", "tulip")
    write_checkpoint(tmp_path / "runs/mine/best.ckpt", class_names=classes, **NARROW)
    shrink_first_layer(tmp_path / "runs/mine/best.ckpt")
    # timm's name stands for the network of full width.
    (tmp_path / "full/mine").mkdir(parents=True)
    save_file(spp_cls.build_net("zf5", num_classes=3).state_dict(), tmp_path / "full/mine/model.safetensors")
    write_image(tmp_path / "photo.jpg", 150, 110, (200, 40, 40))
    write_image(tmp_path / "photos/a.jpg", 120, 130, (40, 40, 200))
    write_image_folder(tmp_path / "flowers")
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []
    answers: dict[str, str] = {}
    for language, text in BLOCKS:
        if language == "python":
            if "spp_cls" in text:
                monkeypatch.chdir(tmp_path / "full" if "zf5_spp" in text else tmp_path)
                capfd.readouterr()
                exec(compile(text, "docs/exporting.md", "exec"), {})
                printed = capfd.readouterr().out.strip()
            else:
                result = subprocess.run(
                    [sys.executable, "-I", "-c", ALONE + text], capture_output=True, text=True, check=False
                )
                assert result.returncode == 0, result.stderr
                printed = result.stdout.strip()
            answers[text] = printed
            continue
        assert language == "sh"
        for line in text.splitlines():
            python, first, *arguments = shlex.split(line)
            assert python == "python"
            result = tool(*arguments) if first == "-m" else command(first, *arguments, *SMALL)
            assert result.returncode == 0, result.stderr
            ran.append(line)
            if "protocol=map98" in line:
                assert result.stdout.count(".jpg") == 2
            if first == "train.py":
                assert "new: head.classifier (other classes)" in result.stdout
    assert len(ran) == 7
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "config.json", "model.onnx", "model.pt2", "model.safetensors",
    ]  # fmt: skip

    def best(protocol: str) -> str:
        line = tool("spp_cls.predict", "mine", "photo.jpg", "format=json", f"protocol={protocol}", "top=1").stdout
        return re.findall(r'"class": "(\w+)"', line)[0]

    onnx, torch_alone, timm, by_name = answers.values()
    assert onnx == torch_alone == best("full1")
    assert timm == best("crop1")
    assert by_name == ""


def test_weights_by_name_keep_all_but_the_classifier(tmp_path: Path) -> None:
    import timm

    from spp_cls.export.formats import export_net

    write_checkpoint(tmp_path / "best.ckpt")
    export_net(tmp_path / "best.ckpt", ["safetensors"], tmp_path)
    weights = {"file": str(tmp_path / "model.safetensors"), "num_classes": 3}
    options = {
        "pretrained": True,
        "pretrained_cfg_overlay": weights,
        "hidden": HIDDEN,
        "init": "kaiming",
        "std": (57.6,) * 3,
    }
    net = spp_cls.load_net(tmp_path)
    images = torch.randn(2, 3, 70, 90)
    same = timm.create_model("zf5_tiny_spp", **options, num_classes=3).eval()
    other = timm.create_model("zf5_tiny_spp", **options, num_classes=7).eval()
    assert torch.equal(same(images), net(images))
    assert other(images).shape == (2, 7)
    maps = net.forward_features(images)
    assert torch.equal(other.forward_features(images), maps)
    assert torch.equal(other.forward_head(maps, pre_logits=True), net.forward_head(maps, pre_logits=True))
