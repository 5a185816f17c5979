"""Registers the networks with timm: zf5, zf5_spp, convnet5, convnet5_spp and on."""

from collections.abc import Callable
from typing import Any, Literal

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from spp_cls.models.backbone import Backbone
from spp_cls.models.net import IMAGENET_MEAN, NetRecipe, SPPNet, build_net, pretrained_cfg
from spp_cls.models.specs import SPECS

# register_model looks its entry points' metadata up under this name.
default_cfgs: dict[str, Any] = {}


def _entry_point(name: str, pooling: Literal["spp", "none"], variant: str) -> Callable[..., SPPNet]:
    def build(img_size: int | tuple[int, int] | None = None, **options: Any) -> SPPNet:
        # timm fills in the channels and, for a network of fixed input size, the size; img_size is its name for it.
        if img_size is not None:
            options["input_size"] = img_size if isinstance(img_size, int) else img_size[0]
        in_chans = options.get("in_chans", 3)
        if in_chans != 3:
            options.setdefault("mean", (sum(IMAGENET_MEAN) / 3,) * in_chans)
        return build_net(name, pooling, **options)

    def create(pretrained: bool = False, **options: Any) -> SPPNet:
        return build_model_with_cfg(build, variant, pretrained, **options)

    create.__name__ = create.__qualname__ = variant
    create.__doc__ = f"Build {variant} (Table 1); no weights are published for it."
    return create


for _name, _spec in SPECS.items():
    _smallest = Backbone(_spec).smallest_input
    for _pooling in ("none", "spp"):
        _recipe = NetRecipe(_name, _pooling)
        _cfg = pretrained_cfg(_recipe, _smallest)
        _variant = _cfg["architecture"]
        default_cfgs.update(generate_default_cfgs({_variant: _cfg}))
        register_model(_entry_point(_name, _pooling, _variant))
