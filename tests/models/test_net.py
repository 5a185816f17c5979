"""The networks: widths, counts, initial weights, timm's interface."""

from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import spp_cls
from spp_cls import UserError
from spp_cls.models.backbone import PaperBackbone, create_backbone
from spp_cls.models.config import create_config
from spp_cls.models.head import Head
from spp_cls.models.net import NetConfig, SPPNet, build_net, create_net
from spp_cls.models.pyramid import Pooling, SpatialPyramidPool
from spp_cls.models.specs import PRESETS, SPECS
from spp_cls.models.timm_backbone import TimmBackbone

# Parameters of each network with 1000 classes, written out from Table 1: kernels, biases, and fc layers of 4096.
ZF5_CONVS = (49 * 3 * 96 + 96) + (25 * 96 * 256 + 256) + (9 * 256 * 384 + 384) + (9 * 384 * 384 + 384)
ZF5_CONVS += 9 * 384 * 256 + 256
CONVNET5_CONVS = ZF5_CONVS + (121 - 49) * 3 * 96
OVERFEAT5_CONVS = (49 * 3 * 96 + 96) + (25 * 96 * 256 + 256) + (9 * 256 * 512 + 512) + 2 * (9 * 512 * 512 + 512)
OVERFEAT7_CONVS = OVERFEAT5_CONVS + 2 * (9 * 512 * 512 + 512)
AFTER_FC6 = (4096 * 4096 + 4096) + (4096 * 1000 + 1000)


@pytest.mark.parametrize(
    ("name", "pooling", "width", "convs", "stated"),
    [
        ("zf5", "none", 36 * 256, ZF5_CONVS, 62_357_608),
        ("zf5", "spp", 12_800, ZF5_CONVS, 77_037_672),
        ("convnet5", "none", 36 * 256, CONVNET5_CONVS, 62_378_344),
        ("convnet5", "spp", 12_800, CONVNET5_CONVS, 77_058_408),
        ("overfeat5", "none", 36 * 512, OVERFEAT5_CONVS, 102_908_520),
        ("overfeat5", "spp", 25_600, OVERFEAT5_CONVS, 132_268_648),
        ("overfeat7", "none", 36 * 512, OVERFEAT7_CONVS, 107_628_136),
        ("overfeat7", "spp", 25_600, OVERFEAT7_CONVS, 136_988_264),
    ],
)
def test_fc6_widths_and_parameter_counts(name: str, pooling: str, width: int, convs: int, stated: int) -> None:
    with torch.device("meta"):
        net = spp_cls.build_net(name, pooling)
    assert net.head.get_submodule("hidden1").in_features == width
    assert sum(parameter.numel() for parameter in net.parameters()) == stated
    assert stated == convs + width * 4096 + 4096 + AFTER_FC6


def test_thirty_bins() -> None:
    with torch.device("meta"):
        net = spp_cls.build_net("zf5", levels=(4, 3, 2, 1))
    assert net.head.get_submodule("hidden1").in_features == 30 * 256


@pytest.mark.parametrize(("name", "stride"), [("zf5", 2), ("overfeat7", 3)])
def test_the_baseline_pools_as_its_last_layer_did(name: str, stride: int) -> None:
    with torch.device("meta"):
        pool = spp_cls.build_net(name, "none").pool
    maps = torch.randn(2, 4, *([13, 13] if name == "zf5" else [18, 18]))
    assert torch.equal(pool(maps), F.max_pool2d(maps, 3, stride).flatten(1))


def test_the_baseline_takes_one_size_only() -> None:
    net = spp_cls.build_net("zf5_tiny", "none", num_classes=3)
    assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 3)
    with pytest.raises(ValueError, match="224 x 224 pixels, not 224 x 225"):
        net(torch.zeros(1, 3, 224, 225))


