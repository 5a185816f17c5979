"""Networks in files: what a checkpoint carries, and those of version 0.1."""

import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from spp_cls import UserError, build_net, load_net
from spp_cls.models.checkpoint import CONFIG_KEY, count_epochs, load_checkpoint


def save(path: Path, **content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_checkpoint_alone_rebuilds_the_network(tmp_path: Path) -> None:
    options = {"width": 0.1, "levels": (3, 1), "hidden": (9,), "std": (50.0, 51.0, 52.0), "class_names": ("a", "b")}
    net = build_net("overfeat5", num_classes=2, **options).eval()
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    loaded = load_net(save(tmp_path / "a.ckpt", **{CONFIG_KEY: asdict(net.config)}, state_dict=weights))
    assert loaded.config == net.config
    images = torch.randn(2, 3, 70, 90)
    assert torch.equal(loaded(images), net(images))


def test_checkpoints_of_version_0_1_load(tmp_path: Path) -> None:
    # zf5_tiny was a network of its own, and kaiming divided the input by 57.6 in the network.
    net = build_net("zf5_tiny", num_classes=2)
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    old = {
        "name": "zf5_tiny", "pooling": "spp", "num_classes": 2, "levels": (6, 3, 2, 1), "input_size": 112,
        "in_chans": 3, "drop_rate": 0.2, "mean": (123.675, 116.28, 103.53), "init": "kaiming", "class_names": None,
    }  # fmt: skip
    loaded = load_net(save(tmp_path / "old.ckpt", net_recipe=old, state_dict=weights))
    assert (loaded.config.name, loaded.config.width, loaded.config.std) == ("zf5", 0.25, (57.6, 57.6, 57.6))
    paper = load_net(save(tmp_path / "paper.ckpt", net_recipe={**old, "init": "paper"}, state_dict=weights))
    assert paper.config.std == (1.0, 1.0, 1.0)


TINY = {"name": "zf5", "width": 0.02, "hidden": [4], "levels": [1], "num_classes": 2}


def tiny_weights() -> dict[str, torch.Tensor]:
    net = build_net(**{**TINY, "hidden": (4,)})
    return {f"net.{name}": value for name, value in net.state_dict().items()}


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict": {}}, "net_config"),
        ({CONFIG_KEY: {"name": "zf5"}}, "state_dict"),
        ({CONFIG_KEY: {"name": "zf5", "wings": 2}, "state_dict": {}}, "unknown fields (wings)"),
        ({CONFIG_KEY: {"name": "zf5", "levels": "many"}, "state_dict": {}}, "model.levels"),
        ({CONFIG_KEY: {"name": ["zf5"]}, "state_dict": {}}, "model.name"),
        ({CONFIG_KEY: {"levels": [100_000]}, "state_dict": {}}, "model.levels"),
        ({CONFIG_KEY: {"levels": [64] * 1000}, "state_dict": {}}, "no more than 64"),
        ({CONFIG_KEY: {"levels": nested(150)}, "state_dict": {}}, "model.levels"),
        ({CONFIG_KEY: {"input_size": 10**30}, "state_dict": {}}, "model.input_size"),
        ({CONFIG_KEY: {"input_size": 10**5000}, "state_dict": {}}, "more than plain data"),
        ({CONFIG_KEY: {"width": float("nan")}, "state_dict": {}}, "model.width"),
        ({CONFIG_KEY: {"mean": [1e400, 0, 0]}, "state_dict": {}}, "model.mean"),
        ({CONFIG_KEY: {1: 2}, "state_dict": {}}, "not a group of fields"),
        ({CONFIG_KEY: ["zf5"], "state_dict": {}}, "not a group of fields"),
        ({CONFIG_KEY: TINY, "state_dict": 7}, "its weights are no dictionary"),
        ({CONFIG_KEY: TINY, "state_dict": [torch.zeros(3)]}, "its weights are no dictionary"),
        ({CONFIG_KEY: TINY, "state_dict": {"net.a": 3}}, "not tensors by name"),
        ({CONFIG_KEY: TINY, "state_dict": {"net.a": torch.zeros(1).expand(10**15)}}, "not a tensor of the file's own"),
        ({CONFIG_KEY: TINY, "state_dict": {"net.a": torch.zeros(1, device="meta")}}, "not a tensor of the file's own"),
        ({CONFIG_KEY: TINY, "state_dict": {"net.a": torch.eye(2).to_sparse()}}, "not a tensor of the file's own"),
        ({CONFIG_KEY: TINY, "state_dict": {}, "epoch": "three"}, "epoch is a whole number"),
        ({CONFIG_KEY: TINY, "state_dict": {}, "epoch": -1}, "epoch is a whole number"),
        ({CONFIG_KEY: TINY, "state_dict": {}, "datamodule_hyper_parameters": {"sizes": {"a": 1}}}, "sizes is text"),
        ({CONFIG_KEY: TINY, "state_dict": {}, "datamodule_hyper_parameters": 5}, "not a group of fields"),
        ({"net_recipe": {"init": "kaiming", "in_chans": 10**12}, "state_dict": {}}, "model.in_chans"),
        ({"net_recipe": 5, "state_dict": {}}, "not a group of fields"),
    ],
)
def test_what_is_not_a_checkpoint_is_refused_in_one_line(tmp_path: Path, content: dict, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        load_net(save(tmp_path / "a.ckpt", **content))
    assert "a.ckpt is not a checkpoint of spp_cls (" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "weights", "reason"),
    [
        ({"num_classes": 3}, {}, "do not fit its configuration"),
        # Eight exabytes, if the network were made before its weights are looked at.
        ({"hidden": [1_000_000] * 60}, {}, "do not fit its configuration"),
        ({}, {"net.head.classifier.bias": torch.zeros(2, dtype=torch.int64)}, "do not fit its configuration"),
        ({}, {"net.head.classifier.bias": torch.tensor([0, float("nan")])}, "not a finite number"),
        ({"name": "resnet"}, {}, "there is no network 'resnet'"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, config: dict, weights: dict, reason: str) -> None:
    content = {CONFIG_KEY: {**TINY, **config}, "state_dict": {**tiny_weights(), **weights}}
    with pytest.raises(UserError, match=reason):
        load_net(save(tmp_path / "a.ckpt", **content))


def test_a_checkpoint_without_an_epoch_is_not_a_result(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", **{CONFIG_KEY: TINY}, state_dict=tiny_weights())
    assert load_net(path).num_classes == 2
    with pytest.raises(UserError, match="does not say its epoch"):
        count_epochs(load_checkpoint(path))
    # In its fourth epoch, and after it, when Lightning has counted one more.
    for epoch in (3, 4):
        loops = {"fit_loop": {"epoch_progress": {"current": {"ready": 4}}}}
        whole = {CONFIG_KEY: TINY, "state_dict": tiny_weights(), "epoch": epoch, "loops": loops}
        assert count_epochs(load_checkpoint(save(path, **whole))) == 4


def test_a_bit_of_a_weight_that_changed_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", **{CONFIG_KEY: TINY}, state_dict=tiny_weights())
    data = bytearray(path.read_bytes())
    place = data.index(tiny_bytes := load_net(path).head.classifier.weight.detach().numpy().tobytes())
    data[place + len(tiny_bytes) // 2] ^= 1
    path.write_bytes(data)
    # Not by PyTorch.
    torch.load(path, weights_only=True)
    with pytest.raises(UserError, match=r"is not a checkpoint of spp_cls \(it is damaged\)"):
        load_net(path)


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", **{CONFIG_KEY: TINY}, state_dict={"net.a": torch.zeros(1_000_000)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    # A thousandth of what it would take in memory.
    assert (tmp_path / "b.ckpt").stat().st_size < 50_000
    with pytest.raises(UserError, match="a part is compressed"):
        load_net(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, "{", "", "5", "[]", "\x00", '{"architecture": "zf5_spp"}',
        '{"architecture": 5, "model_args": {}}',
        '{"architecture": "zf5_spp", "model_args": []}', '{"architecture": "zf5_spp", "model_args": {"levels": [[1]]}}',
        '{"architecture": "zf5_spp", "model_args": {"levels": [' + "9" * 5000 + "]}}",
        '{"architecture": "zf5_spp", "model_args": {"width": NaN, "std": [1, 1, 1]}}',
    ],
)  # fmt: skip
def test_what_is_not_an_exported_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is not an export of spp_cls") as caught:
        load_net(tmp_path)
    assert "\n" not in str(caught.value)
