"""Predictions of a checkpoint and its exports, against the evaluator and against the steps written out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import spp_cls
from spp_cls.data.sources import open_source
from spp_cls.evaluation import evaluate
from spp_cls.export.formats import export_net
from tests.conftest import CLASSES, Result, Tool, error_of, write_checkpoint, write_image, write_image_folder

NETS = ["best.ckpt", "export", "export/model.onnx", "export/model.pt2"]


# Of a score: Pillow's resized pixels, which stand in for ours in the steps written out, differ by up to a grey level.
GREY_LEVEL = 5e-3


def lines_of(result: Result) -> list[dict]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def expected_scores(exported: Path, image: Path, protocol: str) -> list[float]:
    """Whole-image and crop protocols as the README states them, step by step."""
    net = spp_cls.load_net(exported / "best.ckpt")
    picture = Image.open(image)
    # 256 / 224 of the training crop of 64, rounded.
    scale = 73 / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
    pixels = (np.asarray(picture, np.float32) - np.float32([123.675, 116.28, 103.53])) / np.float32(57.6)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    height, width = whole.shape[2:]
    if protocol.startswith("full"):
        parts = [whole]
    else:
        centre = [((height - 64) // 2, (width - 64) // 2)]
        corners = [(top, left) for top in (0, height - 64) for left in (0, width - 64)]
        places = centre if protocol == "crop1" else centre + corners
        parts = [whole[:, :, top : top + 64, left : left + 64] for top, left in places]
    if protocol in ("full2", "crop10"):
        parts += [part.flip(-1) for part in parts]
    with torch.inference_mode():
        return torch.stack([net(part).softmax(1)[0] for part in parts]).mean(0).tolist()


@pytest.mark.parametrize("net", NETS)
def test_protocols_on_whole_images_and_crops(net: str, exported: Path, tmp_path: Path, tool: Tool) -> None:
    write_image(tmp_path / "wide.png", 150, 100, (200, 40, 40))
    write_image(tmp_path / "high.png", 90, 200, (40, 40, 200), seed=1)
    for protocol in ("full1", "full2", "crop1", "crop10"):
        arguments = ("wide.png", "high.png", "format=json", f"protocol={protocol}")
        lines = lines_of(tool("spp_cls.predict", str(exported / net), *arguments))
        assert [(line["image"], line["protocol"]) for line in lines] == [("wide.png", protocol), ("high.png", protocol)]
        for line in lines:
            expected = expected_scores(exported, tmp_path / line["image"], protocol)
            found = line["classes"]
            assert [each["class"] for each in found] == [CLASSES[each["index"]] for each in found]
            assert [each["score"] for each in found] == pytest.approx(sorted(expected, reverse=True), abs=GREY_LEVEL)
            assert found[0]["index"] == int(np.argmax(expected))


@pytest.mark.parametrize("protocol", ["map10", "map98"])
def test_protocols_on_maps_are_the_evaluators(protocol: str, exported: Path, tmp_path: Path, tool: Tool) -> None:
    source = open_source("imagefolder", write_image_folder(tmp_path / "images", train=1, val=1), "val")
    net = spp_cls.load_net(exported / "best.ckpt")
    expected = evaluate(net, source, [protocol], progress=False)[protocol]
    for name in NETS[:2]:
        lines = lines_of(
            tool("spp_cls.predict", str(exported / name), "images/val", "format=json", f"protocol={protocol}")
        )
        assert [line["image"] for line in lines] == [f"images/val/{source.name(i)}" for i in range(len(source))]
        found = torch.tensor([[each["score"] for each in line["classes"]] for line in lines])
        # One image at a time instead of many: sums in another order.
        torch.testing.assert_close(found, expected.scores, rtol=1e-5, atol=1e-6)
        assert [[each["index"] for each in line["classes"]] for line in lines] == expected.classes.tolist()
    for name in NETS[2:]:
        message = error_of(tool("spp_cls.predict", str(exported / name), "images/val", f"protocol={protocol}"))
        assert f"{protocol} pools windows of feature maps" in message
        assert "choose among crop1, crop10, full1, full2, warp1, or give the checkpoint" in message


def test_the_table_has_the_best_classes_of_each_image(exported: Path, tmp_path: Path, tool: Tool) -> None:
    write_image(tmp_path / "a=b.jpg", 150, 100, (200, 40, 40))
    write_image(tmp_path / "deep/er/1.PNG", 80, 90, (40, 40, 200))
    (tmp_path / "deep/notes.txt").write_text("no image")
    result = tool("spp_cls.predict", str(exported / "best.ckpt"), "a=b.jpg", "deep", "top=2")
    assert result.returncode == 0, result.stderr
    header, _, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header == ["image", "class", "score"]
    for path, first, second in (("a=b.jpg", *rows[:2]), ("deep/er/1.PNG", *rows[2:])):
        expected = expected_scores(exported, tmp_path / path, "full1")
        order = np.argsort(expected)[::-1]
        assert first[:2] == [path, CLASSES[order[0]]]
        assert second[:1] == [CLASSES[order[1]]]
        scores = [float(first[2]), float(second[1])]
        assert scores == pytest.approx([expected[order[0]], expected[order[1]]], abs=GREY_LEVEL)


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_damaged_image_is_named_and_the_others_are_printed(
    form: str, exported: Path, tmp_path: Path, tool: Tool
) -> None:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        write_image(tmp_path / "photos" / name, 150, 100, (200, 40, 40))
    bad = tmp_path / "photos/2.jpg"
    bad.write_bytes(bad.read_bytes()[:1500])
    result = tool("spp_cls.predict", str(exported / "best.ckpt"), "photos", f"format={form}")
    assert error_of(result).startswith("error: cannot decode the image photos/2.jpg: ")
    assert "photos/1.jpg" in result.stdout
    assert "photos/3.jpg" in result.stdout
    assert "photos/2.jpg" not in result.stdout


def test_networks_without_spp_or_without_names(tmp_path: Path, tool: Tool) -> None:
    write_image(tmp_path / "a.jpg", 150, 100, (200, 40, 40))
    write_checkpoint(tmp_path / "best.ckpt", pooling="none", num_classes=7)
    export_net(tmp_path / "best.ckpt", ["onnx"], tmp_path)
    for name in ("best.ckpt", "model.onnx"):
        (line,) = lines_of(tool("spp_cls.predict", name, "a.jpg", "format=json"))
        assert line["protocol"] == "crop1"
        assert len(line["classes"]) == 5
        assert [each["class"] for each in line["classes"]] == [str(each["index"]) for each in line["classes"]]
        message = error_of(tool("spp_cls.predict", name, "a.jpg", "protocol=full1"))
        assert "without SPP runs crop1, crop10, warp1" in message or "takes images of 64 x 64 pixels" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["best.ckpt"], "name a network and images: python -m spp_cls.predict NET IMAGE..."),
        (["best.ckpt", "nowhere.jpg"], "there is no image nowhere.jpg"),
        (["best.ckpt", "empty"], "there is no image in the folder empty"),
        (["nowhere.ckpt", "a.jpg"], "there is no checkpoint nowhere.ckpt"),
        (["nowhere.onnx", "a.jpg"], "there is no file nowhere.onnx"),
        (["a.jpg", "a.jpg"], "a.jpg is not a checkpoint of spp_cls"),
        (["best.ckpt", "a.jpg", "protocol=full3"], "there is no protocol 'full3'"),
        (["best.ckpt", "a.jpg", "format=xml"], "format is table or json, not 'xml'"),
        (["best.ckpt", "a.jpg", "top=0"], "top is a whole number from 1, not 0"),
        (["best.ckpt", "a.jpg", "protocl=full1"], "there is no key protocl; did you mean protocol?"),
        (["grey.ckpt", "a.jpg"], "the network has 1 input channels"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, tool: Tool) -> None:
    write_checkpoint(tmp_path / "best.ckpt")
    write_checkpoint(tmp_path / "grey.ckpt", in_chans=1, mean=(100.0,))
    write_image(tmp_path / "a.jpg", 80, 90, (200, 40, 40))
    (tmp_path / "empty").mkdir()
    assert message in error_of(tool("spp_cls.predict", *arguments))
