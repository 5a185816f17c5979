"""Networks in files: what a checkpoint carries, and those of version 0.1."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from spp_cls import UserError, build_net, load_net
from spp_cls.models.checkpoint import CONFIG_KEY


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


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {CONFIG_KEY: {"name": "zf5"}},
        {CONFIG_KEY: {"name": "zf5", "wings": 2}, "state_dict": {}},
        {CONFIG_KEY: {"name": "zf5", "levels": "many"}, "state_dict": {}},
        {CONFIG_KEY: {"name": "zf5", "num_classes": 2}, "state_dict": {}},
        {CONFIG_KEY: {"name": ["zf5"]}, "state_dict": {}},
    ],
)
def test_what_is_not_a_checkpoint_is_refused_in_one_line(tmp_path: Path, content: dict) -> None:
    with pytest.raises(UserError) as caught:
        load_net(save(tmp_path / "a.ckpt", **content))
    assert "\n" not in str(caught.value)
