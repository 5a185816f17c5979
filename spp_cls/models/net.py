"""The networks: backbone -> pooling -> head."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spp_cls.cli.errors import UserError
from spp_cls.models.backbone import Backbone, create_backbone, scale_width
from spp_cls.models.config import NetConfig, create_config, describe_for_timm
from spp_cls.models.head import Head
from spp_cls.models.pyramid import AveragePool, Pooling, SpatialPyramidPool
from spp_cls.models.specs import BASELINE_LEVELS, HIDDEN, PRESETS
from spp_cls.models.timm_backbone import TimmBackbone
from spp_cls.models.timm_models import PREFIX

# The side of square images, or height and width, in pixels.
ImageSize = int | tuple[int, int]


def get_shape(size: ImageSize) -> tuple[int, int]:
    """Return height and width of images of a size."""
    return (size, size) if isinstance(size, int) else size


class SPPNet(nn.Module):
    """A classifier in three parts: a backbone, a pooling of its feature map into bins, and a head.

    `config` describes the network; without one, it is made from the three parts, and load_net builds the network again
    if create_backbone or TimmBackbone made the backbone. Inputs are N x in_chans x H x W, as
    data.loading.batch.normalize makes them from pixels. It has the interface of a timm model.

    Raises:
        UserError: if the head takes another number of values than the backbone and the pooling give.
    """

    def __init__(self, backbone: Backbone, pool: Pooling, head: Head, config: NetConfig | None = None) -> None:
        super().__init__()
        length = backbone.channels * pool.bins
        # Another class of head may not say.
        if getattr(head, "in_features", length) != length:
            raise UserError(
                f"the head takes {head.in_features} values, and {backbone.channels} channels in {pool.bins} bins are "
                f"{length}; build it with in_features={length}"
            )
        self.config = config or _describe_parts(backbone, pool, head)
        self.backbone = backbone
        self.pool = pool
        self.head = head
        self.num_features = backbone.channels
        self.head_hidden_size = head.hidden_size
        self.pretrained_cfg: dict[str, Any] = describe_for_timm(self.config, backbone)
        self.default_cfg = self.pretrained_cfg

    def train(self, mode: bool = True) -> "SPPNet":
        """Set training or evaluation mode; parts whose parameters are all frozen stay in evaluation mode."""
        super().train(mode)
        for part in self.modules():
            trained = [parameter.requires_grad for parameter in part.parameters()]
            if part is not self and trained and not any(trained):
                part.eval()
        return self

    @property
    def num_classes(self) -> int:
        """Classes that the classifier tells apart; 0 without a classifier."""
        return self.config.num_classes

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Layers whose outputs can be taken as features: map, pool, hidden1 and on, logits."""
        return ("map", "pool", *self.head.layer_names)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map N x in_chans x H x W images to the last feature map, N x num_features x h x w.

        Raises:
            UserError: if the images are too small, or of another size than a network without SPP takes.
        """
        self.check_size(*images.shape[-2:])
        return self.backbone(images)

    def check_size(self, height: int, width: int) -> None:
        """Raise UserError if the network cannot take images of height x width pixels."""
        side, smallest = self.config.input_size, self.backbone.smallest_input
        if not self.config.takes_any_size and (height != side or width != side):
            raise UserError(
                f"{self.config.name} without SPP takes images of {side} x {side} pixels, not {height} x {width}; "
                "with SPP it takes any size"
            )
        if min(height, width) < smallest:
            raise UserError(
                f"an image of {height} x {width} pixels leaves no cell in the last map of {self.config.name}; "
                f"the smallest side it takes is {smallest}"
            )

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Map N x num_features x h x w maps to N x num_classes logits, or to the values before the classifier."""
        return self.head(self.pool(maps), pre_logits)

    def forward_windows(self, maps: Tensor, windows: Tensor) -> Tensor:
        """Map K windows of feature maps to K x num_classes logits.

        `windows` are K x 5: the map in the batch, then the first and last cell, x0, y0, x1, y1.
        """
        return self.head(self.pool.pool_windows(maps, windows))

    def forward(self, images: Tensor) -> Tensor:
        """Map N x in_chans x H x W images to N x num_classes logits."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Return the last fc layer."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last fc layer for `num_classes` classes, N(0, 0.01); with 0, none.

        Raises:
            UserError: if `global_pool` is given: these networks end in a pyramid.
        """
        if global_pool is not None:
            raise UserError("SPP-nets have no global pooling to change; give levels to build_net instead")
        self.config = replace(self.config, num_classes=num_classes, class_names=None)
        self.head.reset_classifier(num_classes, like=next(self.backbone.parameters(), None))

    def init_weights(self, init: str) -> None:
        """Set the initial weights, of `model.init`."""
        self.backbone.init_weights(init)
        self.head.init_weights(init)


