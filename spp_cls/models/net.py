"""The networks: backbone -> pooling -> head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import check_fields, key
from spp_cls.models.backbone import Backbone, create_backbone, scale_width
from spp_cls.models.head import Head
from spp_cls.models.pyramid import SpatialPyramidPool
from spp_cls.models.specs import BASELINE_LEVELS, HIDDEN

# Mean RGB of the ImageNet training images, 0..255. The paper subtracts a mean image and warps it to other sizes;
# its average is nearly flat, and one colour fits every size.
IMAGENET_MEAN = (123.675, 116.28, 103.53)

# The side of square images, or height and width, in pixels.
ImageSize = int | tuple[int, int]

# Larger levels, images and widths are errors of typing or damaged files.
_MOST_BINS, _MOST_PIXELS, _MOST_LAYERS = 64, 10_000, 64


def get_shape(size: ImageSize) -> tuple[int, int]:
    """Return height and width of images of a size."""
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class NetConfig:
    """All that rebuilds a network, as plain values: a checkpoint carries it beside the weights.

    `hidden` are the units of the hidden fc layers; None: two of 4096 times `width`, which also scales the channels of
    the backbone. `input_size` is the side of the training crop in pixels, the unit of every test protocol; without
    SPP it is the only size that the network takes. The input of the network is (pixels - mean) / std, pixels from 0
    to 255, one value a channel; an empty std is 1 for every channel, as in the paper.

    `init` chooses the first weights: paper (N(0, 0.01), biases 1 in conv2, conv4, conv5 and the hidden fc layers, else
    0: AlexNet's, which the paper follows) or kaiming (He's, biases 0), which needs a std near that of the pixels.

    Raises:
        UserError: if a field has a value of another type or range, or two fields contradict each other.
    """

    name: str = "zf5"
    pooling: Literal["spp", "none"] = "spp"
    num_classes: int = key(1000, least=0, most=10_000_000)
    levels: tuple[int, ...] = key((6, 3, 2, 1), least=1, most=_MOST_BINS)
    hidden: tuple[int, ...] | None = key(None, least=1, most=1_000_000)
    width: float = key(1.0, above=0, most=16)
    input_size: int = key(224, least=1, most=_MOST_PIXELS)
    in_chans: int = key(3, least=1, most=10_000)
    drop_rate: float = key(0.5, least=0, below=1)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = key((), above=0)
    init: Literal["paper", "kaiming"] = "paper"
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("levels", "hidden", "mean", "std", "class_names"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        check_fields(self, "model.")
        if max(len(self.levels), len(self.hidden or ())) > _MOST_LAYERS:
            raise UserError(f"model.levels and model.hidden list no more than {_MOST_LAYERS} numbers each")
        if not self.std:
            object.__setattr__(self, "std", (1.0,) * self.in_chans)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_chans:
                raise UserError(f"model.{name} has {len(values)} values for {self.in_chans} input channels")
        if not self.levels:
            raise UserError("model.levels is empty; give the bins along a side of each level, such as [6,3,2,1]")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(f"{len(self.class_names)} class names for {self.num_classes} classes")

    @property
    def takes_any_size(self) -> bool:
        """Whether the network takes images of any size: with SPP it does."""
        return self.pooling == "spp"


class SPPNet(nn.Module):
    """A classifier in three parts: a backbone, a pooling of its feature map into bins, and a head.

    `config` describes the network; without one, it is made from the three parts. Inputs are N x in_chans x H x W, as
    data.loading.batch.normalize makes them from pixels. It has the interface of a timm model.
    """

    def __init__(
        self, backbone: Backbone, pool: SpatialPyramidPool, head: Head, config: NetConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config or NetConfig(type(backbone).__name__, num_classes=head.num_classes, levels=pool.levels)
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
        self.head.reset_classifier(num_classes)

    def init_weights(self, init: str) -> None:
        """Set the first weights, of `model.init`."""
        self.backbone.init_weights(init)
        self.head.init_weights(init)


def describe_for_timm(config: NetConfig, backbone: Backbone) -> dict[str, Any]:
    """Describe a network and its preprocessing as timm's pretrained_cfg does: mean and std of pixels of 0..1."""
    side, smallest = config.input_size, backbone.smallest_input
    return {
        "architecture": config.name + ("_spp" if config.pooling == "spp" else ""),
        "num_classes": config.num_classes,
        "input_size": (config.in_chans, side, side),
        "min_input_size": (config.in_chans, smallest, smallest),
        "fixed_input_size": not config.takes_any_size,
        "interpolation": "bilinear",
        "crop_pct": 224 / 256,
        "crop_mode": "center",
        "mean": tuple(value / 255 for value in config.mean),
        "std": tuple(value / 255 for value in config.std),
        "first_conv": f"backbone.{backbone.first_conv}",
        "classifier": "head.classifier",
        "label_names": config.class_names,
        "license": "apache-2.0",
        "paper_ids": "arXiv:1406.4729",
        "paper_name": "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition",
    }


def create_net(config: NetConfig) -> SPPNet:
    """Build the network of a configuration, with new weights.

    Raises:
        UserError: if no backbone has this name.
    """
    backbone = create_backbone(config.name, config.in_chans, config.width)
    pool = SpatialPyramidPool(config.levels if config.pooling == "spp" else BASELINE_LEVELS)
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


# Names for a network of Table 1 with options: a narrow one for demos and tests.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {"zf5_tiny": ("zf5", {"width": 0.25})}


def build_net(
    name: str = "zf5",
    pooling: Literal["spp", "none"] = "spp",
    num_classes: int = 1000,
    levels: Sequence[int] = (6, 3, 2, 1),
    **options: Any,
) -> SPPNet:
    """Build a network of Table 1, or one whose backbone was registered, with new weights.

    Further options are the fields of NetConfig: hidden, width, input_size, in_chans, drop_rate, mean, std, init,
    class_names.

    Raises:
        UserError: if there is no such network or option, or an option has a value that it cannot have.
    """
    if unknown := options.keys() - NetConfig.__dataclass_fields__.keys():
        raise UserError(f"build_net has no option {min(unknown)}; it has {', '.join(NetConfig.__dataclass_fields__)}")
    name, preset = PRESETS.get(name, (name, {}))
    return create_net(NetConfig(name, pooling, num_classes, tuple(levels), **{**preset, **options}))