@pytest.mark.parametrize("name", SPECS)
def test_too_small_an_image_is_refused_with_the_smallest_size(name: str) -> None:
    net = spp_cls.build_net(name, num_classes=2).eval()
    smallest = net.backbone.smallest_input
    assert net(torch.zeros(1, 3, smallest, smallest + 9)).shape == (1, 2)
    with pytest.raises(ValueError, match=f"smallest side it takes is {smallest}"):
        net(torch.zeros(1, 3, smallest + 9, smallest - 1))


@pytest.mark.parametrize("init", ["paper", "kaiming"])
@pytest.mark.parametrize("pooling", ["none", "spp"])
def test_every_parameter_gets_a_gradient(init: str, pooling: str) -> None:
    net = spp_cls.build_net("zf5_tiny", pooling, num_classes=5, init=init)
    net((50 if init == "paper" else 1) * torch.randn(4, 3, 224, 224)).logsumexp(1).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_initial_weights_of_the_paper() -> None:
    net = spp_cls.build_net("overfeat7", num_classes=10)
    biases = {name: layer.bias for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    ones = {"conv2", "conv4", "conv5", "hidden1", "hidden2"}
    for name, bias in biases.items():
        assert torch.equal(bias, torch.full_like(bias, float(name.split(".")[-1] in ones))), name
    for layer in (net.backbone.conv3, net.head.hidden1, net.head.classifier):
        # Over 10,000 values: the deviation of the estimate is under 1 %.
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert layer.weight.mean().item() == pytest.approx(0, abs=2e-4)


def test_kaiming_keeps_the_scale_of_activations() -> None:
    net = spp_cls.build_net("zf5", num_classes=10, init="kaiming").eval()
    maps = net.forward_features(torch.randn(8, 3, 224, 224))
    # He initialisation keeps the mean square through conv and ReLU; five layers and two max pools (which raise it).
    assert 0.5 < maps.square().mean().item() < 50


def test_timm_lists_and_builds_the_networks() -> None:
    expected = [f"{name}_spp" for name in ("convnet5", "overfeat5", "overfeat7", "zf5", "zf5_tiny")]
    assert set(expected) <= set(timm.list_models("*_spp"))
    for name in (*SPECS, *PRESETS):
        assert timm.is_model(name)
    net = timm.create_model("zf5_tiny_spp", num_classes=10, levels=(4, 3, 2, 1)).eval()
    assert isinstance(net, spp_cls.SPPNet)
    assert net(torch.zeros(2, 3, 100, 160)).shape == (2, 10)
    assert net.pool.bins == 30


def test_timm_interface() -> None:
    net = timm.create_model("zf5_tiny_spp", num_classes=7).eval()
    images = torch.randn(2, 3, 130, 90)
    maps = net.forward_features(images)
    assert maps.shape == (2, net.num_features, net.backbone.map_size(130), net.backbone.map_size(90))
    assert torch.equal(net(images), net.forward_head(maps))
    hidden = net.forward_head(maps, pre_logits=True)
    assert hidden.shape == (2, net.head_hidden_size)
    assert torch.equal(net.get_classifier()(hidden), net(images))
    net.reset_classifier(3)
    assert (net.num_classes, net(images).shape) == (3, (2, 3))
    net.reset_classifier(0)
    assert torch.equal(net(images), net.forward_head(maps, pre_logits=True))


@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (57.6, 60.0, 50.0)])
def test_timm_metadata_describes_the_preprocessing(std: tuple[float, ...]) -> None:
    net = timm.create_model("zf5_tiny", num_classes=10, std=std)
    cfg = net.pretrained_cfg
    assert cfg["architecture"] == "zf5_tiny"
    assert cfg["input_size"] == (3, 224, 224)
    assert cfg["fixed_input_size"] is True
    config = timm.data.resolve_model_data_config(net)
    transform = timm.data.create_transform(**config)
    result = transform(Image.new("RGB", (400, 300), (200, 200, 200)))
    # timm's normalisation gives what the networks take: (pixels - mean) / std, pixels of 0..255.
    assert result.shape == (3, 224, 224)
    expected = [(200 - m) / s for m, s in zip((123.675, 116.28, 103.53), std, strict=True)]
    assert result.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-3)


