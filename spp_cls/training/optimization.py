"""Parameter groups, and the optimizer made from them: the paper's, or any that takes parameter groups."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import check_fields, key
from spp_cls.cli.targets import bind_target, call_bound, try_out
from spp_cls.models.net import SPPNet

ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups], Optimizer]

# Section 3.1. One kernel updates all parameters.
PAPER_SGD: OptimizerFactory = partial(SGD, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


@dataclass(frozen=True)
class _GroupKeys:
    """The key of an optimizer's node that is not a parameter of its class."""

    backbone_lr_scale: float = key(1.0, above=0)


def group_parameters(net: SPPNet, backbone_lr_scale: float = 1.0) -> ParameterGroups:
    """Return two groups of what is trained: weights, which decay, and biases and norms, which do not.

    The weights have the optimizer's weight decay, the others none. `lr_scale` is a factor of the learning rate, by
    timm's convention: biases of the paper's networks learn at twice the rate, as AlexNet's. A `backbone_lr_scale`
    other than 1 gives four groups: the head's, then those of the backbone.

    Raises:
        UserError: if all parameters are frozen.
    """
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError("freeze leaves nothing to train; name fewer parts of the network")
    if backbone_lr_scale == 1:
        return _group(net.parameters(), 1.0, net)
    in_backbone = {id(parameter) for parameter in net.backbone.parameters()}
    head = [parameter for parameter in net.parameters() if id(parameter) not in in_backbone]
    return _group(head, 1.0, net) + _group(net.backbone.parameters(), backbone_lr_scale, net)


def _group(parameters: Iterable[Parameter], scale: float, net: SPPNet) -> ParameterGroups:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups: ParameterGroups = [
        {"params": weights, "lr_scale": scale},
        {"params": others, "lr_scale": scale * net.backbone.bias_lr_scale, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_factory(node: Mapping[str, Any]) -> OptimizerFactory:
    """Return what makes the optimizer of a configuration node: the class or function that its `_target_` names.

    The key `backbone_lr_scale` is left to group_parameters.

    Raises:
        UserError: if there is no such class or function, it refuses its keys, or does not return an optimizer.
    """
    own = {each.name for each in fields(_GroupKeys)}
    check_fields(_GroupKeys(**{name: value for name, value in node.items() if name in own}), "optimizer.")
    factory = bind_target({name: value for name, value in node.items() if name not in own}, "optimizer")
    try_out(partial(_create_small_optimizer, factory, torch.device("cpu")), "optimizer")
    return factory


def _create_small_optimizer(factory: OptimizerFactory, device: torch.device) -> Optimizer:
    # As large as the smallest that Muon takes.
    matrices = [Parameter(torch.ones(shape, device=device)) for shape in ((4, 4), (4, 4, 3, 3))]
    biases = [Parameter(torch.ones(4, device=device))]
    groups: ParameterGroups = [
        {"params": matrices, "lr_scale": 1.0},
        {"params": biases, "lr_scale": 1.0, "weight_decay": 0.0},
    ]
    return _call_factory(factory, groups)


def _make_steps(factory: OptimizerFactory, device: torch.device, gives_closure: bool) -> None:
    """Make two steps as Lightning does, which gives the loss and its gradients by a closure, or before the step."""
    optimizer = _create_small_optimizer(factory, device)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def compute_loss() -> Any:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
            loss.backward()
        return loss

    for _ in range(2):
        if gives_closure:
            optimizer.step(closure=compute_loss)
        else:
            compute_loss()
            optimizer.step()


def create_optimizer(net: SPPNet, factory: OptimizerFactory | None = None, backbone_lr_scale: float = 1.0) -> Optimizer:
    """Return the optimizer of a network, by `factory` or as in the paper, at the rates of its first step.

    Raises:
        UserError: if the factory refuses its arguments, or does not return an optimizer with a learning rate; or if
            all parameters are frozen.
    """
    optimizer = _call_factory(factory or PAPER_SGD, group_parameters(net, backbone_lr_scale))
    scale_rates(optimizer)
    return optimizer


def _call_factory(factory: OptimizerFactory, groups: ParameterGroups) -> Optimizer:
    optimizer = call_bound(partial(factory), "optimizer", groups)
    if not isinstance(optimizer, Optimizer) or "lr" not in optimizer.defaults:
        raise UserError(f"optimizer: {optimizer!r} is not a torch optimizer with a learning rate, lr")
    return optimizer


def scale_rates(optimizer: Optimizer, factor: float = 1.0) -> None:
    """Set the rate of every group to the optimizer's own, times `factor` and the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * factor * group.get("lr_scale", 1.0)


def check_optimizer(net: SPPNet, factory: OptimizerFactory | None, trainer: pl.Trainer) -> None:
    """Find out before a run starts whether the optimizer can be made and can step on the trainer's device.

    Raises:
        UserError: as create_optimizer does; if a step ends in an error; or if gradients are to be clipped that a fused
            step unscales itself.
    """
    optimizer = create_optimizer(net, factory)
    plugin = trainer.precision_plugin
    mixed = isinstance(plugin, pl.plugins.MixedPrecision)
    # A scaler of gradients looks at them before the step.
    gives_closure = getattr(plugin, "scaler", None) is None
    device = trainer.strategy.root_device
    try_out(partial(_make_steps, factory or PAPER_SGD, device, gives_closure), "optimizer")
    if mixed and trainer.gradient_clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UserError(
            f"a fused optimizer cannot clip gradients at trainer.precision={trainer.precision}; set "
            "optimizer.fused=false or trainer.gradient_clip_val=null"
        )
