"""The test protocols as data: which views of an image are scored and averaged."""

from collections.abc import Sequence
from typing import NamedTuple

from spp_cls.cli.errors import UserError
from spp_cls.data.transforms.crops import CENTRE, CORNERS, FIVE, Position

# Side of the windows and unit of all scales in this file: the crops that the paper's networks were trained on.
REFERENCE_SIDE = 224

# Section 3.1.4: the scales of 96-view testing.
SIX_SCALES = (224, 256, 300, 360, 448, 560)

SIDES: tuple[Position, ...] = ((0.5, 0), (0.5, 1), (0, 0.5), (1, 0.5))

# Centre, four corners and the middles of the four sides.
NINE: tuple[Position, ...] = (*FIVE, *SIDES)

# The words for positions on the command line.
POSITIONS: dict[str, tuple[Position | None, ...]] = {
    "centre": (CENTRE,),
    "corners": CORNERS,
    "sides": SIDES,
    "full": (None,),
}
# The words for NINE.
NINE_POSITIONS = ("centre", "corners", "sides")


class View(NamedTuple):
    """A view to score: the whole image, or a window of it, after a resize to a minimum side.

    `scale` is that minimum side in pixels for a network trained on crops of 224. `position` is None for the whole
    image. A flipped view is the mirror image of the same window. Views with `on_maps` are pooled from the feature map
    of the whole image; the others are cut from the image first. A warped view is the whole image too, but squeezed into
    a square of `scale` x `scale`.
    """

    scale: int
    position: Position | None
    flip: bool
    on_maps: bool
    is_warped: bool = False


class Protocol(NamedTuple):
    """A named set of views; the softmax scores of all are averaged with equal weights."""

    name: str
    views: tuple[View, ...]

    @property
    def needs_any_size(self) -> bool:
        """Whether only networks that take any size can run it: some view is pooled on the map of a larger image."""
        return any(view.on_maps for view in self.views)


def _make_views(
    scale: int, positions: Sequence[Position | None], flips: bool, on_maps: bool = True
) -> tuple[View, ...]:
    return tuple(
        View(scale, position, flip, on_maps)
        for position in positions
        for flip in ((False, True) if flips else (False,))
    )


def make_map_views(
    scales: Sequence[int], positions: Sequence[Position | None] = NINE, flips: bool = True
) -> tuple[View, ...]:
    """Make views on maps at several scales, by default nine positions a scale with flips (section 3.1.4).

    At scale 224 the window is as large as the shorter side: positions that differ only along it are one, three of nine.

    Raises:
        UserError: if a scale is not an integer, or smaller than the window.
    """
    views: tuple[View, ...] = ()
    for scale in scales:
        if not isinstance(scale, int):
            raise UserError(f"a scale is a whole number of pixels, not {scale!r}")
        if scale < REFERENCE_SIDE and any(position for position in positions):
            raise UserError(
                f"scale {scale} is smaller than the window of {REFERENCE_SIDE}; give {REFERENCE_SIDE} or more"
            )
        distinct: dict[Position | None, None] = dict.fromkeys(positions)
        if scale == REFERENCE_SIDE:
            # An image is either wide or high; a position on the diagonal is right for both.
            distinct = dict.fromkeys(position and (position[0], position[0]) for position in positions)
        views += _make_views(scale, list(distinct), flips)
    return views


def make_protocol(scales: Sequence[int], positions: Sequence[str], flips: bool) -> Protocol:
    """Make the protocol `custom`: views on maps at scales, and positions among centre, corners, sides and full.

    Raises:
        UserError: if there are no views, a scale is smaller than the window, or a position is unknown.
    """
    unknown = [word for word in positions if word not in POSITIONS]
    if unknown:
        raise UserError(f"there is no position {unknown[0]!r}; choose among {', '.join(POSITIONS)}")
    if not scales or not positions:
        raise UserError(
            "protocol=custom needs scales and positions, such as scales=[256,384] positions=[centre,corners]"
        )
    parts = ["custom", "+".join(map(str, scales)), "+".join(positions), "flips" if flips else "no flips"]
    chosen = [position for word in positions for position in POSITIONS[word]]
    return Protocol(":".join(parts), make_map_views(list(dict.fromkeys(scales)), chosen, flips))


_FULL = _make_views(256, [None], flips=False)
_FULL_AND_FLIP = _make_views(256, [None], flips=True)

# By name; a plugin adds its own here.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("crop1", _make_views(256, [CENTRE], flips=False, on_maps=False)),
        Protocol("crop10", _make_views(256, FIVE, flips=True, on_maps=False)),
        Protocol("full1", _FULL),
        Protocol("full2", _FULL_AND_FLIP),
        Protocol("map10", _make_views(256, FIVE, flips=True)),
        Protocol("map96", make_map_views(SIX_SCALES)),
        Protocol("map98", make_map_views(SIX_SCALES) + _FULL_AND_FLIP),
        Protocol("warp1", (View(REFERENCE_SIDE, None, flip=False, on_maps=False, is_warped=True),)),
    )
}


def get_protocol(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        UserError: if no protocol has this name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}; choose among {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