def test_width_scales_every_layer_and_zf5_tiny_is_a_quarter() -> None:
    with torch.device("meta"):
        half, tiny = spp_cls.build_net("overfeat5", width=0.5), spp_cls.build_net("zf5_tiny")
    convs = [layer.out_channels for layer in half.modules() if isinstance(layer, nn.Conv2d)]
    assert convs == [48, 128, 256, 256, 256]
    assert [layer.out_features for layer in half.modules() if isinstance(layer, nn.Linear)] == [2048, 2048, 1000]
    assert (tiny.config.name, tiny.config.width) == ("zf5", 0.25)
    assert [layer.out_channels for layer in tiny.modules() if isinstance(layer, nn.Conv2d)] == [24, 64, 96, 96, 64]


def test_hidden_layers_are_a_number_of_ones_choice() -> None:
    linear = spp_cls.build_net("zf5_tiny", num_classes=4, levels=(2, 1), hidden=()).eval()
    assert [type(layer) for layer in linear.head.children()] == [nn.Linear]
    maps = linear.forward_features(torch.randn(1, 3, 90, 120))
    assert torch.equal(linear.forward_head(maps, pre_logits=True), linear.pool(maps))
    one = spp_cls.build_net("zf5_tiny", num_classes=4, hidden=(11,)).eval()
    assert one.layer_names == ("map", "pool", "hidden1", "logits")
    vectors = torch.randn(3, one.head.get_submodule("hidden1").in_features)
    hidden = F.relu(F.linear(vectors, one.head.hidden1.weight, one.head.hidden1.bias))
    assert torch.equal(one.head.forward_to(vectors, "hidden1"), hidden)
    assert torch.equal(one.head.forward_to(vectors, "logits"), one.head(vectors))


def test_the_first_weights_do_not_change_what_a_network_computes() -> None:
    paper, kaiming = (spp_cls.build_net("zf5_tiny", num_classes=3, init=init).eval() for init in ("paper", "kaiming"))
    kaiming.load_state_dict(paper.state_dict())
    images = torch.randn(2, 3, 60, 70)
    assert torch.equal(paper(images), kaiming(images))


def test_a_network_of_parts_needs_no_configuration() -> None:
    backbone = spp_cls.build_net("zf5_tiny").backbone
    net = spp_cls.SPPNet(backbone, spp_cls.SpatialPyramidPool((2,)), spp_cls.Head(256, (5,), num_classes=3))
    assert net(torch.zeros(1, 3, 50, 40)).shape == (1, 3)
    assert (net.num_classes, net.config.levels, net.config.std) == (3, (2,), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "zf6"}, "zf5, convnet5"),
        ({"pooling": "max"}, "model.pooling is spp or avg or none, not 'max'"),
        ({"levels": ()}, "levels"),
        ({"levels": (3, 0)}, "model.levels is a list of whole numbers from 1 to 64, not"),
        ({"levels": (100_000,)}, "levels"),
        ({"init": "xavier"}, "model.init is paper or kaiming, not 'xavier'"),
        ({"drop_rate": 2}, "model.drop_rate is a number from 0 below 1, not 2"),
        ({"input_size": 64.5}, "model.input_size is a whole number"),
        ({"width": float("nan")}, "model.width is a number above 0 to 16, not nan"),
        ({"std": (0, 1, 1)}, "model.std"),
        ({"mean": (1.0,)}, "model.mean has 1 values for 3 input channels"),
        ({"num_classes": 3, "class_names": ("a", "b")}, "2 class names for 3"),
        ({"droprate": 0.1}, "no option droprate"),
    ],
)
def test_errors_of_the_caller_are_user_errors(options: dict, message: str) -> None:
    with pytest.raises(spp_cls.UserError, match=message):
        spp_cls.build_net(**{"name": "zf5_tiny", **options})


def test_lists_of_a_file_become_tuples() -> None:
    config = NetConfig(levels=[2, 1], hidden=[3], class_names=None)  # type: ignore[arg-type]
    assert (config.levels, config.hidden) == ((2, 1), (3,))
    assert hash(config) == hash(NetConfig(levels=(2, 1), hidden=(3,)))


