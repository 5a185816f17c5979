"""Backbones of timm: any of its networks that gives a feature map for images of any size."""

from torch import Tensor, nn
from torch.nn import functional as F

from spp_cls.models.backbone import Backbone
from spp_cls.models.timm_models import create_model, get_architecture, load_model
from spp_cls.models.tracing.traits import count_cells, find_traits


class TimmBackbone(Backbone):
    """A network of timm up to the map that it usually pools, its `forward_features`; the layers behind are left out.

    Where branches of a network fit together only at sides of certain multiples (HRNet, DLA), images of other sizes are
    padded with zeros, the mean colour, at the right and below. The geometry is traced, once for each name.

    Raises:
        UserError: if timm has no such network, it gives no map for images of any size, or its weights cannot be loaded.
    """

    def __init__(self, name: str, in_chans: int = 3, pretrained: bool = False) -> None:
        super().__init__()
        self.name, self.registered_as = name, (name, 1.0)
        self.traits = find_traits(get_architecture(name))
        self.model = load_model(name, in_chans) if pretrained else create_model(name, in_chans)
        for layer in self.traits.unused:
            # Parameters without a gradient would stop several processes.
            self.model.set_submodule(layer, nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        """Map N x in_chans x H x W images to the last feature map."""
        maps = self.model.forward_features(_pad_to_multiple(images, self.traits.multiple))
        return maps.permute(0, 3, 1, 2) if self.traits.is_channels_last else maps

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        return self.traits.channels

    @property
    def stride(self) -> int:
        """Pixels from the centre of a cell of the last map to that of the next."""
        return self.traits.geometry.stride

    @property
    def first_centre(self) -> float:
        """Pixel under the centre of the first cell, where sides are timm's own or differ by multiples of the stride."""
        return self.traits.geometry.first_centre

    def map_size(self, size: int) -> int:
        """Cells along a side of the last map, for `size` pixels; 0 where the image is too small."""
        return count_cells(get_architecture(self.name), size, self.traits.multiple)

    @property
    def smallest_input(self) -> int:
        """Smallest image side, in pixels, that leaves one cell."""
        return self.traits.smallest_input


def _pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    if multiple == 1:
        return images
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))
