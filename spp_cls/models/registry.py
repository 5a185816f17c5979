"""Registers the networks with timm: zf5, zf5_spp, convnet5, convnet5_spp and on."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from spp_cls.cli.errors import UserError
from spp_cls.models.config import ANY_NET, describe_for_timm
from spp_cls.models.net import SPPNet, build_net
from spp_cls.models.specs import PRESETS, SPECS

# register_model looks up the metadata of its entry points under this name.
default_cfgs: dict[str, Any] = {}


def _create_entry_point(name: str, pooling: Literal["spp", "avg", "none"], variant: str) -> Callable[..., SPPNet]:
    def build(img_size: int | tuple[int, int] | None = None, **options: Any) -> SPPNet:
        # timm fills in the channels and, for a network of fixed input size, the size; img_size is its name for it.
        if img_size is not None:
            height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
            if height != width:
                raise UserError(f"img_size={img_size} is the side of square crops; give one number")
            options["input_size"] = height
        return build_net(name, pooling, **options)

    def create(pretrained: bool = False, **options: Any) -> SPPNet:
        net: SPPNet = build_model_with_cfg(build, variant, pretrained, **options)
        # timm's own says what the variant has by default, not what `options` changed.
        own = {**describe_for_timm(net.config, net.backbone), "architecture": variant}
        net.pretrained_cfg = net.default_cfg = {**net.pretrained_cfg, **own}
        return net

    create.__name__ = create.__qualname__ = variant
    create.__doc__ = f"Build {variant} (Table 1); no weights are published for it."
    return create


def spp_net(
    pretrained: bool = False, name: str = "zf5", pooling: Literal["spp", "avg"] = "spp", **options: Any
) -> SPPNet:
    """Build any network of build_net, such as timm/resnet50, by its name; an exported folder can be loaded so."""
    return _create_entry_point(name, pooling, ANY_NET)(pretrained, **options)


for _name in (*SPECS, *PRESETS):
    for _pooling in ("none", "spp"):
        _variant = _name + ("_spp" if _pooling == "spp" else "")
        # Shapes alone; no weights are drawn.
        with torch.device("meta"):
            _cfg = build_net(_name, _pooling).pretrained_cfg
        default_cfgs.update(generate_default_cfgs({_variant: {**_cfg, "architecture": _variant}}))
        register_model(_create_entry_point(_name, _pooling, _variant))

default_cfgs.update(generate_default_cfgs({ANY_NET: {}}))
register_model(spp_net)