@pytest.mark.parametrize("pool", [spp_cls.AveragePool(), spp_cls.SpatialPyramidPool((2, 1))])
@pytest.mark.parametrize("hidden", [(), (7, 5)])
def test_the_configuration_of_parts_rebuilds_them(pool: Pooling, hidden: tuple[int, ...]) -> None:
    class Small(PaperBackbone):
        def __init__(self, in_chans: int = 3, width: float = 1.0) -> None:
            super().__init__(SPECS["zf5"], in_chans, 0.05)

    spp_cls.register_backbone("Small")(Small)
    backbone = Small()
    head = spp_cls.Head(backbone.channels * pool.bins, hidden, 3, drop_rate=0.2)
    net = spp_cls.SPPNet(backbone, pool, head).eval()
    again = create_net(net.config).eval()
    again.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 90, 70)
    assert torch.equal(net(images), again(images))
    assert [layer.p for layer in again.modules() if isinstance(layer, nn.Dropout)] == [0.2] * len(hidden)


def test_a_new_classifier_has_the_device_and_dtype_of_the_network() -> None:
    net = build_net("zf5", width=0.05, num_classes=0, hidden=()).double()
    net.reset_classifier(10)
    assert net(torch.zeros(1, 3, 224, 224, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("name", ["zf5", "timm/resnet10t"])
@pytest.mark.parametrize("channels", [1, 4])
def test_other_input_channels_have_the_average_of_the_three(name: str, channels: int) -> None:
    own, of_three = create_config(name, in_chans=channels), create_config(name)
    assert own.mean == pytest.approx((sum(of_three.mean) / 3,) * channels)
    assert own.std == pytest.approx((sum(of_three.std) / 3,) * channels)
    with pytest.raises(UserError, match=r"model\.in_chans is a whole number"):
        create_config(name, in_chans=str(channels))


def test_both_registries_agree_on_input_channels() -> None:
    options = {"in_chans": 1, "num_classes": 2, "hidden": (4,), "width": 0.05}
    assert timm.create_model("zf5_spp", **options).config == build_net("zf5", **options).config


def test_parts_describe_themselves() -> None:
    backbone = create_backbone("zf5", in_chans=4, width=0.05)
    net = SPPNet(backbone, SpatialPyramidPool((2, 1)), Head(backbone.channels * 5, (), 3))
    assert (net.config.in_chans, net.config.levels, net.config.hidden) == (4, (2, 1), ())
    assert net.pretrained_cfg["input_size"] == (4, 224, 224)
    with pytest.raises(UserError, match=r"the head takes 7 values, and 13 channels in 5 bins are 65; build it with"):
        SPPNet(backbone, SpatialPyramidPool((2, 1)), Head(7, (), 3))


@pytest.mark.parametrize("name", ["zf5", "timm/resnet10t"])
def test_a_checkpoint_of_parts_is_loaded(name: str, tmp_path: Path) -> None:
    backbone = create_backbone(name, 3, 0.05) if name == "zf5" else TimmBackbone(name)
    net = SPPNet(backbone, SpatialPyramidPool((2, 1)), Head(backbone.channels * 5, (4,), 3)).eval()
    weights = {f"net.{key}": value for key, value in net.state_dict().items()}
    torch.save({"net_config": asdict(net.config), "state_dict": weights}, tmp_path / "a.ckpt")
    images = torch.randn(1, 3, 70, 90)
    assert torch.equal(spp_cls.load_net(tmp_path / "a.ckpt")(images), net(images))


def test_timms_name_of_the_size_is_one_side() -> None:
    assert timm.create_model("zf5_tiny_spp", img_size=(64, 64)).config.input_size == 64
    with pytest.raises(UserError, match=r"img_size=\(224, 320\) is the side of square crops; give one number"):
        timm.create_model("zf5_tiny_spp", img_size=(224, 320))
