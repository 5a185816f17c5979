"""SPP-nets: image classifiers for images of any size, as He, Zhang, Ren and Sun describe them.

Importing the package registers the networks with timm.
"""

import spp_cls.models.timm_registry  # noqa: F401
from spp_cls.checkpoint import load_net
from spp_cls.errors import UserError
from spp_cls.models.lrn import LocalResponseNorm
from spp_cls.models.net import NetRecipe, SPPNet, build_net
from spp_cls.models.pyramid import SpatialPyramidPool, pool_windows

__all__ = [
    "LocalResponseNorm",
    "NetRecipe",
    "SPPNet",
    "SpatialPyramidPool",
    "UserError",
    "build_net",
    "load_net",
    "pool_windows",
]
