"""Backbones of timm: what they compute, their geometry, and what is refused."""

import pytest
import timm
import torch
from torch import nn

import spp_cls
from spp_cls import UserError, build_net
from spp_cls.models import timm_models
from spp_cls.models.net import NetConfig, check_sizes, warn_of_levels
from spp_cls.models.tracing.geometry import Geometry, trace_geometry


def copy_into_timms(net: spp_cls.SPPNet, classifier: str) -> nn.Module:
    """Return timm's own network of the same name with the weights of one of ours."""
    own = timm.create_model(net.config.name.removeprefix("timm/"), num_classes=net.num_classes).eval()
    prefix = "backbone.model."
    weights = {key.removeprefix(prefix): value for key, value in net.state_dict().items() if key.startswith(prefix)}
    head = net.get_classifier()
    own.load_state_dict({**weights, f"{classifier}.weight": head.weight, f"{classifier}.bias": head.bias})
    return own


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("resnet10t", "fc"),
        ("efficientnet_lite0", "classifier"),
        ("regnetx_002", "head.fc"),
    ],
)
def test_average_pooling_is_timms_own_network(name: str, classifier: str) -> None:
    net = build_net(f"timm/{name}", pooling="avg", num_classes=3).eval()
    own = copy_into_timms(net, classifier)
    images = torch.randn(2, 3, 96, 131)
    with torch.inference_mode():
        logits = own(images)
        # A sum of 12 cells in another order.
        torch.testing.assert_close(net(images), logits, rtol=1e-5, atol=1e-6 * float(logits.abs().max()))


def test_defaults_are_what_timm_states() -> None:
    config = build_net("timm/resnet10t", num_classes=4).config
    stated = timm.get_pretrained_cfg("resnet10t")
    assert (config.levels, config.hidden, config.pooling) == ((4, 2, 1), (), "spp")
    assert [value / 255 for value in config.mean] == pytest.approx(stated.mean)
    assert [value / 255 for value in config.std] == pytest.approx(stated.std)
    assert (config.input_size, config.interpolation) == (stated.input_size[-1], stated.interpolation)
    grey = build_net("timm/resnet10t", num_classes=4, in_chans=1, input_size=64)
    assert grey.config.mean == pytest.approx((sum(config.mean) / 3,))
    assert grey(torch.zeros(2, 1, 40, 50)).shape == (2, 4)


def test_preprocessing_is_that_of_the_tag() -> None:
    sizes = {
        tag: timm_models.find_preprocessing(f"timm/efficientnet_b0.{tag}").input_size
        for tag in ("ra_in1k", "ra4_e3600_r224_in1k")
    }
    assert sizes == {tag: timm.get_pretrained_cfg(f"efficientnet_b0.{tag}").input_size[-1] for tag in sizes}


def test_layers_behind_the_map_are_left_out_and_every_parameter_learns() -> None:
    net = build_net("timm/mobilenetv3_small_050", num_classes=3)
    assert isinstance(net.backbone.model.conv_head, nn.Identity)
    net(torch.randn(2, 3, 64, 64)).logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "mambaout_femto", "dla46_c", "tf_mobilenetv3_small_minimal_100"]
)
def test_maps_have_the_shape_that_is_stated(name: str) -> None:
    backbone = build_net(f"timm/{name}", num_classes=2).backbone.eval()
    smallest = backbone.smallest_input
    assert backbone.map_size(smallest - 1) == 0
    with torch.inference_mode():
        for height, width in ((smallest, 2 * smallest), (97, 64), (80, 131)):
            maps = backbone(torch.randn(1, 3, height, width))
            assert maps.shape == (1, backbone.channels, backbone.map_size(height), backbone.map_size(width))


def test_branches_that_need_multiples_get_padded_images() -> None:
    backbone = build_net("timm/dla46_c", num_classes=2).backbone.eval()
    assert backbone.traits.multiple == 32
    images = torch.randn(1, 3, 70, 96)
    padded = torch.zeros(1, 3, 96, 96)
    padded[:, :, :70] = images
    with torch.inference_mode():
        assert torch.equal(backbone(images), backbone.model.forward_features(padded))


# Worked out by hand: a cell's centre is that of its kernel; two branches join the pixels of both.
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(3, 4, 5, stride=2, padding=1)], Geometry(2, 1.0, 5)),
        ([nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 4, 2, stride=2)], Geometry(8, 3.5, 8)),
        ([nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(3, 4, 3, padding=2, dilation=2)], Geometry(2, 1.0, 11)),
        ([nn.PixelUnshuffle(4), nn.ReLU(), nn.Conv2d(48, 4, 3, padding=1)], Geometry(4, 1.5, 12)),
        ([nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, stride=2)], Geometry(2, 1.0, 3)),
        ([nn.ReflectionPad2d(1), nn.AvgPool2d(3, 2)], Geometry(2, 0.0, 3)),
        (
            [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Upsample(scale_factor=2), nn.AvgPool2d(2, 2)],
            Geometry(2, 0.0, 3),
        ),
    ],
)
def test_geometry_of_single_operations(layers: list[nn.Module], expected: Geometry) -> None:
    chain = nn.Sequential(*layers).to("meta")
    assert trace_geometry(chain, 64) == expected


