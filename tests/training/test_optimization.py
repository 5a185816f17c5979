"""Parameter groups, the paper's optimizer, and others in its place."""

import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

import spp_cls
from spp_cls.cli.errors import UserError
from spp_cls.training import LitClassifier
from spp_cls.training.optimization import check_optimizer, create_factory, create_optimizer, group_parameters
from tests.conftest import REPOSITORY, Command, error_of


class OtherBackbone(spp_cls.Backbone):
    """A backbone of one's own, with a norm, whose biases learn at the rate of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, stride=4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu()


def other_net() -> spp_cls.SPPNet:
    return spp_cls.SPPNet(OtherBackbone(), spp_cls.SpatialPyramidPool((2, 1)), spp_cls.Head(20, (), 3))


def test_groups() -> None:
    net = other_net()
    weights, others = group_parameters(net)
    assert [id(p) for p in weights["params"]] == [id(net.backbone.conv.weight), id(net.head.classifier.weight)]
    norm: Any = net.backbone.norm
    expected = [net.backbone.conv.bias, norm.weight, norm.bias, net.head.classifier.bias]
    assert [id(p) for p in others["params"]] == [id(p) for p in expected]
    assert (others["weight_decay"], others["lr_scale"]) == (0, 1)
    assert group_parameters(spp_cls.build_net("zf5_tiny"))[1]["lr_scale"] == 2


@pytest.mark.parametrize(("make", "scale"), [(lambda: spp_cls.build_net("zf5_tiny", num_classes=3), 2), (other_net, 1)])
def test_the_first_step(make: Any, scale: float) -> None:
    net = make()
    module = LitClassifier(net, partial(torch.optim.SGD, lr=0.1, weight_decay=0.5))
    optimizer = module.configure_optimizers()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    F.cross_entropy(net(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        rate, decay = (0.1 * scale, 0.0) if parameter.ndim == 1 else (0.1, 0.5)
        expected = before[name] - rate * (parameter.grad + decay * before[name])
        torch.testing.assert_close(parameter.detach(), expected)


def test_the_papers_optimizer() -> None:
    optimizer = LitClassifier(spp_cls.build_net("zf5_tiny")).configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    weights, biases = optimizer.param_groups
    assert [weights[key] for key in ("lr", "momentum", "weight_decay", "fused")] == [0.01, 0.9, 5e-4, True]
    assert [biases[key] for key in ("lr", "momentum", "weight_decay", "fused")] == [0.02, 0.9, 0, True]


def test_the_backbone_learns_at_its_own_rate() -> None:
    net = other_net()
    optimizer = create_optimizer(net, partial(torch.optim.SGD, lr=0.1, weight_decay=0.5), 0.25)
    # The head's groups come first: the rate that is logged is the optimizer's own.
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.025, 0.025]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    F.cross_entropy(net(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        rate, decay = 0.025 if name.startswith("backbone") else 0.1, 0.0 if parameter.ndim == 1 else 0.5
        torch.testing.assert_close(parameter.detach(), before[name] - rate * (parameter.grad + decay * before[name]))
    scaled = create_optimizer(spp_cls.build_net("zf5_tiny"), None, 0.1)
    assert [group["lr"] for group in scaled.param_groups] == pytest.approx([0.01, 0.02, 0.001, 0.002])


def node_of(name: str, **more: Any) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(REPOSITORY / f"conf/optimizer/{name}.yaml")) | more  # type: ignore[operator]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "muon"])
def test_the_first_step_of_each_optimizer(name: str, tmp_path: Path) -> None:
    net = other_net()
    optimizer = create_optimizer(net, create_factory(node_of(name, lr=0.01, weight_decay=0.0)))
    before = {key: parameter.detach().clone() for key, parameter in net.named_parameters()}
    F.cross_entropy(net(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    for key, parameter in net.named_parameters():
        step = before[key] - parameter.detach()
        gradient: Any = parameter.grad
        # Adam's first step is the sign of the gradient, where that is far above eps.
        sign = gradient / (gradient.abs() + (1e-6 if name == "lamb" else 1e-8))
        if name == "sgd":
            torch.testing.assert_close(step, 0.01 * gradient)
        elif name == "adamw":
            torch.testing.assert_close(step, 0.01 * sign, rtol=1e-3, atol=1e-5)
        elif name == "lamb":
            # The step is as long as the rate times the weights; of biases and norms, which do not decay, as Adam's.
            assert torch.cosine_similarity(step.flatten(), sign.flatten(), dim=0) > 0.98
        elif key == "backbone.conv.weight":
            values = torch.linalg.svdvals(step.flatten(1))
            length = 0.01 * 0.2 * max(step.flatten(1).shape) ** 0.5
            # The five Newton-Schulz iterations leave singular values near 1, in bfloat16.
            assert (values / length).min() > 0.5
            assert (values / length).max() < 1.4
        else:
            assert torch.equal(step.sign()[gradient.abs() > 1e-6], gradient.sign()[gradient.abs() > 1e-6])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer")
    state = torch.load(tmp_path / "optimizer", weights_only=True)
    assert set(state["state"]) == set(range(len(before))) or name == "sgd"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (node_of("adamw", momentum=0.9), "torch.optim.AdamW has no parameter momentum; there are params, lr, betas"),
        (node_of("lamb", nesterov=True), "timm.optim.Lamb has no parameter nesterov"),
        (node_of("sgd", backbone_lr_scale=0), "optimizer.backbone_lr_scale is a number above 0, not 0"),
        (node_of("muon", adjust_lr_fn=3), "optimizer.adjust_lr_fn is text or null, not 3"),
        (node_of("muon", conv_mode="rows"), "optimizer: Invalid conv_mode: rows"),
        (node_of("adamw", betas=[0.9]), "optimizer: "),
    ],
)
def test_keys_that_the_class_does_not_take(node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        create_factory(node)
    assert "\n" not in str(error.value)


# What a trainer says of its device.
ON_CPU = SimpleNamespace(root_device=torch.device("cpu"))


class NeedsClosure(torch.optim.SGD):
    """As SAM does, it computes gradients itself."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        loss = closure()
        super().step()
        return loss


