"""Pictures of the views of an image: windows on the image and on its feature map, and the bins of the pyramid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from spp_cls.cli.errors import UserError
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.data.loading.batch import normalize
from spp_cls.data.loading.dataset import read_image
from spp_cls.data.transforms.crops import find_corner
from spp_cls.data.transforms.decode import Pixels
from spp_cls.evaluation.evaluate import check_protocols
from spp_cls.evaluation.features import find_window
from spp_cls.evaluation.images import cut_images, get_cut
from spp_cls.evaluation.protocols import NINE, Protocol, View, make_map_views
from spp_cls.models.net import SPPNet
from spp_cls.training.logging import EpochPicture
from spp_cls.training.module import LitClassifier

# Pixels of the picture: the shorter side of the image, the space between panels, a line of text.
_SIDE, _GAP, _LINE = 280, 24, 22
_WHITE, _BLACK = (255, 255, 255), (32, 32, 32)

# Okabe and Ito's colours, which colour-blind people can tell apart, and grey: the centre first.
_COLOURS = (
    (213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (86, 180, 233), (240, 228, 66), (230, 159, 0),
    (140, 86, 75), (127, 127, 127),
)  # fmt: skip

# Dark to light: activations from 0 to the largest.
_HEAT = np.array([[13, 8, 60], [84, 39, 143], [183, 55, 121], [252, 136, 97], [252, 253, 191]], np.float32)

# Left, top, right, bottom in pixels.
Box = tuple[float, float, float, float]


@torch.no_grad()
def draw_views(net: SPPNet, pixels: Pixels, scale: int = 256, channel: int | None = None) -> Image.Image:
    """Draw the nine windows of a scale on an image, H x W x 3, and on its map, and the pyramid's bins of the first.

    `scale` is the min side for a network trained on crops of 224; others in proportion. `channel` None is the one with
    the largest mean. The bins show the maxima of the drawn channel, which are what the head gets of it.

    Raises:
        UserError: if the network cannot pool windows of maps, the map has no such channel, or the scale is too small.
    """
    if not net.config.takes_any_size:
        raise UserError("the network has no SPP, and takes crops alone; give one with SPP")
    views = make_map_views([scale], NINE, flips=False)
    check_protocols(net, [Protocol("views", views)])
    cut = get_cut(views[0], net.config.input_size)
    images = cut_images([pixels], views, net.config.input_size, net.config.interpolation)[cut]
    device = next(net.parameters()).device
    maps = net.forward_features(normalize(images.to(device), net.config.mean, net.config.std))
    channels = maps.shape[1]
    if channel is not None and channel >= channels:
        raise UserError(
            f"channel {channel} is not among the {channels} of the map; choose one from 0 to {channels - 1}"
        )
    chosen = int(maps[0].float().mean((1, 2)).argmax()) if channel is None else channel
    windows = [find_window(net, view, views, images, maps)[1:] for view in views]
    bins = net.pool.pool_windows(maps, torch.tensor([[0, *windows[0]]], device=device))[0]
    picture = _Picture(images[0].permute(1, 2, 0).numpy(), maps[0, chosen].float().cpu().numpy(), len(net.pool.levels))
    picture.draw_image(net, views)
    picture.draw_map(net, windows, chosen)
    picture.draw_bins(net, bins.float().cpu(), chosen)
    return picture.canvas


class _Picture:
    """A row of panels with a caption above each: the image, its map, and two rows of pyramid levels."""

    def __init__(self, pixels: Pixels, activations: NDArray[np.float32], num_levels: int) -> None:
        self.pixels = pixels
        self.activations = activations
        self.largest = float(activations.max()) or 1.0
        self.zoom = _SIDE / min(pixels.shape[:2])
        self.size = round(pixels.shape[1] * self.zoom), round(pixels.shape[0] * self.zoom)
        self.font = ImageFont.load_default(14)
        # The side of a level.
        self.side = (self.size[1] - _GAP) // 2
        columns = -(-num_levels // 2)
        width = _GAP + 2 * (self.size[0] + _GAP) + columns * (self.side + _GAP)
        self.canvas = Image.new("RGB", (width, self.top + self.size[1] + _GAP), _WHITE)
        self.pen = ImageDraw.Draw(self.canvas)
        self.left = _GAP

    @property
    def top(self) -> int:
        return _GAP + 2 * _LINE

    def draw_image(self, net: SPPNet, views: Sequence[View]) -> None:
        height, width = self.pixels.shape[:2]
        side = net.config.input_size
        self._begin(f"image of {width} x {height} pixels", f"{len(views)} windows of {side} x {side}")
        image = Image.fromarray(np.ascontiguousarray(self.pixels)).resize(self.size, Image.Resampling.BICUBIC)
        self.canvas.paste(image, (self.left, self.top))
        corners = [find_corner(view.position, width, height, side) for view in views if view.position]
        self._outline([(x, y, x + side, y + side) for x, y in corners])
        self.left += self.size[0] + _GAP

    def draw_map(self, net: SPPNet, windows: Sequence[tuple[int, ...]], channel: int) -> None:
        rows, columns = self.activations.shape
        self._begin(f"feature map of {columns} x {rows} cells,", f"channel {channel} of {net.num_features}")
        stride, first = net.backbone.stride, net.backbone.first_centre
        # A cell is drawn around its centre, so that it lies over the pixels that it stands for.
        edge = first - stride / 2 + 0.5
        self._draw_box((0, 0, *self.pixels.shape[1::-1]), fill=(225, 225, 225))
        for row in range(rows):
            for column in range(columns):
                x, y = edge + stride * column, edge + stride * row
                self._draw_box((x, y, x + stride, y + stride), fill=self._colour(self.activations[row, column]))
        self._outline(
            [
                (edge + stride * x0, edge + stride * y0, edge + stride * (x1 + 1), edge + stride * (y1 + 1))
                for x0, y0, x1, y1 in windows
            ]
        )
        self.left += self.size[0] + _GAP

    def draw_bins(self, net: SPPNet, bins: Tensor, channel: int) -> None:
        levels = net.pool.levels
        self._begin(
            "the thick window, pooled into",
            f"{net.pool.bins} bins of any map: {net.pool.bins} x {net.num_features} values",
        )
        parts = bins.split([net.num_features * n * n for n in levels])
        side = self.side
        for number, (n, part) in enumerate(zip(levels, parts, strict=True)):
            x, y = self.left + number // 2 * (side + _GAP), self.top + number % 2 * (side + _GAP)
            grid = part.view(net.num_features, n, n)[channel].tolist()
            for row in range(n):
                for column in range(n):
                    box = (
                        x + column * side / n,
                        y + row * side / n,
                        x + (column + 1) * side / n - 2,
                        y + (row + 1) * side / n - 2,
                    )
                    self.pen.rectangle(box, fill=self._colour(grid[row][column]))
            self.pen.rectangle((x - 2, y - 2, x + side, y + side), outline=_COLOURS[0], width=2)
            self.pen.text((x, y + side + 2), f"{n} x {n}", _BLACK, self.font)

    def _begin(self, *lines: str) -> None:
        for number, line in enumerate(lines):
            self.pen.text((self.left, _GAP / 2 + number * _LINE), line, _BLACK, self.font)

    def _draw_box(self, box: Box, inset: float = 0, **style: Any) -> None:
        """Draw what lies on the image of a box in its pixels, moved inwards by pixels of the picture."""
        height, width = self.pixels.shape[:2]
        left, top = max(box[0], 0) * self.zoom + inset, max(box[1], 0) * self.zoom + inset
        right, bottom = min(box[2], width) * self.zoom - 1 - inset, min(box[3], height) * self.zoom - 1 - inset
        # A cell can lie beyond the image, where the network pads it, and be smaller than a pixel of the picture.
        if left <= right and top <= bottom:
            self.pen.rectangle((self.left + left, self.top + top, self.left + right, self.top + bottom), **style)

    def _outline(self, boxes: Sequence[Box]) -> None:
        # Windows share borders: each is drawn a little inside the one before, the first on top.
        for number, box in reversed(list(enumerate(boxes))):
            self._draw_box(box, inset=number, outline=_COLOURS[number], width=2 if number else 4)

    def _colour(self, value: float) -> tuple[int, ...]:
        place = np.clip(value / self.largest, 0, 1) * (len(_HEAT) - 1)
        return tuple(int(np.interp(place, range(len(_HEAT)), _HEAT[:, i])) for i in range(3))


class ViewPicture(EpochPicture):
    """Shows the windows of the first validation image after the last epoch."""

    name = "views"

    def draw(self, trainer: pl.Trainer, module: LitClassifier) -> NDArray[np.uint8] | None:
        """Draw the views after the last epoch, if the network pools windows of maps."""
        net, data = module.net, trainer.datamodule  # type: ignore[attr-defined]
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        if not is_last or not isinstance(data, ImageNetDataModule) or not net.config.takes_any_size:
            return None
        is_training = net.training
        picture = np.asarray(draw_views(net.eval(), read_image(data.val_source, 0)))
        net.train(is_training)
        return picture.transpose(2, 0, 1)
