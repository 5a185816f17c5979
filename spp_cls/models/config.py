"""The configuration of a network as plain values, and what timm is told of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spp_cls.cli.errors import UserError
from spp_cls.cli.schema import check_fields, key
from spp_cls.models.backbone import Backbone
from spp_cls.models.timm_models import PREFIX, find_preprocessing

# Mean RGB of the ImageNet training images, 0..255. The paper subtracts a mean image and warps it to other sizes;
# its average is nearly flat, and one colour fits every size.
IMAGENET_MEAN = (123.675, 116.28, 103.53)

# Larger levels, images and widths are errors of typing or damaged files.
_MOST_BINS, _MOST_PIXELS, _MOST_LAYERS = 64, 10_000, 64


@dataclass(frozen=True)
class NetConfig:
    """All that rebuilds a network, as plain values: a checkpoint carries it beside the weights.

    `hidden` are the units of the hidden fc layers; None: two of 4096 times `width`, which also scales the channels of
    the backbone. `pooling` is spp, avg (the mean over the map) or none (the paper's baseline); `levels` are those of
    spp, which the others do not use. `input_size` is the side of the training crop in pixels, the unit of every test
    protocol; with pooling none it is the only size that the network takes. The input of the network is (pixels - mean)
    / std, pixels from 0 to 255, one value a channel; an empty std is 1 for every channel, as in the paper. Images are
    resized with `interpolation` to be tested.

    `init` chooses the initial weights: paper (N(0, 0.01), biases 1 in conv2, conv4, conv5 and the hidden fc layers,
    else 0: AlexNet's, which the paper follows) or kaiming (He's, biases 0), which needs a std near that of the pixels.
    The backbones of timm have timm's initial weights.

    Raises:
        UserError: if a field has a value of another type or range, or two fields contradict each other.
    """

    name: str = "zf5"
    pooling: Literal["spp", "avg", "none"] = "spp"
    num_classes: int = key(1000, least=0, most=10_000_000)
    levels: tuple[int, ...] = key((6, 3, 2, 1), least=1, most=_MOST_BINS)
    hidden: tuple[int, ...] | None = key(None, least=1, most=1_000_000)
    width: float = key(1.0, above=0, most=16)
    input_size: int = key(224, least=1, most=_MOST_PIXELS)
    in_chans: int = key(3, least=1, most=10_000)
    drop_rate: float = key(0.5, least=0, below=1)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = key((), above=0)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
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
        if self.is_from_timm and (self.pooling == "none" or self.width != 1):
            raise UserError(
                f"{self.name} has model.pooling spp or avg and model.width 1.0; got {self.pooling} and {self.width:g}"
            )
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(f"{len(self.class_names)} class names for {self.num_classes} classes")

    @property
    def takes_any_size(self) -> bool:
        """Whether the network takes images of any size: all but the paper's baseline do."""
        return self.pooling != "none"

    @property
    def is_from_timm(self) -> bool:
        """Whether timm has the backbone."""
        return self.name.startswith(PREFIX)


# A network of any configuration, by the name that timm knows it by; a name of Table 1 stands for its configuration.
ANY_NET = "spp_net"


def get_timm_name(config: NetConfig) -> str:
    """Return the name by which timm makes the network once spp_cls is imported."""
    suffixes = {"spp": "_spp", "none": ""}
    return ANY_NET if config.is_from_timm or config.pooling == "avg" else config.name + suffixes[config.pooling]


def create_config(name: str, **options: Any) -> NetConfig:
    """Return the configuration of a network; an option that is None or not given has its default.

    For a network of timm, mean, std, input size and interpolation are what timm states for it. For other than three
    input channels each has the average of the three means, and of the three std.

    Raises:
        UserError: as NetConfig does; or if timm has no such network.
    """
    given = {option: value for option, value in options.items() if value is not None}
    of_timm = find_preprocessing(name)._asdict() if name.startswith(PREFIX) else {}
    defaults: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": (1.0,) * 3, **of_timm}
    in_chans = given.get("in_chans", 3)
    if isinstance(in_chans, int) and in_chans != 3:
        defaults |= {each: (sum(defaults[each]) / 3,) * in_chans for each in ("mean", "std")}
    return NetConfig(name, **{**defaults, **given})


def describe_for_timm(config: NetConfig, backbone: Backbone) -> dict[str, Any]:
    """Describe a network and its preprocessing as timm's pretrained_cfg does: mean and std of pixels of 0..1."""
    side, smallest = config.input_size, backbone.smallest_input
    return {
        "architecture": get_timm_name(config),
        "num_classes": config.num_classes,
        "input_size": (config.in_chans, side, side),
        "min_input_size": (config.in_chans, smallest, smallest),
        "fixed_input_size": not config.takes_any_size,
        "interpolation": config.interpolation,
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
