"""Exports: equal to the network, readable without this package, and refused when they are not."""

import contextlib
import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch._export.serde.schema import SCHEMA_VERSION

import spp_cls
from spp_cls.export import formats, portable
from spp_cls.export.trials import Trial, find_largest_difference
from tests.conftest import CLASSES, FEW_SIZES, Command, Tool, error_of, make_inputs, write_checkpoint, write_image

# Batch, height and width: those that the paper's nets are to be right at, an odd one, and a map of one cell.
SHAPES = ((1, 180, 180), (2, 224, 224), (1, 224, 320), (3, 373, 256), (1, 560, 747), (1, 311, 467), (2, 23, 60))

# A process that has onnxruntime and torch alone: images and logits of the network come from a file.
WITHOUT_THIS_PACKAGE = """
import json, sys
for name in ("spp_cls", "timm", "pytorch_lightning", "onnx", "onnxscript"):
    sys.modules[name] = None
import onnxruntime, torch
trials = torch.load(sys.argv[1] + "/trials.pt")
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
said = dict.fromkeys(("preprocessing", "class_names"), "")
program = torch.export.load(sys.argv[1] + "/model.pt2", extra_files=said).module()
differences = {"onnx": [], "torch": []}
with torch.inference_mode():
    for images, logits in trials:
        found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        differences["onnx"].append((found - logits).abs().max().item())
        differences["torch"].append((program(images) - logits).abs().max().item())
found = session.get_modelmeta().custom_metadata_map
shape = session.get_inputs()[0].shape
print(json.dumps({"differences": differences, "onnx": {k: found[k] for k in said}, "torch": said, "shape": shape}))
"""


def run_without_this_package(folder: Path, net: spp_cls.SPPNet, shapes: tuple) -> dict[str, Any]:
    images = make_inputs(net, *shapes)
    with torch.inference_mode():
        trials = [(each, net(each)) for each in images]
    torch.save(trials, folder / "trials.pt")
    result = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_THIS_PACKAGE, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    means = torch.stack([logits.mean(0) for _, logits in trials])
    # Else equal logits would say nothing of what is between.
    assert means.std(0).min() > 0.01
    for differences in found["differences"].values():
        for difference, (_, logits) in zip(differences, trials, strict=True):
            # The bound of the command, by another program on other images.
            assert difference <= 1e-4 * min(1, logits.abs().max().item())
    return found


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3, 2, 1), (5,), (2, 6, 4)])
def test_the_portable_pool_is_the_pool(levels: tuple[int, ...]) -> None:
    pool = spp_cls.SpatialPyramidPool(levels)
    ported = portable.PortablePool(pool)
    random = np.random.default_rng(0)
    for height in range(1, 30):
        for width in (1, 2, 5, 6, 7, 13, 18, 29):
            maps = random.standard_normal((2, 2, height, width), dtype=np.float32)
            # The pool itself is tested against loops over the bins.
            assert torch.equal(ported(torch.from_numpy(maps)), pool(torch.from_numpy(maps)))


@pytest.mark.slow
def test_exports_run_without_this_package_at_every_size(exported: Path) -> None:
    net = spp_cls.load_net(exported / "best.ckpt")
    found = run_without_this_package(exported / "export", net, SHAPES)
    assert found["shape"] == ["batch", 3, "height", "width"]
    assert found["onnx"] == found["torch"]
    assert json.loads(found["onnx"]["class_names"]) == list(CLASSES)
    rule = json.loads(found["onnx"]["preprocessing"])
    assert rule["mean"] == [123.675, 116.28, 103.53]
    assert rule["std"] == [57.6, 57.6, 57.6]
    assert rule["formula"] == "(pixels - mean) / std"
    assert rule["pixel_range"] == [0, 255]
    assert (rule["channels"], rule["min_side"], rule["crop"], rule["smallest_side"]) == ("RGB", 73, 64, 23)
    config = json.loads((exported / "export/config.json").read_text())
    assert (config["preprocessing"], config["label_names"]) == (rule, list(CLASSES))


@pytest.mark.slow
def test_an_export_without_spp_takes_any_batch(tmp_path: Path) -> None:
    net = write_checkpoint(tmp_path / "best.ckpt", pooling="none", hidden=None)
    lines = formats.export_net(tmp_path / "best.ckpt", ["onnx", "torch"], tmp_path)
    assert "beside the network at 64 x 64, 64 x 64" in lines[-1]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    said = dict.fromkeys(("preprocessing", "class_names"), "")
    program = torch.export.load(tmp_path / "model.pt2", extra_files=said).module()
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 64]
    for images in make_inputs(net, (1, 64, 64), (2, 64, 64), (5, 64, 64)):
        with torch.inference_mode():
            logits = net(images)
            # The bound of the command.
            torch.testing.assert_close(program(images), logits, rtol=0, atol=1e-4)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits, rtol=0, atol=1e-4)
        assert logits.abs().max() > 0.1
    assert json.loads(said["preprocessing"])["smallest_side"] == 64
    assert json.loads(said["class_names"]) is None


