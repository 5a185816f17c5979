"""Parameter groups, and the optimizer made from them: the paper's, or any that takes parameter groups."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import SGD, Optimizer

from spp_cls.cli.errors import UserError
from spp_cls.cli.targets import bind_target, call_bound
from spp_cls.models.net import SPPNet

ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups], Optimizer]

# Section 3.1. One kernel updates all parameters.
PAPER_SGD: OptimizerFactory = partial(SGD, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


def group_parameters(net: SPPNet) -> ParameterGroups:
    """Return two groups: weights, which decay, and biases and norms, which do not.

    The weights have the optimizer's weight decay, the others none. `lr_scale` is a factor of the learning rate, by
    timm's convention: biases of the paper's networks learn at twice the rate, as AlexNet's.
    """
    weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    return [
        {"params": weights, "lr_scale": 1.0},
        {"params": others, "lr_scale": net.backbone.bias_lr_scale, "weight_decay": 0.0},
    ]


def create_factory(node: Mapping[str, Any]) -> OptimizerFactory:
    """Return what makes the optimizer of a configuration node: the class or function that its `_target_` names.

    Raises:
        UserError: if there is no such class or function, it refuses its keys, or does not return an optimizer.
    """
    factory = bind_target(node, "optimizer")
    _call_factory(factory, [{"params": [torch.nn.Parameter(torch.zeros(1, 1))], "lr_scale": 1.0}])
    return factory


def create_optimizer(net: SPPNet, factory: OptimizerFactory | None = None) -> Optimizer:
    """Return the optimizer of a network, by `factory` or as in the paper, at the rates of its first step.

    Raises:
        UserError: if the factory refuses its arguments, or does not return an optimizer with a learning rate.
    """
    optimizer = _call_factory(factory or PAPER_SGD, group_parameters(net))
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
    """Find out before a run starts whether the optimizer can be made, and whether its gradients can be clipped.

    Raises:
        UserError: as create_optimizer does; or if gradients are to be clipped that a fused step unscales itself.
    """
    optimizer = create_optimizer(net, factory)
    mixed = isinstance(trainer.precision_plugin, pl.plugins.MixedPrecision)
    if mixed and trainer.gradient_clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UserError(
            f"a fused optimizer cannot clip gradients at trainer.precision={trainer.precision}; set "
            "optimizer.fused=false or trainer.gradient_clip_val=null"
        )
