"""SPP-nets: image classifiers for images of any size, as He, Zhang, Ren and Sun describe them.

Importing the package registers the networks with timm.
"""

import spp_cls.models.registry  # noqa: F401
from spp_cls.cli.errors import UserError
from spp_cls.models.backbone import Backbone, register_backbone
from spp_cls.models.checkpoint import load_net
from spp_cls.models.config import NetConfig
from spp_cls.models.head import Head
from spp_cls.models.lrn import LocalResponseNorm
from spp_cls.models.net import SPPNet, build_net
from spp_cls.models.pyramid import AveragePool, SpatialPyramidPool, pool_windows

__all__ = [
    "AveragePool",
    "Backbone",
    "Head",
    "LocalResponseNorm",
    "NetConfig",
    "SPPNet",
    "SpatialPyramidPool",
    "UserError",
    "build_net",
    "load_net",
    "pool_windows",
    "register_backbone",
]