def test_geometry_of_branches_gates_and_tokens() -> None:
    conv, shortcut, line = (
        layer.to("meta") for layer in (nn.Conv2d(3, 8, 5, 2, 2), nn.Conv2d(3, 8, 1, 2), nn.Linear(8, 8))
    )

    def run(images: torch.Tensor) -> torch.Tensor:
        maps = conv(images) + shortcut(images)
        maps = maps * maps.mean((2, 3), keepdim=True).sigmoid()
        height, width = maps.shape[-2:]
        tokens = line(maps.flatten(2).transpose(1, 2))
        return torch.cat([maps, tokens.transpose(1, 2).reshape(1, 8, height, width)], 1)[:, :, 1::2, 1::2]

    assert trace_geometry(run, 64) == Geometry(4, 2.0, 5)


def test_geometry_that_cannot_be_traced_is_refused() -> None:
    def enlarge(images: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(images, scale_factor=2)

    with pytest.raises(UserError, match="no single stride"):
        trace_geometry(enlarge, 64)
    with pytest.raises(UserError, match="operations whose geometry is unknown"):
        trace_geometry(lambda images: nn.functional.adaptive_avg_pool2d(images, 7), 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "timm/resnet5O"}, r"timm has no network 'resnet5O'; did you mean resnet50 or .* or .*\?"),
        ({"name": "timm/"}, "timm has no network ''; timm.list_models"),
        ({"name": "timm/resnet10t.a9"}, "timm has no weights 'a9' of resnet10t; there are c3_in1k"),
        ({"name": "timm/vit_tiny_patch16_224"}, "no feature map of free size: it refuses 256 x 320 pixels"),
        ({"name": "timm/swin_tiny_patch4_window7_224"}, "no feature map of free size: it refuses"),
        ({"name": "timm/mixer_s16_224"}, "no feature map of free size: it refuses"),
        (
            {"name": "timm/xcit_nano_12_p16_224"},
            "no feature map of free size: it gives values of shape .*, such as tokens",
        ),
        ({"pooling": "none"}, "timm/resnet10t has model.pooling spp or avg and model.width 1.0; got none and 1"),
        ({"width": 0.5}, "model.width 1.0; got spp and 0.5"),
        ({"name": "zf5", "pretrained": True}, "no pretrained weights of zf5; set model.pretrained=false"),
        ({"name": "timm/resnet9000"}, "timm has no network"),
    ],
)
def test_errors_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_net(**{"name": "timm/resnet10t", **options})
    assert "\n" not in str(caught.value)


def test_pretrained_without_a_connection(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(timm_models, "_is_hub_reachable", lambda: False)
    with pytest.raises(UserError, match=r"weights of timm/resnet10t cannot be loaded \(https.* cannot be reached\)"):
        build_net("timm/resnet10t", pretrained=True)
    # Its client tries no more.
    assert "Retrying" not in capfd.readouterr().err


def test_pretrained_weights_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    weights = timm.create_model("resnet10t").state_dict()
    create = timm_models.create_model

    def load(name: str, in_chans: int, pretrained: bool = False) -> nn.Module:
        cfg = {"state_dict": weights, "num_classes": 1000, "classifier": "fc", "first_conv": "conv1.0"}
        return (
            timm.create_model(
                "resnet10t", pretrained=True, pretrained_cfg_overlay=cfg, in_chans=in_chans, num_classes=0
            )
            if pretrained
            else create(name, in_chans)
        )

    monkeypatch.setattr(timm_models, "_is_hub_reachable", lambda: True)
    monkeypatch.setattr(timm_models, "create_model", load)
    net = build_net("timm/resnet10t", pretrained=True, num_classes=3)
    assert torch.equal(net.backbone.model.conv1[0].weight, weights["conv1.0.weight"])
    assert torch.equal(net.backbone.model.layer4[0].bn1.running_mean, weights["layer4.0.bn1.running_mean"])


def test_levels_larger_than_the_map_are_warned_of() -> None:
    config = NetConfig("timm/resnet10t", levels=(4, 2, 1), hidden=())
    assert warn_of_levels(config, [224, 128]) is None
    line = warn_of_levels(config, [224, 96])
    assert line == (
        "warning: at 96 pixels the map of timm/resnet10t has 3 x 3 cells, and model.levels=[4, 2, 1] more bins, which "
        "then share cells; set smaller levels or larger sizes"
    )
    check_sizes(config, [96])


def test_timm_makes_any_network_by_name() -> None:
    net = timm.create_model("spp_net", name="timm/resnet10t", pooling="avg", num_classes=5)
    assert isinstance(net, spp_cls.SPPNet)
    assert (net.config.name, net.pool.bins, net.num_classes) == ("timm/resnet10t", 1, 5)


def test_average_pooling_of_windows_is_the_mean_of_each() -> None:
    pool = spp_cls.AveragePool()
    maps = torch.randn(3, 5, 7, 11)
    windows = torch.tensor(
        [[n, x, y, x + dx, y + dy] for n in range(3) for x, y, dx, dy in [(0, 0, 10, 6), (2, 1, 0, 0), (4, 3, 5, 2)]]
    )
    expected = torch.stack(
        [maps[n, :, y0 : y1 + 1, x0 : x1 + 1].mean((1, 2)) for n, x0, y0, x1, y1 in windows.tolist()]
    )
    # One rounding each.
    torch.testing.assert_close(pool.pool_windows(maps, windows), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(pool(maps), maps.mean((2, 3)))
