"""Networks of timm, and of the user's own, in files: folders, ONNX and .pt2, and those that cannot be written."""

import json
from pathlib import Path

import pytest
import timm
import torch

import spp_cls
from spp_cls import Backbone, UserError
from spp_cls.export import formats, trials
from spp_cls.export.exported import open_exported
from spp_cls.models import backbone
from tests.conftest import FEW_SIZES, Tool, error_of, write_checkpoint

TIMM = {"name": "timm/resnet10t", "levels": (2, 1), "hidden": (), "std": (58.0, 57.0, 57.0), "interpolation": "bicubic"}


@pytest.fixture(autouse=True)
def _few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "SIZES", FEW_SIZES)


@pytest.mark.parametrize("pooling", ["spp", "avg"])
def test_a_folder_is_read_by_load_net_and_by_timm(pooling: str, tmp_path: Path) -> None:
    net = write_checkpoint(tmp_path / "a.ckpt", **TIMM, pooling=pooling, class_names=("a", "b", "c"))
    with torch.no_grad():
        # Statistics unlike those of a new network.
        net.backbone.model.bn1.running_mean.normal_()
    torch.save(
        {**torch.load(tmp_path / "a.ckpt"), "state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}},
        tmp_path / "a.ckpt",
    )
    formats.export_net(tmp_path / "a.ckpt", ["safetensors"], tmp_path / "out")
    images = torch.randn(2, 3, 70, 90)
    expected = net(images)
    loaded = spp_cls.load_net(tmp_path / "out")
    assert loaded.config == net.config
    assert torch.equal(loaded(images), expected)
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(by_timm(images), expected)
    assert by_timm.pretrained_cfg["label_names"] == ("a", "b", "c")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["preprocessing"]["interpolation"] == "bicubic, antialiased"
    backbone = timm.create_model("resnet10t", num_classes=0).eval()
    backbone.load_state_dict(loaded.backbone.model.state_dict())
    assert torch.equal(backbone.forward_features(images), net.forward_features(images))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pooling"), [("resnet10t", "avg"), ("resnet10t", "spp")])
def test_onnx_and_pt2_take_any_size(name: str, pooling: str, tmp_path: Path) -> None:
    net = write_checkpoint(tmp_path / "a.ckpt", **{**TIMM, "name": f"timm/{name}"}, pooling=pooling)
    lines = formats.export_net(tmp_path / "a.ckpt", ["onnx", "torch"], tmp_path / "out")
    assert len(lines) == 3
    images = torch.randn(3, 3, 101, 77)
    expected = net(images)
    for file in ("model.onnx", "model.pt2"):
        exported = open_exported(tmp_path / "out" / file)
        assert exported.net.config == net.config
        # Other kernels, whose sums are in another order.
        torch.testing.assert_close(exported.run(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "dla46_c",
            "onnx",
            "dla46_c cannot be written as onnx for images of any size: the padding of sides to multiples of 32",
        ),
        (
            "dla46_c",
            "torch",
            "dla46_c cannot be written as torch for images of any size: the padding of sides to multiples of 32",
        ),
        # PyTorch takes one cell for a case of its own.
        ("convnext_atto", "torch", "the torch export refuses 32 x 64 pixels, which the network takes"),
    ],
)
def test_what_an_exporter_cannot_follow_is_one_line(name: str, kind: str, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.ckpt", **{**TIMM, "name": f"timm/{name}"})
    with pytest.raises(UserError, match=message) as caught:
        formats.export_net(tmp_path / "a.ckpt", [kind], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class BranchingBackbone(Backbone):
    """Goes one of two ways, by the pixels of the image, which no exporter follows."""

    def __init__(self, in_chans: int, width: float) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(in_chans, 4, 3, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        if maps.mean() > 1000:
            maps = maps * 2
        return maps


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_backbone_of_ones_own_that_cannot_be_traced_is_one_line(
    kind: str, tmp_path: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backbone._FACTORIES, "branching", BranchingBackbone)
    write_checkpoint(tmp_path / "a.ckpt", name="branching", levels=(2, 1))
    message = error_of(tool("spp_cls.export", "a.ckpt", f"format={kind}", "out=out"))
    assert message.startswith(f"error: branching cannot be written as {kind} for images of any size: if maps.mean() > ")
    assert "(test_timm_export.py) gives: Could not guard on data-dependent expression" in message
    assert message.endswith(f"; leave {kind} out of format")
    assert not (tmp_path / "out").exists()