def _describe_parts(backbone: Backbone, pool: Pooling, head: Head) -> NetConfig:
    first = backbone.get_submodule(backbone.first_conv)
    name, width = backbone.registered_as or (type(backbone).__name__, 1.0)
    return create_config(
        name, width=width,
        pooling="avg" if isinstance(pool, AveragePool) else "spp", levels=pool.levels,
        num_classes=head.num_classes, hidden=head.hidden, drop_rate=head.drop_rate,
        in_chans=first.in_channels if isinstance(first, nn.Conv2d) else None,
    )  # fmt: skip


def create_net(config: NetConfig, pretrained: bool = False) -> SPPNet:
    """Build the network of a configuration, with new weights; `pretrained`: timm's, up to the feature map.

    Raises:
        UserError: if no backbone has this name, or there are no such weights or no connection to them.
    """
    if config.is_from_timm:
        backbone: Backbone = TimmBackbone(config.name, config.in_chans, pretrained)
    elif pretrained:
        raise UserError(f"there are no pretrained weights of {config.name}; set model.pretrained=false")
    else:
        backbone = create_backbone(config.name, config.in_chans, config.width)
    levels = config.levels if config.pooling == "spp" else BASELINE_LEVELS
    pool = AveragePool() if config.pooling == "avg" else SpatialPyramidPool(levels)
    hidden = (scale_width(HIDDEN, config.width),) * 2 if config.hidden is None else config.hidden
    head = Head(backbone.channels * pool.bins, hidden, config.num_classes, config.drop_rate)
    net = SPPNet(backbone, pool, head, config)
    net.init_weights(config.init)
    return net


def check_sizes(config: NetConfig, sizes: Sequence[ImageSize]) -> None:
    """Raise UserError if the network of a configuration cannot be built, or cannot take images of a size."""
    # Shapes alone; no weights are drawn.
    with torch.device("meta"):
        net = create_net(config)
    for size in sizes:
        net.check_size(*get_shape(size))


def warn_of_levels(config: NetConfig, sizes: Sequence[ImageSize]) -> str | None:
    """Return a warning if a pyramid level has more bins along a side than the map has cells at one of the sizes."""
    with torch.device("meta"):
        backbone = create_net(config).backbone
    cells = {side: backbone.map_size(side) for side in (min(get_shape(size)) for size in sizes)}
    smallest = min(cells, key=lambda size: cells[size])
    if config.pooling != "spp" or max(config.levels) <= cells[smallest]:
        return None
    return (
        f"warning: at {smallest} pixels the map of {config.name} has {cells[smallest]} x {cells[smallest]} cells, and "
        f"model.levels={list(config.levels)} more bins, which then share cells; set smaller levels or larger sizes"
    )


# What networks of timm have where nothing else is said: a linear classifier, and levels for maps of 7 x 7 cells.
_TIMM_DEFAULTS: dict[str, Any] = {"levels": (4, 2, 1), "hidden": (), "init": "kaiming"}


def build_net(
    name: str = "zf5",
    pooling: Literal["spp", "avg", "none"] = "spp",
    num_classes: int = 1000,
    levels: Sequence[int] | None = None,
    pretrained: bool = False,
    **options: Any,
) -> SPPNet:
    """Build a network of Table 1, one whose backbone was registered, or "timm/NAME" on a backbone of timm.

    The weights are new; with `pretrained` the backbone has timm's. `levels` None: (6, 3, 2, 1), for timm (4, 2, 1).
    Further options are the fields of NetConfig: hidden, width, input_size, in_chans, drop_rate, mean, std,
    interpolation, init, class_names.

    Raises:
        UserError: if there is no such network or option, or an option has a value that it cannot have; or if there
            are no pretrained weights, or no connection to them.
    """
    if unknown := options.keys() - NetConfig.__dataclass_fields__.keys():
        raise UserError(f"build_net has no option {min(unknown)}; it has {', '.join(NetConfig.__dataclass_fields__)}")
    name, defaults = PRESETS.get(name, (name, _TIMM_DEFAULTS if name.startswith(PREFIX) else {}))
    given = {"pooling": pooling, "num_classes": num_classes, "levels": levels, **options}
    chosen = {option: value for option, value in given.items() if value is not None}
    return create_net(create_config(name, **{**defaults, **chosen}), pretrained)
