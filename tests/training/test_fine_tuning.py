"""Starting from another network's weights, and refusing to go on from them."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from spp_cls import UserError, build_net
from spp_cls.export.formats import export_net
from spp_cls.training.fine_tuning import freeze, init_from
from spp_cls.training.optimization import create_optimizer
from tests.conftest import HIDDEN, Command, error_of, write_checkpoint, write_image
from tests.training.test_optimization import other_net

LAYERS = [f"backbone.conv{i}" for i in range(1, 6)] + ["head.hidden1", "head.hidden2", "head.classifier"]
TINY = {"name": "zf5_tiny", "hidden": HIDDEN, "std": (57.6, 57.6, 57.6)}


def same_layers(net: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    return [
        name
        for name in LAYERS
        if net.get_submodule(name).weight.shape == other.get_submodule(name).weight.shape
        and torch.equal(net.get_submodule(name).weight, other.get_submodule(name).weight)
        and torch.equal(net.get_submodule(name).bias, other.get_submodule(name).bias)
    ]


@pytest.mark.parametrize(
    ("options", "new"),
    [
        ({"num_classes": 3}, {}),
        ({"num_classes": 3, "class_names": ("a", "b", "c")}, {}),
        ({"num_classes": 3, "class_names": ("c", "b", "a")}, {"head.classifier": "other classes"}),
        ({"num_classes": 4}, {"head.classifier": "4 classes, 3 there"}),
        ({"num_classes": 3, "levels": (4, 1)}, {"head.hidden1": "another shape"}),
        (
            {"num_classes": 9, "pooling": "none", "input_size": 64},
            {"head.hidden1": "another shape", "head.classifier": "9 classes, 3 there"},
        ),
    ],
)
def test_what_fits_is_loaded_and_the_rest_is_listed(options: dict, new: dict[str, str], tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "best.ckpt", class_names=("a", "b", "c"))
    for parameter in other.parameters():
        # First weights have biases of zero everywhere.
        torch.nn.init.normal_(parameter)
    write = {f"net.{key}": value for key, value in other.state_dict().items()}
    torch.save(torch.load(tmp_path / "best.ckpt") | {"state_dict": write}, tmp_path / "best.ckpt")
    kept = [name for name in LAYERS if name not in new]
    shown = ", ".join(f"{name} ({reason})" for name, reason in new.items()) or "nothing"
    net = build_net(**TINY, **options)
    assert same_layers(net, other) == []
    path = tmp_path / "best.ckpt"
    assert init_from(net, path) == f"Loaded from {path}: {', '.join(kept)}; new: {shown}"
    assert same_layers(net, other) == kept


def test_an_exported_folder_is_as_good(tmp_path: Path) -> None:
    net, other = build_net(**TINY, num_classes=3), write_checkpoint(tmp_path / "best.ckpt")
    export_net(tmp_path / "best.ckpt", ["safetensors"], tmp_path / "export")
    assert init_from(net, tmp_path / "export").endswith("; new: nothing")
    assert same_layers(net, other) == LAYERS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            TINY | {"std": (57.6, 58, 59)},
            "model.std is (57.6, 58, 59), but (57.6, 57.6, 57.6) there; set the same values",
        ),
        ({"name": "zf5"}, "model.width is 1.0, but 0.25 there"),
        ({"name": "convnet5", "width": 0.25}, "model.name is convnet5, but zf5 there"),
        (TINY | {"in_chans": 1, "mean": (9.0,), "std": (57.6,)}, "model.in_chans is 1, but 3 there"),
    ],
)
def test_other_networks_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "best.ckpt")
    with torch.device("meta"):
        net = build_net(**options, num_classes=3)
    with pytest.raises(UserError, match=re.escape(message)):
        init_from(net, tmp_path / "best.ckpt")


SMALL = (
    "data=imagefolder", "data.root=images", "data.batch_size=8", "data.num_workers=0", "model.input_size=64",
    "model.hidden=[16,16]",
    "trainer.max_epochs=1", "sizes=single", "name=small", "augmentation.pca_std=0.2",
    "experiment=paper", "model=zf5_tiny",
)  # fmt: skip


def test_a_run_starts_from_weights_once_and_refuses_other_keys(
    image_folder: Path, tmp_path: Path, command: Command
) -> None:
    source = write_checkpoint(tmp_path / "source.ckpt", num_classes=5, std=(57.6,) * 3)
    arguments = (*SMALL, "init_from=source.ckpt")
    # So slow that the layers are still those of the file.
    result = command("train.py", *arguments, "optimizer.lr=1e-12")
    assert result.returncode == 0, result.stderr
    loaded, new = LAYERS[:-1], "head.classifier (3 classes, 5 there)"
    assert f"Loaded from source.ckpt: {', '.join(loaded)}; new: {new}" in result.stdout
    weights = torch.load(tmp_path / "runs/small/last.ckpt")["state_dict"]
    for name in loaded:
        torch.testing.assert_close(weights[f"net.{name}.weight"], source.get_submodule(name).weight)

    # The run goes on from its own checkpoint, for which it does not need the other any more.
    (tmp_path / "source.ckpt").unlink()
    slow = ("optimizer.lr=1e-12", "trainer.max_epochs=2")
    result = command("train.py", *arguments, *slow)
    assert result.returncode == 0, result.stderr
    assert "Loaded from" not in result.stdout

    before = {path: path.read_bytes() for path in (tmp_path / "runs/small").iterdir() if path.is_file()}
    changed = ("seed=3", "data.batch_size=4", "model.levels=[4,1]", "augmentation.pca_std=0", "schedule=milestones")
    line = error_of(command("train.py", *arguments, *changed))
    assert "error: the run in runs/small was started with other keys" in line
    assert "augmentation.pca_std was 0.2, is 0" in line
    assert "schedule.patience was 5, is None" in line
    for difference in ("levels was (6, 3, 2, 1), is (4, 1)", "seed was 0, is 3", "data.batch_size was 8, is 4"):
        assert difference in line
    assert "optimizer.lr was 1e-12, is 0.01" in line
    assert "choose another name=..., and init_from=runs/small/last.ckpt to start from its weights" in line
    shutil.move(image_folder / "train/red", image_folder / "train/pink")
    shutil.move(image_folder / "val/red", image_folder / "val/pink")
    assert "(class 2 was red, is pink)" in error_of(command("train.py", *arguments, *slow))
    write_image(image_folder / "train/violet/0.jpg", 90, 90, (90, 0, 90))
    assert "(num_classes was 3, is 4; there were 24 training images, there are 25)" in error_of(
        command("train.py", *arguments, *slow)
    )
    assert before == {path: path.read_bytes() for path in before}


def test_a_start_that_is_not_there(image_folder: Path, command: Command, tmp_path: Path) -> None:
    line = error_of(command("train.py", *SMALL, "init_from=nowhere.ckpt"))
    assert line == "error: there is no checkpoint nowhere.ckpt; give the path of a .ckpt file"
    assert not (tmp_path / "runs").exists()


def test_a_frozen_part_has_no_gradient_no_state_and_keeps_its_statistics() -> None:
    net = other_net()
    assert freeze(net, None) is None
    assert freeze(net, "backbone") == "Frozen: backbone; 312 of 375 parameters"
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = create_optimizer(net, None, backbone_lr_scale=0.5)
    for _ in range(2):
        # As training does around each validation.
        net.eval()
        net.train()
        optimizer.zero_grad()
        net(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"head.classifier.weight", "head.classifier.bias"}
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert len(optimizer.state) == 2
    assert (net.training, net.head.training, net.backbone.training) == (True, True, False)
    assert not net.backbone.get_submodule("norm").training


def test_parts_of_the_backbone_are_frozen_by_name() -> None:
    net = build_net(**TINY, num_classes=3)
    freeze(net, ["backbone.conv1", "backbone.conv2", "head.hidden1"])
    frozen = {name.rpartition(".")[0] for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.conv1", "backbone.conv2", "head.hidden1"}
    assert net.backbone.training
    assert net.head.get_submodule("drop1").training


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("freeze=[backbone,head]", "error: freeze leaves nothing to train; name fewer parts of the network"),
        ("freeze=bakbone", "error: freeze: the network has no part 'bakbone'; did you mean backbone?"),
        ("freeze=3", "error: freeze is a name or a list of names, such as backbone, not 3"),
        ("freeze=''", "error: freeze: the network has no part ''; "),
    ],
)
def test_what_cannot_be_frozen(key: str, message: str, image_folder: Path, tmp_path: Path, command: Command) -> None:
    assert error_of(command("train.py", *SMALL, key)).startswith(message)
    assert not (tmp_path / "runs").exists()


def test_a_run_with_a_frozen_backbone(image_folder: Path, tmp_path: Path, command: Command) -> None:
    source = write_checkpoint(tmp_path / "source.ckpt", num_classes=5, std=(57.6,) * 3)
    options = ("init_from=source.ckpt", "freeze=backbone", "optimizer=adamw", "compile=false", "ema_decay=0.5")
    result = command("train.py", *SMALL, *options)
    assert result.returncode == 0, result.stderr
    assert re.search(r"Frozen: backbone; [\d,]+ of [\d,]+ parameters", result.stdout)
    checkpoint = torch.load(tmp_path / "runs/small/last.ckpt")
    for name, weight in source.state_dict().items():
        moved = not torch.equal(checkpoint["state_dict"][f"net.{name}"], weight)
        assert moved == (not name.startswith("backbone")), name
    # Three layers of weights and biases.
    assert len(checkpoint["optimizer_states"][0]["state"]) == 6
    assert "freeze was backbone, is None" in error_of(command("train.py", *SMALL, *options[2:]))
    result = command("train.py", *SMALL, *options, "trainer.max_epochs=2")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("hidden", [(32,), ()])
def test_a_pyramid_in_another_order_computes_the_same(hidden: tuple[int, ...], tmp_path: Path) -> None:
    options = {"hidden": hidden, "num_classes": 3}
    other = write_checkpoint(tmp_path / "best.ckpt", levels=(6, 3, 3, 2, 1), **options)
    net = build_net(**TINY | options, levels=(1, 3, 2, 6, 3))
    assert init_from(net, tmp_path / "best.ckpt").endswith("; new: nothing")
    images = torch.rand(2, 3, 90, 70)
    with torch.no_grad():
        # The same products, added in another order.
        torch.testing.assert_close(net.eval()(images), other(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [(5, 5), (7, 1), (4, 4, 4, 1, 1)])
def test_other_bins_of_the_same_number_start_anew(levels: tuple[int, ...], tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "best.ckpt")
    net = build_net(**TINY, num_classes=3, levels=levels)
    assert net.pool.bins == other.pool.bins == 50
    before = net.get_submodule("head.hidden1").weight.clone()
    assert "new: head.hidden1 (other bins)" in init_from(net, tmp_path / "best.ckpt")
    assert torch.equal(net.get_submodule("head.hidden1").weight, before)