def test_a_scaler_of_gradients_gives_no_closure() -> None:
    plugin = pl.plugins.MixedPrecision("16-mixed", "cpu")
    trainer: Any = SimpleNamespace(
        precision_plugin=plugin, precision="16-mixed", gradient_clip_val=None, strategy=ON_CPU
    )
    net = spp_cls.build_net("zf5_tiny")
    check_optimizer(net, None, trainer)
    with pytest.raises(UserError, match=r"^optimizer: TypeError: .*'closure'"):
        check_optimizer(net, create_factory({"_target_": f"{__name__}.NeedsClosure", "lr": 0.1}), trainer)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (node_of("muon", adjust_lr_fn="mine"), "optimizer: AssertionError: "),
        ({"_target_": "torch.optim.SparseAdam"}, "optimizer: RuntimeError: "),
        # Made for a GPU.
        (node_of("adamw", fused=False, capturable=True), "optimizer: AssertionError: If capturable=True"),
        ({"_target_": f"{__name__}.NeedsClosure", "lr": 0.1}, None),
    ],
)
def test_a_first_step_on_the_device_of_the_run(node: dict[str, Any], message: str | None) -> None:
    factory = create_factory(node)
    trainer: Any = SimpleNamespace(precision_plugin=None, strategy=ON_CPU)
    net = spp_cls.build_net("zf5_tiny")
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(UserError, match=re.escape(message)) if message else nullcontext():
        check_optimizer(net, factory, trainer)
    assert all(map(torch.equal, before, net.parameters()))


class SignSGD(torch.optim.Optimizer):
    """An optimizer from outside the package, which knows no weight decay."""

    def __init__(self, groups: Any, lr: float = 0.25, turns: int = 1) -> None:
        if turns < 1:
            raise ValueError(f"turns is {turns}")
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad.sign())
        return loss


def test_an_optimizer_from_outside() -> None:
    optimizer = create_optimizer(spp_cls.build_net("zf5_tiny"), SignSGD)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    with pytest.raises(UserError, match="optimizer: turns is 0"):
        create_optimizer(spp_cls.build_net("zf5_tiny"), partial(SignSGD, turns=0))
    with pytest.raises(UserError, match="optimizer: 'no optimizer' is not a torch optimizer"):
        create_optimizer(spp_cls.build_net("zf5_tiny"), lambda groups: "no optimizer")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("precision", "clip", "fused", "refused"),
    [
        ("16-mixed", 1.0, True, True),
        ("bf16-mixed", 1.0, True, True),
        ("16-mixed", 1.0, False, False),
        ("16-mixed", None, True, False),
        ("32-true", 1.0, True, False),
    ],
)
def test_clipping_of_fused_steps(precision: Any, clip: float | None, fused: bool, refused: bool) -> None:
    mixed = "mixed" in precision
    plugin = pl.plugins.MixedPrecision(precision, "cpu") if mixed else pl.plugins.Precision()
    trainer: Any = SimpleNamespace(
        precision_plugin=plugin, precision=precision, gradient_clip_val=clip, strategy=ON_CPU
    )
    factory = partial(torch.optim.SGD, lr=0.1, fused=fused)
    net = spp_cls.build_net("zf5_tiny")
    if refused:
        with pytest.raises(UserError, match=rf"precision={precision}; set optimizer\.fused=false or "):
            check_optimizer(net, factory, trainer)
        # As Lightning does, later.
        with pytest.raises(RuntimeError, match="fused"):
            plugin.clip_gradients(create_optimizer(net, factory), clip)
    else:
        check_optimizer(net, factory, trainer)


def test_mistakes_cost_no_folder(image_folder: Any, tmp_path: Any, command: Command) -> None:
    run = (
        "data=imagefolder", "data.root=images", "data.batch_size=8", "data.num_workers=0", "model.input_size=64",
        "model.hidden=[16,16]",
        "trainer.accelerator=cpu", "experiment=paper", "model=zf5_tiny",
    )  # fmt: skip
    for override, message in (
        ("optimizer.lr=-1.0", "error: optimizer: Invalid learning rate"),
        ("schedule.patience=-1", "error: schedule.patience is a whole number from 0, not -1"),
        ("trainer.precision=bf16-mixed", "set optimizer.fused=false"),
    ):
        assert message in error_of(command("train.py", *run, "trainer.gradient_clip_val=1.0", override))
    assert not (tmp_path / "runs").exists()
    fused = ("trainer.precision=bf16-mixed", "optimizer.fused=false", "trainer.max_epochs=1")
    assert command("train.py", *run, "trainer.gradient_clip_val=1.0", *fused).returncode == 0
