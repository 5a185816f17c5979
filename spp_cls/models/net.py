"""The networks: backbone -> pyramid pooling -> fully connected head."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from spp_cls.errors import UserError
from spp_cls.models.backbone import Backbone
from spp_cls.models.pyramid import SpatialPyramidPool, pool_windows
from spp_cls.models.specs import Conv, get_spec

# Mean RGB of the ImageNet training images, 0..255. The paper subtracts a mean image and warps it to other sizes;
# its average is nearly flat, and one colour fits every size.
IMAGENET_MEAN = (123.675, 116.28, 103.53)

# Standard deviation of ImageNet's pixels, 0..255 (timm's 0.226 of 255).
_PIXEL_DEVIATION = 57.6

_PAPER_DEVIATION = 0.01


@dataclass(frozen=True)
class NetRecipe:
    """Everything that rebuilds a network, as plain values: it is what a checkpoint carries beside the weights.

    `input_size` is the side of the training crop in pixels, the unit of every test protocol. Without SPP it is the
    only size the network takes. `mean` is subtracted from pixels of 0..255, one value a channel.

    `init` chooses the first weights. `paper`: N(0, 0.01), biases 1 in conv2, conv4, conv5 and the hidden fc layers,
    else 0 (AlexNet's, which the paper follows). `kaiming`: He initialisation but for the classifier, biases 0, and
    the network divides its input by the deviation of pixels, without which conv1 would learn thousands of times
    faster than the rest; it starts at once, where the paper's takes many steps.

    Raises:
        UserError: a field has a value that is none of its kind.
    """

    name: str = "zf5"
    pooling: Literal["spp", "none"] = "spp"
    num_classes: int = 1000
    levels: tuple[int, ...] = (6, 3, 2, 1)
    input_size: int = 224
    in_chans: int = 3
    drop_rate: float = 0.5
    mean: tuple[float, ...] = IMAGENET_MEAN
    init: Literal["paper", "kaiming"] = "paper"
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.pooling not in ("spp", "none"):
            raise UserError(f"pooling is 'spp' or 'none', not {self.pooling!r}")
        if self.init not in ("paper", "kaiming"):
            raise UserError(f"init is 'paper' or 'kaiming', not {self.init!r}")
        if self.num_classes < 0:
            raise UserError(f"num_classes is 0 (no classifier) or more, not {self.num_classes}")
        if len(self.mean) != self.in_chans:
            raise UserError(f"mean has {len(self.mean)} values for {self.in_chans} input channels; give one each")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(f"{len(self.class_names)} class names for {self.num_classes} classes")


class Head(nn.Sequential):
    """Two hidden fc layers with dropout, then the classifier: section 3.1 of the paper."""

    hidden2: nn.Linear
    classifier: nn.Module

    def __init__(self, in_features: int, hidden: int, num_classes: int, drop_rate: float) -> None:
        super().__init__(
            OrderedDict(
                hidden1=nn.Linear(in_features, hidden),
                relu1=nn.ReLU(inplace=True),
                drop1=nn.Dropout(drop_rate),
                hidden2=nn.Linear(hidden, hidden),
                relu2=nn.ReLU(inplace=True),
                drop2=nn.Dropout(drop_rate),
                classifier=_classifier(hidden, num_classes),
            )
        )

    def forward(self, values: Tensor, pre_logits: bool = False) -> Tensor:
        """Map N x in_features values to N x num_classes logits, or to the N x hidden values before them."""
        *hidden, classifier = self.children()
        for layer in hidden:
            values = layer(values)
        return values if pre_logits else classifier(values)


def _classifier(in_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(in_features, num_classes) if num_classes else nn.Identity()


class SPPNet(nn.Module):
    """A network of Table 1, with spatial pyramid pooling or the 6 x 6 pooling of its baseline.

    Images are N x in_chans x H x W, pixels of 0..255 minus the mean. It has the interface of a timm model.
    """

    def __init__(self, recipe: NetRecipe) -> None:
        super().__init__()
        spec = get_spec(recipe.name)
        self.recipe = recipe
        self.backbone = Backbone(spec, recipe.in_chans)
        self.pool = SpatialPyramidPool(recipe.levels if recipe.pooling == "spp" else (spec.baseline_bins,))
        self.num_features = spec.channels
        self.head_hidden_size = spec.hidden
        in_features = spec.channels * self.pool.bins
        self.head = Head(in_features, spec.hidden, recipe.num_classes, recipe.drop_rate)
        self.pretrained_cfg: dict[str, Any] = pretrained_cfg(recipe, self.backbone.smallest_input)
        self.default_cfg = self.pretrained_cfg
        self._init_weights()

    @property
    def num_classes(self) -> int:
        """Classes that the classifier tells apart; 0 without a classifier."""
        return self.recipe.num_classes

    def _init_weights(self) -> None:
        spec = self.backbone.spec
        biases = [layer.bias for layer in spec.layers if isinstance(layer, Conv)]
        biases += [spec.hidden_bias, spec.hidden_bias, 0.0]
        layers = [module for module in self.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        # Without a classifier there is one layer fewer.
        for layer, bias in zip(layers, biases, strict=False):
            assert layer.bias is not None
            if self.recipe.init == "paper":
                nn.init.normal_(layer.weight, std=_PAPER_DEVIATION)
                nn.init.constant_(layer.bias, bias)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        if isinstance(self.get_classifier(), nn.Linear):
            nn.init.normal_(layers[-1].weight, std=_PAPER_DEVIATION)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map N x in_chans x H x W images to the last feature map, N x num_features x h x w.

        Raises:
            UserError: the images are too small, or of another size than the one a net without SPP takes.
        """
        self.check_size(*images.shape[-2:])
        if self.recipe.init == "kaiming":
            images = images / _PIXEL_DEVIATION
        return self.backbone(images)

    def check_size(self, height: int, width: int) -> None:
        """Raise UserError if the network cannot take images of height x width pixels."""
        side = self.recipe.input_size
        if self.recipe.pooling == "none" and (height != side or width != side):
            raise UserError(
                f"{self.recipe.name} without SPP takes images of {side} x {side} pixels, not {height} x {width}; "
                "with SPP it takes any size"
            )
        self.backbone.check_size(height, width)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Map N x num_features x h x w maps to N x num_classes logits, or to the N x 4096 values before them."""
        return self.head(self.pool(maps), pre_logits)

    def forward_windows(self, maps: Tensor, windows: Tensor) -> Tensor:
        """Map K windows of feature maps to K x num_classes logits.

        `windows` are K x 5: the map in the batch, then the first and last cell, x0, y0, x1, y1.
        """
        return self.head(pool_windows(maps, windows, self.pool.levels))

    def forward(self, images: Tensor) -> Tensor:
        """Map N x in_chans x H x W images to N x num_classes logits."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Return the last fc layer."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last fc layer for `num_classes` classes, N(0, 0.01); with 0, none.

        Raises:
            UserError: `global_pool` is given: these networks end in a pyramid.
        """
        if global_pool is not None:
            raise UserError("SPP-nets have no global pooling to change; give levels to build_net instead")
        self.recipe = replace(self.recipe, num_classes=num_classes, class_names=None)
        old = self.head.hidden2.weight
        classifier = _classifier(self.head_hidden_size, num_classes).to(device=old.device, dtype=old.dtype)
        if isinstance(classifier, nn.Linear):
            nn.init.normal_(classifier.weight, std=_PAPER_DEVIATION)
            nn.init.zeros_(classifier.bias)
        self.head.classifier = classifier


def pretrained_cfg(recipe: NetRecipe, smallest_input: int) -> dict[str, Any]:
    """Describe a network and its preprocessing in timm's terms (pixels of 0..1, hence a std of 1/255)."""
    side = recipe.input_size
    return {
        "architecture": recipe.name + ("_spp" if recipe.pooling == "spp" else ""),
        "num_classes": recipe.num_classes,
        "input_size": (recipe.in_chans, side, side),
        "min_input_size": (recipe.in_chans, smallest_input, smallest_input),
        "fixed_input_size": recipe.pooling == "none",
        "interpolation": "bilinear",
        "crop_pct": 224 / 256,
        "crop_mode": "center",
        "mean": tuple(value / 255 for value in recipe.mean),
        "std": (1 / 255,) * recipe.in_chans,
        "first_conv": "backbone.conv1",
        "classifier": "head.classifier",
        "label_names": recipe.class_names,
        "license": "apache-2.0",
        "paper_ids": "arXiv:1406.4729",
        "paper_name": "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition",
    }


def build_net(
    name: str = "zf5",
    pooling: Literal["spp", "none"] = "spp",
    num_classes: int = 1000,
    levels: Sequence[int] = (6, 3, 2, 1),
    **options: Any,
) -> SPPNet:
    """Build a network of Table 1, or zf5_tiny, with new weights.

    Further options are the fields of NetRecipe: input_size, in_chans, drop_rate, mean, init, class_names.

    Raises:
        UserError: no such network or pooling, levels that are no pyramid, or options at odds with each other.
    """
    for field in ("mean", "class_names"):
        if options.get(field) is not None:
            options[field] = tuple(options[field])
    return SPPNet(NetRecipe(name, pooling, num_classes, tuple(levels), **options))