@pytest.mark.parametrize(
    "options",
    [
        {"class_names": CLASSES},
        {"levels": (4, 1), "num_classes": 12, "input_size": 96, "mean": (100.0, 110.0, 120.0), "init": "paper"},
        {"in_chans": 1, "mean": (99.0,)},
        {"pooling": "none", "input_size": 80},
    ],
)
def test_timm_and_load_net_read_the_folder(options: dict[str, Any], tmp_path: Path) -> None:
    net = write_checkpoint(tmp_path / "best.ckpt", **options)
    formats.export_net(tmp_path / "best.ckpt", ["safetensors"], tmp_path / "mine")
    side = net.config.input_size
    (images,) = make_inputs(net, (2, side, side if net.config.pooling == "none" else side + 30))
    weights = load_file(tmp_path / "mine/model.safetensors")
    assert weights.keys() == net.state_dict().keys()
    for read in (
        timm.create_model(f"local-dir:{tmp_path}/mine", pretrained=True),
        spp_cls.load_net(tmp_path / "mine"),
        spp_cls.load_net(tmp_path / "mine/model.safetensors"),
    ):
        assert read.config == net.config
        assert torch.equal(read.eval()(images), net(images))
    cfg = timm.create_model(f"local-dir:{tmp_path}/mine", pretrained=True).pretrained_cfg
    assert cfg["input_size"] == (net.config.in_chans, side, side)
    if net.config.in_chans == 3:
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=cfg))
        grey = transform(Image.new("RGB", (300, 200), (90, 90, 90)))
        assert grey.shape == (3, side, side)
        expected = [(90 - mean) / std for mean, std in zip(net.config.mean, net.config.std, strict=True)]
        assert grey.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_files_of_version_0_1_are_still_read(tmp_path: Path, tool: Tool) -> None:
    write_checkpoint(tmp_path / "best.ckpt", std=(), hidden=None)
    write_image(tmp_path / "photo.jpg", 80, 90, (200, 10, 10))
    formats.export_net(tmp_path / "best.ckpt", ["onnx", "torch"], tmp_path)
    # It had zf5_tiny as a network, no std, and a division by one inside the networks of init=kaiming.
    config = {"name": "zf5_tiny", "pooling": "spp", "num_classes": 3, "levels": [6, 3, 2, 1], "input_size": 64}
    recipe = json.dumps({**config, "init": "kaiming", "mean": [123.675, 116.28, 103.53]})
    with zipfile.ZipFile(tmp_path / "model.pt2") as new, zipfile.ZipFile(tmp_path / "old.pt2", "w") as old:
        for name in new.namelist():
            if name.endswith("extra/net_config"):
                old.writestr(name.replace("net_config", "net_recipe"), recipe)
            else:
                old.writestr(name, new.read(name))
    model = onnx.load(tmp_path / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == "net_config":
            entry.key, entry.value = "net_recipe", recipe
    onnx.save(model, tmp_path / "old.onnx")
    for suffix in ("pt2", "onnx"):
        of_new = tool("spp_cls.predict", f"model.{suffix}", "photo.jpg", "format=json")
        of_old = tool("spp_cls.predict", f"old.{suffix}", "photo.jpg", "format=json")
        assert of_old.stdout == of_new.stdout
        assert of_old.stdout


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def _few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spp_cls.export.trials.SIZES", FEW_SIZES)


@pytest.mark.usefixtures("_few_sizes")
def test_an_export_that_is_not_the_network_leaves_no_file(tmp_path: Path, tool: Tool, monkeypatch: Any) -> None:
    write_checkpoint(tmp_path / "best.ckpt")
    (tmp_path / "export").mkdir()
    (tmp_path / "export/model.pt2").write_text("of an earlier export")
    before = everything_in(tmp_path)
    right = portable.PortablePool.forward

    def wrong(self: portable.PortablePool, maps: Tensor) -> Tensor:
        # Right for square maps alone.
        return right(self, maps) + 0.01 * (maps.shape[2] - maps.shape[3])

    monkeypatch.setattr(portable.PortablePool, "forward", wrong)
    message = error_of(tool("spp_cls.export", "best.ckpt", "format=[safetensors,torch]"))
    assert "the torch export is not the network: at 96 x 70 pixels a logit differs by " in message
    assert everything_in(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("_few_sizes")
def test_files_move_within_their_folder_which_may_be_another_disk(tmp_path: Path, tool: Tool, monkeypatch: Any) -> None:
    write_checkpoint(tmp_path / "best.ckpt")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    right = os.replace

    def replace(file: Path, place: Path) -> None:
        if (tmp_path / "disk") not in Path(file).resolve().parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        right(file, place)

    monkeypatch.setattr(os, "replace", replace)
    result = tool("spp_cls.export", "best.ckpt", "format=safetensors", "out=out")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("logits", "found", "refused"),
    [
        ([20.0, 0.0], [20.00009, 0.0], False),
        ([20.0, 0.0], [20.0002, 0.0], True),
        ([0.002, 0.001], [0.002, 0.0010001], False),
        ([0.002, 0.001], [0.002, 0.0010005], True),
        ([0.002, 0.001], [0.002, float("nan")], True),
        ([float("nan"), 0.001], [float("nan"), 0.001], True),
    ],
)
def test_the_largest_difference(logits: list[float], found: list[float], refused: bool) -> None:
    trials = [Trial(torch.zeros(1, 3, 8, 9), torch.tensor([logits]))]
    answer = torch.tensor([found])
    if refused:
        with pytest.raises(spp_cls.UserError, match=r"the x export is not the network: at 8 x 9 pixels"):
            find_largest_difference(lambda images: answer, trials, "x")
    else:
        difference = find_largest_difference(lambda images: answer, trials, "x")
        # Rounding of the logits themselves.
        assert difference == pytest.approx(abs(found[0] - logits[0]) + abs(found[1] - logits[1]), abs=2e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one checkpoint: python -m spp_cls.export CHECKPOINT"),
        (["best.ckpt", "last.ckpt"], "name one checkpoint"),
        (["nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["."], "there is no config.json in ."),
        (["best.ckpt", "format=[onnx,keras]"], "format is safetensors, onnx, torch or a list of them, not keras"),
        (["best.ckpt", "format=[]"], "not empty"),
        (["best.ckpt", "formt=onnx"], "there is no key formt; did you mean format?"),
        (["best.ckpt", "format=torch", "out=best.ckpt/x"], "cannot use best.ckpt"),
        (["best.ckpt", "format=torch", "out="], "out is empty; name a folder, or leave out out"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, tool: Tool) -> None:
    write_checkpoint(tmp_path / "best.ckpt")
    assert message in error_of(tool("spp_cls.export", *arguments))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, tool: Tool, monkeypatch: Any) -> None:
    write_checkpoint(tmp_path / "best.ckpt")
    monkeypatch.setitem(sys.modules, package, None)
    message = error_of(tool("spp_cls.export", "best.ckpt"))
    assert f'ONNX needs {package}; install it with: pip install "spp_cls[export]"' in message
    assert not (tmp_path / "export").exists()


def test_a_network_too_large_for_onnx(tmp_path: Path, tool: Tool, monkeypatch: Any) -> None:
    write_checkpoint(tmp_path / "best.ckpt")
    monkeypatch.setattr(formats, "_LARGEST_ONNX", 1_000_000)
    assert "holds no more than 2 GiB" in error_of(tool("spp_cls.export", "best.ckpt", "format=onnx"))


@pytest.mark.usefixtures("_few_sizes")
@pytest.mark.parametrize("form", ["safetensors", "onnx", "torch"])
def test_a_full_disk_leaves_one_line_and_no_file(form: str, tmp_path: Path, tool: Tool) -> None:
    write_checkpoint(tmp_path / "best.ckpt")
    # A limit on the size of a file stands for a disk that is full.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        result = tool("spp_cls.export", "best.ckpt", f"format={form}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error_of(result).startswith("error: cannot write export/model.")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


class Evil:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def rewritten(source: Path, target: Path, changes: dict[str, bytes], root: str = "archive/") -> None:
    """Copy a .pt2 with other contents for some of its records."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if name.removeprefix(root) not in changes:
                new.writestr(name, old.read(name))
        for name, content in changes.items():
            new.writestr(root + name, content)


def evil_pt2(kind: str, source: Path, target: Path, trace: Path) -> None:
    """Write a .pt2 that hides a pickle where torch.export.load reads one."""
    evil = pickle.dumps(Evil(trace))
    weights, constants = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
    with zipfile.ZipFile(source) as file:
        config, program = json.loads(file.read(f"archive/{weights}")), file.read("archive/models/model.json")
    torch.save(Evil(trace), target)
    saved = target.read_bytes()
    if kind == "sample inputs":
        rewritten(source, target, {"data/sample_inputs/model.pt": saved})
    elif kind == "weights of an older layout":
        rewritten(source, target, {"data/weights/model.pt": saved})
    elif kind == "a weight":
        entry = config["config"]["backbone.conv1.bias"]
        entry["use_pickle"] = True
        rewritten(source, target, {weights: json.dumps(config).encode(), f"data/weights/{entry['path_name']}": saved})
    elif kind == "a constant":
        entry = config["config"]["backbone.conv1.bias"] | {"path_name": "opaque_obj_0", "use_pickle": True}
        table = json.dumps({"config": {"x": entry}}).encode()
        rewritten(source, target, {constants: table, "data/constants/opaque_obj_0": evil})
    elif kind == "an archive of an older layout":
        with zipfile.ZipFile(target, "w") as file:
            file.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
            for part in ("exported_program.json", "state_dict.pt", "constants.pt", "example_inputs.pt"):
                file.writestr(f"serialized_{part}", program if part.endswith("json") else saved)


PT2 = ["sample inputs", "weights of an older layout", "a weight", "a constant", "an archive of an older layout"]


@pytest.mark.parametrize("kind", PT2)
def test_predict_runs_no_pickle_of_a_pt2(kind: str, exported: Path, tmp_path: Path, tool: Tool) -> None:
    trace = tmp_path / "trace"
    write_image(tmp_path / "photo.jpg", 80, 90, (200, 10, 10))
    evil_pt2(kind, exported / "export/model.pt2", tmp_path / "evil.pt2", trace)
    message = error_of(tool("spp_cls.predict", "evil.pt2", "photo.jpg"))
    assert "evil.pt2 is not an export of spp_cls" in message
    assert not trace.exists()


@pytest.mark.parametrize("kind", PT2)
def test_torch_itself_runs_it(kind: str, exported: Path, tmp_path: Path) -> None:
    # Else the test above would show nothing.
    trace = tmp_path / "trace"
    evil_pt2(kind, exported / "export/model.pt2", tmp_path / "evil.pt2", trace)
    with contextlib.suppress(Exception):
        torch.export.load(tmp_path / "evil.pt2")
    assert trace.exists()


@pytest.mark.parametrize("name", ["evil.ckpt", "evil", "evil/model.safetensors", "evil.onnx", "evil.pt2"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(
    name: str, zipped: bool, exported: Path, tmp_path: Path, tool: Tool, command: Command
) -> None:
    trace = tmp_path / "trace"
    write_image(tmp_path / "photo.jpg", 80, 90, (200, 10, 10))
    path = tmp_path / name
    if "." not in name:
        path = tmp_path / name / "model.safetensors"
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        shutil.copy(exported / "export/config.json", path.parent)
    content = {"net_config": {"name": "zf5_tiny"}, "state_dict": {}, "x": Evil(trace)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    # It works.
    pickle.loads(pickle.dumps(content))
    trace.rmdir()

    with pytest.raises(spp_cls.UserError, match=r"is not (a checkpoint|an export) of spp_cls"):
        spp_cls.load_net(tmp_path / name)
    assert "of spp_cls" in error_of(tool("spp_cls.export", name))
    assert "of spp_cls" in error_of(tool("spp_cls.predict", name, "photo.jpg"))
    if path.suffix == ".ckpt":
        write_image(tmp_path / "images/val/red/0.jpg", 80, 90, (200, 10, 10))
        error_of(command("eval.py", f"ckpt={name}", "data=imagefolder", "data.root=images", "data.num_workers=0"))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("model_args"), "is not an export of spp_cls"),
        (lambda config: config.update(architecture="resnet50"), "there is no network 'resnet50'"),
        (lambda config: config["model_args"].update(colour="red"), "unknown fields (colour)"),
        (lambda config: config["model_args"].update(levels=[4, 2]), "weights do not fit its configuration, zf5"),
        (lambda config: config["model_args"].update(num_classes=4), "3 class names for 4 classes"),
    ],
)
def test_other_folders(change: Any, message: str, exported: Path, tmp_path: Path) -> None:
    config = json.loads((exported / "export/config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(exported / "export/model.safetensors", tmp_path)
    with pytest.raises(spp_cls.UserError) as caught:
        spp_cls.load_net(tmp_path)
    assert message in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zf5", "convnet5", "overfeat5", "overfeat7"])
def test_the_four_networks_at_the_papers_sizes(name: str, tmp_path: Path) -> None:
    # All of each but the width of the hidden fc layers, of which exporting and loading 550 MB would take minutes.
    net = write_checkpoint(tmp_path / "best.ckpt", name=name, num_classes=10, input_size=224, hidden=(256, 256))
    formats.export_net(tmp_path / "best.ckpt", ["onnx", "torch"], tmp_path)
    run_without_this_package(tmp_path, net, tuple((1, height, width) for _, height, width in SHAPES[:6]))
